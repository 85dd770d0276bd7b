"""What makes vectors of texts: the protocol, and embedders that are there.

What it is: from texts to rows of numbers. What it is not: it stores and finds nothing. The invariant: an
embedder's identity changes whenever its vectors do.
"""

from stratakv.engram.embedders.hidden_states import HiddenStateEmbedder
from stratakv.engram.embedders.minilm import MiniLM
from stratakv.engram.embedders.named import embedder_named
from stratakv.engram.embedders.protocol import Embedder, Floats, FunctionEmbedder, embed, embed_query
from stratakv.engram.embedders.sentence_transformer import SentenceTransformerEmbedder

__all__ = [
    "Embedder",
    "Floats",
    "FunctionEmbedder",
    "HiddenStateEmbedder",
    "MiniLM",
    "SentenceTransformerEmbedder",
    "embed",
    "embed_query",
    "embedder_named",
]
