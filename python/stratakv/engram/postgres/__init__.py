"""Memories in PostgreSQL with pgvector: found and ranked as those in files, for many processes at once.

What it is: SQL that stores, scopes and finds. What it is not: another engine. What a draft may be, the words
of a text, and how what was found becomes a score are the native engine's (`prepare_memories`, `Question`).
The invariant: every statement about memories names their owner, and the scopes that the call covers.
"""

from stratakv.engram.postgres.engine import PostgresEngine
from stratakv.engram.postgres.reembed import PostgresReembedding

__all__ = ["PostgresEngine", "PostgresReembedding"]
