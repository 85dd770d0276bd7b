"""Engram: long-term memory in a directory or a database, found by words and by meaning."""

from stratakv.engram.assistant import AssistantMemory, Observed
from stratakv.engram.context import Context, Profile, note_of
from stratakv.engram.embedders import (
    Embedder,
    FunctionEmbedder,
    HiddenStateEmbedder,
    MiniLM,
    SentenceTransformerEmbedder,
    embedder_named,
)
from stratakv.engram.engram import Engram
from stratakv.engram.facts import Extracted, Extractor, Fact
from stratakv.engram.files import FileCommandError, MemoryFiles
from stratakv.engram.memory import Memory, Recalled, Scope
from stratakv.engram.model_extractor import ModelExtractor
from stratakv.engram.policy import Policy
from stratakv.engram.rules import RuleExtractor

__all__ = [
    "AssistantMemory",
    "Context",
    "Embedder",
    "Engram",
    "Extracted",
    "Extractor",
    "Fact",
    "FileCommandError",
    "FunctionEmbedder",
    "HiddenStateEmbedder",
    "Memory",
    "MemoryFiles",
    "MiniLM",
    "ModelExtractor",
    "Observed",
    "Policy",
    "Profile",
    "Recalled",
    "RuleExtractor",
    "Scope",
    "SentenceTransformerEmbedder",
    "embedder_named",
    "note_of",
]
