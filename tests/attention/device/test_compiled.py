"""That the kernels compile for a GPU, to machine code, on a machine that needs none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {"attend_kernel": 12, "seal_kernel": 2, "score_kernel": 4, "merge_kernel": 1}


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.attention.device.compile_kernels"],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    for name, count in KERNELS.items():
        sizes = [int(line.split("cubin ")[1].split()[0]) for line in lines if line.startswith(name)]
        assert len(sizes) == count
        assert min(sizes) > 1000
