"""Estimates from the engine's summaries: the reference beside the engine, the kernel beside the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.attention.device import reference
from stratakv.attention.device.summaries import SummaryLayout, arrange
from tests.attention.device import made

# Logarithms of masses, of order ten: float32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def case(rows=2, heads=2, group=1, blocks=9, dim=64, places=3, **turned):
    """Random summaries with scales of order one, and queries from a few places."""
    layout = SummaryLayout.of(made.rotary(dim, **turned), dim)
    summaries = torch.randint(256, (rows, heads, blocks, layout.num_bytes), dtype=torch.uint8)
    scales = (torch.rand(rows, heads, blocks, 2) * 0.2).half()
    summaries[..., layout.scales_start :] = scales.view(torch.uint8)
    asked = arrange(torch.randn(rows, heads, places, group, dim) * dim**-0.5, layout)
    return summaries, asked, torch.randint(places, (blocks,)), layout


def by_definition(summaries, asked, places, layout):
    """Block by block, token by token, in Python's floats, from the definition in docs/selection.md."""
    rows, heads, blocks, _ = summaries.shape
    masses = torch.empty(rows, heads, asked.steps.shape[-1], blocks, dtype=torch.float64)
    for row, head, group, block in torch.cartesian_prod(*map(torch.arange, masses.shape)).tolist():
        summary = summaries[row, head, block].tolist()
        scale = summaries[row, head, block, layout.scales_start :].view(torch.float16).tolist()
        place = int(places[block])
        whole = asked.whole[row, head, place, group].tolist()
        slow = asked.slow[row, head, place, group].tolist()
        mean = [byte & 15 for byte in summary[: layout.mean_bytes]] + [
            b >> 4 for b in summary[: layout.mean_bytes]
        ]
        centre = sum(x * (step - 8) for x, step in zip(whole, mean, strict=False)) * scale[0]
        scores = []
        for token in range(16):
            nibble = summary[layout.steps_start + token % 8] >> (4 * (token // 8)) & 15
            codes = [code_of(summary, layout, token, element) for element in range(layout.num_slow)]
            total = sum(x * (code - 1.5) for x, code in zip(slow, codes, strict=True))
            scores.append(total * (nibble + 1) * float(asked.steps[row, head, place, group]) * scale[1])
        masses[row, head, group, block] = centre + torch.tensor(scores, dtype=torch.float64).logsumexp(0)
    return masses


def code_of(summary, layout, token, element):
    group, place = divmod(element, 16)
    if group < layout.word_groups:
        byte, bits = (group * 16 + token) * 4 + place % 4, 2 * (place // 4)
    else:
        byte, bits = layout.word_groups * 64 + token * 2 + place // 4, 2 * (place % 4)
    return summary[layout.mean_bytes + byte] >> bits & 3


@pytest.mark.parametrize("dim", [16, 64, 80])
def test_the_reference_is_the_definition(dim):
    made_case = case(rows=1, group=2, blocks=4, dim=dim)
    torch.testing.assert_close(reference.score(*made_case).double(), by_definition(*made_case), **CLOSE)


@settings(max_examples=12)
@given(
    rows=st.integers(1, 2),
    heads=st.integers(1, 3),
    group=st.integers(1, 8),
    blocks=st.integers(0, 19),
    dim=st.sampled_from([8, 24, 40, 64, 80, 128]),
    places=st.integers(1, 4),
    interleaved=st.booleans(),
)
def test_the_kernel_is_the_reference(**shape):
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    made_case = case(**shape)
    torch.testing.assert_close(kernels.score(*made_case), reference.score(*made_case), **CLOSE)


def test_a_longer_buffer_is_read_in_part():
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    summaries, asked, places, layout = case(blocks=12)
    part = (summaries[:, :, :5], asked, places[:5], layout)
    for backend in (kernels, reference):
        torch.testing.assert_close(backend.score(*part), reference.score(*case_of(part)), **CLOSE)


def case_of(part):
    return part[0].contiguous(), *part[1:]


@pytest.mark.filterwarnings("ignore:All-NaN")  # numpy's, below Triton's interpreter
def test_keys_that_are_no_numbers_have_no_mass():
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    summaries, asked, places, layout = case()
    nan = torch.tensor([torch.nan], dtype=torch.float16).view(torch.uint8)
    summaries[0, 0, 2, layout.scales_start : layout.scales_start + 2] = nan
    summaries[1, 1, 3, layout.scales_start + 2 :] = nan
    for backend in (kernels, reference):
        found = backend.score(summaries, asked, places, layout).isnan()
        assert found[0, 0, :, 2].all()
        assert found[1, 1, :, 3].all()
        assert found.sum() == 2 * found.shape[2]
