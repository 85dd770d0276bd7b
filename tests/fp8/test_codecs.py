"""The engine's codecs beside torch's casts and the reference, over all 16-bit inputs and random rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv import _native
from stratakv.fp8 import codecs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
E4M3 = torch.float8_e4m3fn


def all_values(dtype):
    """All values of a 16-bit type; for float32, those of both, and both sides of what is rounded."""
    if dtype != torch.float32:
        return torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    codes = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    middles = (codes[1:] + codes[:-1]) / 2
    up, down = (torch.nextafter(middles, torch.tensor(torch.inf * sign)) for sign in (1, -1))
    ends = torch.tensor([448.0, 463.9, 464.0, 464.1, 480.0, 1e9, 3e38])
    positive = torch.cat([middles, up, down, ends])
    halves = [all_values(half).float() for half in (torch.bfloat16, torch.float16)]
    return torch.cat([*halves, positive, -positive])


def encode(rows):
    """The engine's planes of (N, D) rows."""
    count, dim = rows.shape
    widths = (codecs.residual_bytes(rows.dtype, dim), dim)
    residual, codes = (torch.full((count, width), 9, dtype=torch.uint8) for width in widths)
    scales = torch.full((count,), 9, dtype=torch.uint8)
    _native.encode_rows(rows, scales, codes, residual)
    return codecs.Planes(rows.dtype, scales, codes, residual)


def decode(planes, dtype):
    out = torch.full(planes.codes.shape, 9, dtype=dtype)
    _native.decode_rows(planes.scales, planes.codes, out)
    return out


def restore(planes, dtype):
    out = torch.full(planes.codes.shape, 9, dtype=dtype)
    _native.restore_rows(NAMES[planes.dtype], planes.scales, planes.codes, planes.residual, out)
    return out


def assert_same(ours, truth):
    """Equal in all bits, a NaN to any NaN."""
    assert ours.dtype == truth.dtype
    number = ~truth.isnan()
    assert torch.equal(ours.isnan(), ~number)
    as_integers = torch.int32 if ours.dtype == torch.float32 else torch.int16
    assert torch.equal(ours[number].view(as_integers), truth[number].view(as_integers))


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_those_of_torch(dtype):
    values = all_values(dtype)
    codes = torch.empty(values.shape, dtype=torch.uint8)
    _native.fp8_encode(values, codes)
    assert torch.equal(codes, values.to(E4M3).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-20])
def test_values_are_those_of_torch(dtype, scale):
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    out = torch.empty(256, dtype=dtype)
    _native.fp8_decode(codes, out, scale=scale)
    assert_same(out, (codes.view(E4M3).float() * torch.tensor(scale)).to(dtype))


@pytest.mark.parametrize("scale", [0.37, 1e-3])
def test_scaled_codes_are_those_of_torch(scale):
    values = all_values(torch.bfloat16)
    codes = torch.empty(values.shape, dtype=torch.uint8)
    _native.fp8_encode(values, codes, inverse_scale=scale)
    assert torch.equal(codes, (values.float() * torch.tensor(scale)).to(E4M3).view(torch.uint8))


def rows_of_all_values(dtype):
    """Rows that hold all finite values of a 16-bit type, some as the largest."""
    values = all_values(dtype)
    values = values[values.isfinite()]
    ascending = values[values.double().abs().argsort()]
    whole = len(ascending) // 64 * 64
    strided = ascending[:whole].reshape(64, -1).T
    return torch.cat([strided, ascending[-whole:].reshape(-1, 64)]).contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_planes_of_all_values_are_the_references(dtype):
    rows = rows_of_all_values(dtype)
    for planes_rows in (rows, rows.float()):
        check_planes(planes_rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_values_are_restored_as_promised(dtype):
    rows = rows_of_all_values(dtype)
    planes = encode(rows)
    restored = restore(planes, dtype)
    scales = torch.ldexp(torch.ones(len(rows), 1, dtype=torch.float64), planes.scales.long()[:, None] - 127)
    normal = rows.double().abs() >= scales / 64
    assert 0.1 < normal.double().mean() < 1
    assert torch.equal(restored[normal].view(torch.int16), rows[normal].view(torch.int16))
    assert torch.equal(restored.signbit(), rows.signbit())
    bound = 2.0**-17 if dtype == torch.float16 else 2.0**-14
    assert ((restored.double() - rows.double()).abs() <= bound * scales).all()


def check_planes(rows):
    ours, truth = encode(rows), codecs.encode_rows(rows)
    assert torch.equal(ours.scales, truth.scales)
    assert torch.equal(ours.codes, truth.codes)
    assert torch.equal(ours.residual, truth.residual)
    for dtype in DTYPES:
        assert_same(decode(ours, dtype), codecs.decode_rows(truth, dtype))
        assert_same(restore(ours, dtype), codecs.restore_rows(truth, dtype))


@st.composite
def random_rows(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(0, 5), st.integers(1, 150)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        exponent = draw(st.integers(-24, 14) if dtype == torch.float16 else st.integers(-133, 126))
        values = torch.randn(shape, generator=generator, dtype=torch.float64) / 4
        return torch.ldexp(values, torch.tensor(exponent)).to(dtype)
    # Any bits at all, so NaNs and infinities too.
    bits = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64).to(torch.int32)
    if dtype == torch.float32:
        return bits.view(dtype)
    return bits.to(torch.int16).view(dtype)


@given(random_rows())
@settings(deadline=None, max_examples=150)
def test_planes_of_random_rows_are_the_references(rows):
    check_planes(rows)


def test_codes_over_the_scale_are_e4m3():
    rows = torch.randn(32, 128).bfloat16()
    planes = encode(rows)
    values = planes.codes.view(E4M3).float() * torch.exp2(planes.scales.float() - 127)[:, None]
    assert torch.equal(values.bfloat16(), decode(planes, torch.bfloat16))
    assert ((values - rows.float()).abs() <= rows.float().abs() / 16 + 2.0**-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(2, 3, 4)}, "expected (N, D)"),
        ({"rows": torch.zeros(2, 8, dtype=torch.float64)}, "expected torch.float32, bfloat16 or float16"),
        ({"scales": torch.zeros(3, dtype=torch.uint8)}, "scales has shape [3], expected [2]"),
        ({"codes": torch.zeros(2, 8)}, "codes is torch.float32, expected torch.uint8"),
        ({"codes": torch.zeros(8, 2, dtype=torch.uint8).T}, "codes is not contiguous"),
        ({"residual": torch.zeros(2, 8, dtype=torch.uint8)}, "residual has shape [2, 8], expected [2, 4]"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    tensors = {
        "rows": torch.zeros(2, 8),
        "scales": torch.zeros(2, dtype=torch.uint8),
        "codes": torch.zeros(2, 8, dtype=torch.uint8),
        "residual": torch.zeros(2, 4, dtype=torch.uint8),
    } | change
    with pytest.raises(ValueError) as error:
        _native.encode_rows(*tensors.values())
    assert message in str(error.value)


def test_refuses_tensors_that_share_memory():
    memory = torch.zeros(2, 12, dtype=torch.uint8)
    codes, residual = memory.flatten()[:16].view(2, 8), memory.flatten()[12:20].view(2, 4)
    with pytest.raises(ValueError, match="codes and residual share memory"):
        _native.encode_rows(torch.zeros(2, 8), torch.zeros(2, dtype=torch.uint8), codes, residual)


def test_the_reference_refuses_other_types_and_shapes():
    with pytest.raises(ValueError, match="float64 has no planes"):
        codecs.encode_rows(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        codecs.encode_rows(torch.zeros(2))
