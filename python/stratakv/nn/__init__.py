"""Modules to train with: manifold-constrained hyper-connections, and a language model built on them.

Torch only. `hyper_connections.py` the module, `mappings.py` what it computes, `fused.py` the same by
kernels (the engine's on the CPU, `gpu/` on CUDA), `recompute.py` streams that are not kept for the backward
pass, `mixings.py` the ways to mix, `diagnostics.py` whether a stack is stable, `transformer.py` the model,
`conditional_memory.py` and `ngrams.py` tables that n-grams are looked up in, `mapped_table.py` such a table
in a file, `read_ahead.py` one that a checkpoint's loader mapped, `vision.py` images in the sequence,
`retrofit.py` streams for existing models. Measured: `docs/mhc.md`.
"""

from stratakv.nn.conditional_memory import ConditionalMemory, MemoryConfig, MemoryState, map_tables
from stratakv.nn.diagnostics import Gains, Watched, composite_gains, sum_errors, watch
from stratakv.nn.hyper_connections import (
    HyperConnections,
    Reading,
    SinglePassHyperConnections,
    StreamHead,
    expand_streams,
)
from stratakv.nn.mapped_table import MappedTable
from stratakv.nn.mappings import Mappings
from stratakv.nn.mixings import kronecker_product, permutation_mixture, sinkhorn
from stratakv.nn.ngrams import NGramPlan, compress_vocabulary, ngram_hashes, plan_layers
from stratakv.nn.recompute import group_size, streams_recomputed
from stratakv.nn.retrofit import add_hyper_connections
from stratakv.nn.transformer import StrataLM, TransformerConfig
from stratakv.nn.vision import ImageEncoder, ImageProjector, StrataVisionLM, VisionConfig

__all__ = [
    "ConditionalMemory",
    "Gains",
    "HyperConnections",
    "ImageEncoder",
    "ImageProjector",
    "MappedTable",
    "Mappings",
    "MemoryConfig",
    "MemoryState",
    "NGramPlan",
    "Reading",
    "SinglePassHyperConnections",
    "StrataLM",
    "StrataVisionLM",
    "StreamHead",
    "TransformerConfig",
    "VisionConfig",
    "Watched",
    "add_hyper_connections",
    "composite_gains",
    "compress_vocabulary",
    "expand_streams",
    "group_size",
    "kronecker_product",
    "map_tables",
    "ngram_hashes",
    "permutation_mixture",
    "plan_layers",
    "sinkhorn",
    "streams_recomputed",
    "sum_errors",
    "watch",
]
