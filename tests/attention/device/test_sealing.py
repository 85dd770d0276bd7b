"""Planes that are made on a device: the kernel beside the reference codec, in bits."""

from __future__ import annotations

import pytest
import torch

from stratakv.fp8 import codecs
from tests.fp8.test_codecs import DTYPES, all_values

kernels = pytest.importorskip("stratakv.attention.device.kernels")


def assert_same_planes(rows):
    found, expected = kernels.encode_rows(rows), codecs.encode_rows(rows)
    assert torch.equal(found.scales, expected.scales)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.residual, expected.residual)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_values_in_rows_of_one(dtype):
    assert_same_planes(all_values(dtype)[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (17, 2), (5, 63), (40, 64), (33, 80), (2, 128)])
def test_odd_shapes(dtype, shape):
    assert_same_planes(torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wide_range_in_one_row(dtype):
    spread = torch.logspace(-12, 4, 64).repeat(20, 1)
    rows = (spread * torch.randn(20, 64)).to(dtype)
    rows[3, 5], rows[7, 0], rows[9] = torch.inf, torch.nan, 0.0
    assert_same_planes(rows)


def test_other_tensors_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        kernels.encode_rows(torch.zeros(3))
    with pytest.raises(ValueError, match="has no planes"):
        kernels.encode_rows(torch.zeros(2, 2, dtype=torch.float64))
