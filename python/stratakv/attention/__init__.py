"""Exact attention over pages, and the tensor that stands for pages in a model.

`reference` is the slow oracle; `streaming` and the engine's kernel are the fast paths;
`paged` chooses between them; `paged_tensor` hands pages to unchanged model code.
"""

from stratakv.attention.paged import paged_attention
from stratakv.attention.paged_tensor import PagedTensor
from stratakv.attention.reference import reference_attention
from stratakv.attention.streaming import stream_attention

__all__ = ["PagedTensor", "paged_attention", "reference_attention", "stream_attention"]
