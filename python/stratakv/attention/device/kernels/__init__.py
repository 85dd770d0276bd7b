"""Triton kernels of sparse decoding; each has a twin of the same name and arguments in plain PyTorch.

`score`, `attend` and `merge` are those of `attention.device.reference`, `encode_rows` is that of
`fp8.codecs`. They are plain Triton: they run compiled on a GPU and, with TRITON_INTERPRET=1 set before
Triton is imported, in its interpreter on any machine.
"""

from stratakv.attention.device.kernels.attending import attend
from stratakv.attention.device.kernels.merging import merge
from stratakv.attention.device.kernels.scoring import score
from stratakv.attention.device.kernels.sealing import encode_rows

__all__ = ["attend", "encode_rows", "merge", "score"]
