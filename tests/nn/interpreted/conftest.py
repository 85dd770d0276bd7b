"""Tests of Triton kernels by its interpreter: with TRITON_INTERPRET=1, set before triton is imported.

`tests/nn/test_gpu_kernels.py` runs them in a process of their own.
"""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
