"""The address of a database, and how it is shown: without its password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stratakv.engram.postgres.driver import psycopg

FORM = "postgresql://user@host:5432/database"
SCHEMES = ("postgresql://", "postgres://")
# Seconds to wait for a server, unless the address has `connect_timeout`.
TIMEOUT_S = 10
HIDDEN = "***"


@dataclass(frozen=True)
class Address:
    """Where a database is.

    Args:
        conninfo: as libpq takes it, with what is secret.
        shown: as messages have it.
        secrets: texts that no message may have.
    """

    conninfo: str = field(repr=False)
    shown: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that a URL names.

        Raises:
            ValueError: it is none of PostgreSQL's. The message does not repeat it: a password may be in it.
        """
        if not url.startswith(SCHEMES):
            scheme = url.partition("://")[0]
            raise ValueError(f"{scheme}:// is no database that memories are kept in: accepted is {FORM}")
        try:
            parts = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:
            # libpq quotes what it does not understand, which may be a piece of the password.
            raise ValueError(
                f"the address of the database can't be read: accepted is {FORM}, with special characters of "
                "a name or password written as %XX"
            ) from None
        secrets = tuple(str(parts[name]) for name in ("password", "sslpassword") if parts.get(name))
        parts.setdefault("connect_timeout", TIMEOUT_S)
        parts.setdefault("application_name", "stratakv")
        return cls(psycopg.conninfo.make_conninfo("", **parts), _shown(parts), secrets)

    def clean(self, message: object) -> str:
        """A message on one line, without what is secret."""
        text = " ".join(str(message).split())
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _shown(parts: Mapping[str, object]) -> str:
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"postgresql://{user}{parts.get('host') or ''}{port}/{parts.get('dbname') or ''}"
