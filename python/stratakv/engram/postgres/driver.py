"""The libraries that speak with PostgreSQL; where they are missing, what to install."""

from __future__ import annotations

from stratakv.errors import NotInstalledError

try:
    import pgvector.psycopg
    import psycopg
    import psycopg.conninfo
    import psycopg.errors
    import psycopg.sql
    import psycopg_pool
except ImportError as error:
    raise NotInstalledError(
        f"memories in PostgreSQL need psycopg, psycopg_pool and pgvector ({error})",
        "pip install 'stratakv[postgres]'",
    ) from error

__all__ = ["pgvector", "psycopg", "psycopg_pool"]
