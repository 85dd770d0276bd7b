"""Engram: long-term memory in a directory, found by words and by meaning."""

from stratakv.engram.embedders import Embedder, FunctionEmbedder
from stratakv.engram.engram import Engram
from stratakv.engram.memory import Memory, Recalled, Scope
from stratakv.engram.minilm import MiniLM

__all__ = ["Embedder", "Engram", "FunctionEmbedder", "Memory", "MiniLM", "Recalled", "Scope"]
