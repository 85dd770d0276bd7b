"""Modules to train with: manifold-constrained hyper-connections.

Torch only. `hyper_connections.py` the module, `mappings.py` what it computes, `mixings.py` the ways
to mix, `diagnostics.py` whether a stack is stable. Measured: `docs/mhc.md`.
"""

from stratakv.nn.diagnostics import Gains, Watched, composite_gains, sum_errors, watch
from stratakv.nn.hyper_connections import (
    HyperConnections,
    Reading,
    SinglePassHyperConnections,
    StreamHead,
    expand_streams,
)
from stratakv.nn.mappings import Mappings
from stratakv.nn.mixings import kronecker_product, permutation_mixture, sinkhorn

__all__ = [
    "Gains",
    "HyperConnections",
    "Mappings",
    "Reading",
    "SinglePassHyperConnections",
    "StreamHead",
    "Watched",
    "composite_gains",
    "expand_streams",
    "kronecker_product",
    "permutation_mixture",
    "sinkhorn",
    "sum_errors",
    "watch",
]
