"""Which addresses are accepted, and that nothing shows their passwords."""

from __future__ import annotations

import subprocess
import sys
import traceback

import pytest

from stratakv.engram import Engram
from stratakv.engram.places import is_url
from stratakv.errors import DatabaseError

postgres = pytest.importorskip("stratakv.engram.postgres", reason="needs stratakv[postgres]")


def test_what_is_shown_has_no_password():
    from stratakv.engram.postgres.address import Address

    address = Address.of("postgresql://ana:s3cret%21@db.example:6000/shop?sslpassword=keys")
    assert address.shown == "postgresql://ana@db.example:6000/shop"
    assert "s3cret" not in repr(address)
    assert "keys" not in repr(address)
    assert address.clean("no\n  s3cret! or keys") == "no *** or ***"
    assert "s3cret!" in address.conninfo
    assert Address.of("postgres:///shop").shown == "postgresql:///shop"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://ana:s3cret@host/db", "mysql:// is no database that memories are kept in: accepted is"),
        ("postgresql://ana:s3cret@host:port/db", None),
        ("postgresql://ana:s3c%ret@host/db", "written as %XX"),
        ("postgresql://ana:s3cret@host/db?colour=s3cret", "can't be read: accepted is postgresql://user@"),
        ("postgresql://ana:s3cret@[host/db", "can't be read"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises((ValueError, DatabaseError), match=message) as caught:
        Engram.open(url, embedder=None)
    assert "s3c" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["postgresql://ana:s3cret@127.0.0.1:1/db"])
def test_a_server_that_does_not_answer(url):
    with pytest.raises(DatabaseError, match="see that the server runs there") as caught:
        Engram.open(url, embedder=None)
    assert "can't connect to postgresql://ana@127.0.0.1:1/db" in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, OSError)


def test_a_database_that_is_not_there(database):
    with pytest.raises(DatabaseError, match='"t[0-9]+nothing" does not exist.*the database exists'):
        Engram.open(f"{database}nothing", embedder=None)


def test_directories_are_no_addresses(tmp_path):
    assert not is_url(tmp_path)
    assert not is_url("memory/postgresql")
    assert is_url("postgresql://host/db")


@pytest.mark.parametrize("missing", ["psycopg", "psycopg_pool", "pgvector"])
def test_what_is_not_installed_is_named(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import stratakv\n"
        "try: stratakv.Engram.open('postgresql://host/db', embedder=None)\n"
        "except ImportError as error: assert \"pip install 'stratakv[postgres]'\" in str(error), error\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
