"""Scales of tiles: products against a slow reference, layouts, what they are better at, and the layers."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stratakv import fp8
from stratakv.fp8 import capability, plan
from stratakv.fp8.linear import Fp8Linear
from stratakv.fp8.matmul import emulated_mm
from stratakv.fp8.quantize import (
    dequantize,
    quantize_activations,
    quantize_blocks,
    quantize_second,
    quantize_tiles,
    quantize_weight,
)
from stratakv.fp8.routing import TokenRouting

from .test_linear import DTYPES, plain, sqnr_db
from .test_training import gradients, layer_of

# Around one and two tiles, blocks and groups of four rows; (M, K, N).
SHAPES = [(1, 128, 128), (3, 17, 33), (4, 129, 127), (5, 300, 130), (8, 256, 256), (2, 1, 1)]


def rounded(values):
    """What one scale makes of values, in float64."""
    scale = values.abs().max().float() / 448
    return (values.float() / scale).to(torch.float8_e4m3fn).double() * scale.double()


def reference_product(x_MK, weight_NK):
    """Tile after tile and block after block, in float64; without the rounding of the result."""
    x, weight = torch.empty_like(x_MK).double(), torch.empty_like(weight_NK).double()
    for start in range(0, x_MK.shape[1], 128):
        along = slice(start, start + 128)
        for row in range(len(x)):
            x[row, along] = rounded(x_MK[row, along])
        for top in range(0, len(weight), 128):
            weight[top : top + 128, along] = rounded(weight_NK[top : top + 128, along])
    return x @ weight.t()


@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), SHAPES)
def test_products_equal_the_reference(num_rows, num_in, num_out):
    x, weight = torch.randn(num_rows, num_in), torch.randn(num_out, num_in)
    # Rows, and features far apart, of different sizes.
    x *= torch.logspace(-3, 3, num_in)
    actual = emulated_mm(quantize_tiles(x), quantize_blocks(weight))[:num_rows, :num_out]
    assert actual.dtype == torch.bfloat16
    bound = 1e-5 * x.abs().max() * num_in
    torch.testing.assert_close(actual.double(), reference_product(x, weight), rtol=2**-8, atol=float(bound))


def test_layouts_are_what_cuda_asks_for():
    """The shapes and strides that torch 2.15 names where it refuses others."""
    rows, weight = quantize_tiles(torch.randn(3, 300)), quantize_blocks(torch.randn(130, 300))
    assert rows.codes.shape == (4, 384)
    assert rows.codes.stride() == (384, 1)
    assert (rows.scale.shape, rows.scale.stride()) == ((4, 3), (1, 4))
    assert weight.codes.shape == (256, 384)
    assert weight.codes.t().stride() == (1, 384)
    assert (weight.scale.t().shape, weight.scale.t().stride()) == ((4, 2), (1, 4))
    gradient = quantize_second(torch.randn(300, 3).t(), "tiles")
    assert gradient.codes.shape == (16, 384)
    assert (gradient.scale.shape, gradient.scale.stride()) == ((16, 3), (1, 16))
    for one in (rows, weight, gradient):
        assert (one.codes.dtype, one.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
        assert hasattr(torch.nn.functional.ScalingType, one.scaling)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_values_are_close_to_their_tiles_largest(num_rows, num_in, dtype, seed):
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_in, generator=drawn) * torch.exp(4 * torch.randn(num_in, generator=drawn))
    x = x.to(dtype).clamp(-60000, 60000)
    for quantize, height in ((quantize_tiles, 1), (quantize_blocks, 128)):
        back = dequantize(quantize(x))
        assert not back[num_rows:].any()
        assert not back[:, num_in:].any()
        for top in range(0, num_rows, height):
            for left in range(0, num_in, 128):
                place = slice(top, min(top + height, num_rows)), slice(left, min(left + 128, num_in))
                given = x[place].float()
                bound = given.abs() * 2**-4 + given.abs().max() / 448 * 2**-10 + 1e-38
                assert ((back[place] - given).abs() <= bound * 1.0001).all()


def test_broken_tiles_break_their_row_alone():
    x, weight = torch.randn(4, 256), quantize_blocks(torch.randn(128, 256))
    whole = emulated_mm(quantize_tiles(x), weight)
    x[1, 200], x[2] = torch.inf, 0
    y = emulated_mm(quantize_tiles(x), weight)
    assert y[1].isnan().all()
    assert not y[2].any()
    assert torch.equal(y[[0, 3]], whole[[0, 3]])


def errors_db(x, weight):
    """Of the product, by rows and by tiles."""
    expected = x.double() @ weight.double().t()
    return [
        sqnr_db(emulated_mm(quantize_activations(x, s), quantize_weight(weight, s)), expected)
        for s in ("rows", "tiles")
    ]


@pytest.mark.parametrize("seed", range(3))
def test_outlier_channels_cost_rows_their_bits(seed):
    """FP8 has 2^15 between its largest and smallest normal number: beyond that the granularity decides."""
    torch.manual_seed(seed)
    x, weight = torch.randn(64, 1024), torch.randn(256, 1024)
    rows, tiles = errors_db(x, weight)
    assert min(rows, tiles) > 28
    assert abs(rows - tiles) < 0.5
    # Three channels of massive activations, whose weights are small in turn, as in trained models.
    x[:, [7, 300, 301]] *= 2**18
    weight[:, [7, 300, 301]] *= 2**-12
    rows, tiles = errors_db(x, weight)
    # Measured: 17.7 to 17.9 dB by rows, 24.5 to 24.8 by tiles, of which two in eight have such a channel.
    assert tiles > 24
    assert tiles > rows + 6


def test_heavy_tails_do_not_cost_tiles_more():
    torch.manual_seed(0)
    x = torch.distributions.StudentT(1.0).sample((64, 4096))
    rows, tiles = errors_db(x, torch.randn(128, 4096))
    assert tiles > 27
    assert tiles > rows - 0.2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_layer(dtype, fraction):
    linear = plain(200, 150, dtype)
    layer = Fp8Linear(linear, TokenRouting(fraction, mixed_rows_min=2), backend="emulate", scales="tiles")
    assert "scales=tiles" in repr(layer)
    for shape in ((0, 200), (200,), (3, 7, 200)):
        x = torch.randn(shape, dtype=dtype)
        y = layer(x)
        assert (y.shape, y.dtype) == ((*shape[:-1], 150), dtype)
        if y.numel():
            assert sqnr_db(y, linear(x)) > 24
    exact = torch.tensor(
        [(row == linear(x).reshape(-1, 150)[i]).all() for i, row in enumerate(y.view(-1, 150))]
    )
    assert exact.sum() <= round(21 * fraction)
    assert type(layer.to_linear()) is nn.Linear


def test_layer_without_weights():
    linear = plain(200, 150)
    layer = Fp8Linear(linear, TokenRouting(0), backend="emulate", scales="tiles", keep_weight=False)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    again = Fp8Linear(plain(200, 150), TokenRouting(0), backend="emulate", scales="tiles", keep_weight=False)
    for assign in (False, True):
        again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), assign=assign)
        x = torch.randn(5, 200, dtype=torch.bfloat16)
        assert torch.equal(again(x), layer(x))
    again.load_state_dict(linear.state_dict())
    assert torch.equal(again(x), layer(x))
    layer.backend = "scaled_mm"
    with pytest.warns(UserWarning, match="FP8 products need CUDA"):
        assert sqnr_db(layer(x), linear(x)) > 24


@pytest.mark.parametrize("weight_gradient", ["high", "fp8"])
@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), SHAPES[:-1])
def test_training_is_near_float64(num_rows, num_in, num_out, weight_gradient):
    torch.manual_seed(0)
    layer = layer_of(num_in, num_out, scales="tiles", weight_gradient=weight_gradient)
    double = nn.Linear(num_in, num_out, dtype=torch.float64)
    double.load_state_dict(layer.state_dict())
    x, grad = torch.randn(num_rows, num_in), torch.randn(num_rows, num_out)
    found = gradients(layer, x, grad)
    for actual, expected in zip(found, gradients(double, x.double(), grad.double()), strict=True):
        assert actual.shape == expected.shape
        assert sqnr_db(actual, expected) >= 27


def test_no_tokens_have_no_gradients():
    layer = layer_of(32, 48, bias=False, scales="tiles", weight_gradient="fp8")
    y, grad_x, grad_weight = gradients(layer, torch.randn(0, 32), torch.randn(0, 48))
    assert (y.shape, grad_x.shape) == ((0, 48), (0, 32))
    assert not grad_weight.any()


def two_layers():
    return nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 200)).bfloat16().requires_grad_(False)


def test_the_report_says_what_is_padded():
    model = two_layers()
    report = fp8.convert(model, backend="emulate", scales="tiles", critical_fraction=0)
    assert (report.scales, report.padded) == ("tiles", ("1",))
    assert "scales of tiles" in str(report)
    assert "padded 1 to multiples of 128 features" in str(report)
    assert report.as_dict()["padded"] == ["1"]
    # Codes of 256 x 128 and 256 x 256; two blocks down, one or two across, padded to four.
    assert report.bytes_after - report.bytes_before == 256 * 128 + 256 * 256 + 2 * 2 * 4 * 4
    assert fp8.revert(model) == 2
    with pytest.raises(ValueError, match="scales must be one of rows, tiles, not 'blocks'"):
        fp8.convert(model, backend="emulate", scales="blocks")
    assert fp8.convert_for_training(model, backend="emulate", scales="tiles").padded == ("1",)
    assert "scales=tiles" in repr(model[0])


def test_devices_without_tiles_say_why(monkeypatch):
    monkeypatch.setattr(capability, "_refusal", lambda device: None)
    monkeypatch.setattr(capability, "_probe_failure", lambda device, scales: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert fp8.detect("cpu", "tiles").scaled_mm
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert "need CUDA capability 9.0 (Hopper); this device has 10.0" in fp8.detect("cpu", "tiles").reason
    with pytest.warns(UserWarning, match="scales of rows, not of tiles.*Hopper"):
        report = fp8.convert(two_layers(), scales="tiles")
    assert (report.backend, report.scales) == ("scaled_mm", "rows")
    assert "Hopper" in report.reasons["cpu"]
    with pytest.raises(ValueError, match="not possible here.*Hopper"):
        fp8.convert(two_layers(), scales="tiles", backend="scaled_mm")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delattr(capability.functional, "scaled_mm")
    assert "need torch 2.10" in fp8.detect("cpu", "tiles").reason


def test_without_hardware_nothing_is_converted():
    with pytest.warns(UserWarning, match="the model stays as it is.*need CUDA"):
        report = fp8.convert(two_layers(), scales="tiles")
    assert (report.backend, report.scales, report.converted) == ("keep", None, ())
    assert plan.num_bytes(two_layers()) == report.bytes_after


@pytest.mark.gpu
@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), [*SHAPES, (300, 576, 1536)])
def test_cuda_equals_the_emulation(num_rows, num_in, num_out):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    found = fp8.detect("cuda", "tiles")
    if not found.scaled_mm:
        pytest.skip(found.reason)
    emulated = layer_of(num_in, num_out, scales="tiles", weight_gradient="fp8").cuda()
    x, grad = torch.randn(num_rows, num_in).cuda(), torch.randn(num_rows, num_out).cuda()
    expected = gradients(emulated, x, grad)
    emulated.backend, emulated.weight.grad, emulated.bias.grad = "scaled_mm", None, None
    for actual, wanted in zip(gradients(emulated, x, grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2**-6, atol=1e-2)
