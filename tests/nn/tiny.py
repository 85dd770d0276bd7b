"""Sizes of the decoders that these tests make, but for their vocabulary."""

from __future__ import annotations

SIZES = {
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_positions": 512,
}
