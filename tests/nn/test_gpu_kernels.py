"""The GPU's kernels without one: interpreted, and compiled. With a GPU, against plain PyTorch there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stratakv.nn import HyperConnections, fused
from stratakv.nn.mappings import Form
from tests.nn.test_fused import gradients
from tests.nn.test_hyper_connections import connection_of

pytest.importorskip("triton")
HERE = Path(__file__).parent
# Compiles what a connection launches, for Hopper (capability 9.0), and prints each kernel's name once.
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stratakv.nn import fused, gpu
from tests.nn.test_hyper_connections import connection_of

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", int: "i32", float: "fp32"}

class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        return self.compile
    def compile(self, *args, **constants):
        names = [name for name in self.kernel.arg_names if name not in constants]
        # A whole number of 1 is compiled in, as launching does.
        constants |= {n: one for n, one in zip(names, args, strict=True) if type(one) is int and one == 1}
        kinds = [TYPES[one.dtype if isinstance(one, torch.Tensor) else type(one)] for one in args]
        signature = dict(zip(names, kinds, strict=True)) | dict.fromkeys(constants, "constexpr")
        made = triton.compile(ASTSource(self.kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
        print(self.kernel.__name__)

for name in dir(gpu):
    if name.endswith("_kernel"):
        setattr(gpu, name, Compiled(getattr(gpu, name)))
fused._of_device = lambda device, form, dim: gpu
fused._kernels = lambda tensor: gpu
connection = connection_of(WIDTH, STREAMS)
x = torch.randn(TOKENS, STREAMS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
connection(x, torch.tanh).float().sum().backward()
"""


def python(*arguments, **environment):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
    return found.stdout


@pytest.mark.slow
def test_interpreted():
    out = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted"), TRITON_INTERPRET="1"
    )
    assert " passed" in out


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "streams", "width"), [(20, 3, 48), (20, 4, 48), (1, 2, 1)])
def test_they_compile_for_a_gpu(tokens, streams, width, tmp_path):
    sizes = f"TOKENS, STREAMS, WIDTH = {tokens}, {streams}, {width}"
    code = sizes + COMPILE
    out = python("-W", "ignore", "-c", code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert set(out.split()) == {
        "project_kernel",
        "gather_kernel",
        "write_kernel",
        "write_backward_kernel",
        "mappings_backward_kernel",
        "streams_backward_kernel",
        "weight_backward_kernel",
    }


def test_they_are_chosen_by_device(monkeypatch):
    """Never on the CPU; on CUDA for up to 4 streams, any width, and Sinkhorn's mixing."""
    form = Form(4)
    assert fused._of_device("cuda", form, 24) is None or torch.cuda.is_available()
    monkeypatch.setattr(fused, "_has_triton", lambda: True)
    kernels = fused._of_device("cuda", form, 24)
    assert kernels is not None
    assert kernels.__name__ == "stratakv.nn.gpu"
    assert fused._of_device("cpu", form, 32) is fused._of_device("cpu", form, 48) is not kernels
    assert fused._of_device("cpu", form, 24) is None
    assert fused._of_device("cuda", Form(5), 24) is None
    assert fused._of_device("cuda", Form(4, "kronecker"), 24) is None
    assert fused._of_device("mps", form, 32) is None
    # A width for which the CPU has none: by kernels on the GPU, plainly on the CPU.
    connection = HyperConnections(24, backend="fused")
    x = torch.randn(3, 4, 24)
    assert not fused.is_usable(x, form, connection.weight, connection.bias, connection.scale)
    assert connection(x, torch.tanh).shape == x.shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("leading", "dim", "streams"), [((3, 50), 24, 4), ((2000,), 1280, 4), ((17,), 100, 3)]
)
def test_cuda_equals_plain_pytorch(leading, dim, streams, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    fast = connection_of(dim, streams, backend="fused").cuda()
    slow = HyperConnections(dim, num_streams=streams, backend="reference").cuda()
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(*leading, streams, dim, device="cuda", dtype=dtype)
    y_weight, weights = torch.randn(dim, device="cuda", dtype=dtype), torch.randn_like(x).float()
    expected = gradients(slow.double(), x.double(), y_weight.double(), weights.double())
    for name, value in gradients(fast, x, y_weight, weights).items():
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error < (2e-2 if dtype == torch.bfloat16 else 1e-4), (name, float(error))
