"""FP8 products: the hardware's and the emulated one against a slow reference, and the layer around them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from stratakv.fp8.linear import Fp8Linear
from stratakv.fp8.matmul import emulated_mm, scaled_mm
from stratakv.fp8.quantize import dequantize, quantize_rows, quantize_weight
from stratakv.fp8.routing import TokenRouting

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Odd, aligned, and one feature; (M, K, N).
SHAPES = [(1, 16, 16), (3, 17, 33), (5, 48, 32), (70, 31, 1), (2, 1, 15), (64, 64, 20)]


def reference_row(row_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """One row's FP8 product, number by number, in float64; without the rounding of the result."""

    def values(vector):
        scale = max(float(vector.float().abs().max()), 0.0) / 448
        if scale == 0:
            return torch.zeros(len(vector), dtype=torch.float64)
        scale = torch.tensor(scale, dtype=torch.float32)
        codes = (vector.float() / scale).to(torch.float8_e4m3fn)
        return codes.double() * scale.double()

    quantized = values(row_K)
    return torch.stack([(quantized * values(channel)).sum() for channel in weight_NK])


def sqnr_db(actual, expected):
    noise = (actual.double() - expected.double()).pow(2).mean()
    return float(10 * torch.log10(expected.double().pow(2).mean() / noise))


def plain(num_in, num_out, dtype=torch.bfloat16, bias=True):
    return nn.Linear(num_in, num_out, bias=bias, dtype=dtype).requires_grad_(False)


def layer_of(linear, fraction=0.0, **options):
    routing = TokenRouting(fraction, mixed_rows_min=options.pop("mixed_rows_min", 2))
    return Fp8Linear(linear, routing, **{"backend": "emulate", **options})


@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), SHAPES)
def test_products_equal_the_reference(num_rows, num_in, num_out):
    rows, weight = torch.randn(num_rows, num_in), torch.randn(num_out, num_in)
    expected = torch.stack([reference_row(row, weight) for row in rows])
    for multiply in (emulated_mm, scaled_mm):
        actual = multiply(quantize_rows(rows), quantize_weight(weight, "rows"))[:, :num_out]
        assert actual.dtype == torch.bfloat16
        # One rounding to bfloat16, and the float32 sums' own error where terms cancel.
        torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-5 * num_in)


@pytest.mark.parametrize("bias", [False, True])
def test_emulation_equals_scaled_mm(bias):
    rows, weight = quantize_rows(torch.randn(40, 96)), quantize_weight(torch.randn(48, 96), "rows")
    bias_N = torch.randn(48, dtype=torch.bfloat16) if bias else None
    actual, expected = scaled_mm(rows, weight, bias_N), emulated_mm(rows, weight, bias_N)
    # Sums in another order: at most the neighbouring bfloat16, and that seldom.
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-5)
    assert (actual == expected).float().mean() > 0.98


def test_the_older_function_is_the_same(monkeypatch):
    """torch before 2.10 has `torch._scaled_mm` alone."""
    rows, weight = quantize_rows(torch.randn(8, 32)), quantize_weight(torch.randn(16, 32), "rows")
    newer = scaled_mm(rows, weight)
    monkeypatch.delattr(functional, "scaled_mm", raising=False)
    assert torch.equal(scaled_mm(rows, weight), newer)


def test_layouts_are_what_cuda_asks_for():
    rows, weight = quantize_rows(torch.randn(3, 17)), quantize_weight(torch.randn(33, 17), "rows")
    assert rows.codes.shape == (3, 32)
    assert rows.codes.stride() == (32, 1)
    assert rows.scale.shape == (3, 1)
    assert weight.codes.shape == (48, 32)
    assert weight.codes.t().stride() == (1, 32)
    assert weight.scale.shape == (48, 1)
    assert weight.scale.t().is_contiguous()
    assert {weight.codes.dtype, rows.codes.dtype} == {torch.float8_e4m3fn}
    assert {weight.scale.dtype, rows.scale.dtype} == {torch.float32}


@pytest.mark.parametrize(("num_rows", "num_in"), [(1, 16), (5, 32), (5, 17)])
def test_transposed_inputs_are_laid_out_anew(num_rows, num_in):
    across = torch.randn(num_in, num_rows).t()
    rows, weight = quantize_rows(across), quantize_weight(across, "rows")
    padded = (num_in + 15) // 16 * 16
    assert rows.codes.stride() == (padded, 1)
    assert rows.scale.stride(0) == 1
    assert weight.codes.t().stride() == (1, padded)
    straight = quantize_rows(across.clone(memory_format=torch.contiguous_format))
    assert torch.equal(rows.codes.view(torch.uint8), straight.codes.view(torch.uint8))


@settings(max_examples=60)
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    st.sampled_from(DTYPES),
)
def test_quantised_rows_are_close(values, dtype):
    row = torch.tensor([values], dtype=torch.float32).to(dtype)
    if not row.isfinite().all():
        return
    quantized = quantize_rows(row)
    assert quantized.codes.float().abs().max() <= 448
    back = (quantized.codes.float() * quantized.scale)[:, : len(values)]
    largest = row.float().abs().max()
    # Half a step of 3 bits of mantissa; half of the smallest code, 2^-9, where those end.
    bound = row.float().abs() * 2**-4 + largest / 448 * 2**-10 + 1.2e-38 * 2**-9
    assert ((back - row.float()).abs() <= bound * 1.0001).all()


def test_zero_and_broken_rows():
    rows = torch.randn(4, 32)
    rows[1] = 0
    rows[2, 5] = torch.inf
    rows[3, 5] = torch.nan
    layer = layer_of(plain(32, 16, torch.float32, bias=False))
    y = layer(rows)
    assert torch.equal(y[1], torch.zeros(16))
    assert y[2:].isnan().all()
    assert torch.equal(y[0], layer(rows[:1])[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_signal_to_noise(dtype):
    linear = plain(512, 256, dtype)
    x = torch.randn(64, 512, dtype=dtype)
    expected = functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    y = layer_of(linear)(x)
    assert y.dtype == dtype
    # Measured: 28.6 to 28.7 dB for Gaussian values in both factors.
    assert 27 < sqnr_db(y, expected) < 33
    outliers = x.clone()
    outliers[:, 7] *= 100
    expected = functional.linear(outliers.double(), linear.weight.double(), linear.bias.double())
    assert sqnr_db(layer_of(linear)(outliers), expected) > 25


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_routed_rows_are_the_row_by_row_choice(dtype, fraction):
    linear = plain(37, 29, dtype)
    layer = layer_of(linear, fraction)
    x = torch.randn(20, 37, dtype=dtype)
    count = round(fraction * 20)
    critical = set(x.float().norm(dim=1).topk(count).indices.tolist())
    y = layer(x)
    for index in range(20):
        if index in critical:
            expected = linear(x[index : index + 1])[0]
            torch.testing.assert_close(y[index], expected, rtol=2**-6, atol=1e-2)
            assert not torch.equal(y[index], layer_of(linear)(x[index]))
        else:
            torch.testing.assert_close(y[index], layer_of(linear)(x[index]), rtol=2**-7, atol=1e-3)


@settings(max_examples=25)
@given(st.data())
def test_any_shape(data):
    num_in, num_out = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    shape = (*data.draw(st.lists(st.integers(0, 4), max_size=3)), num_in)
    fraction = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    linear = plain(num_in, num_out, data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans()))
    layer = layer_of(linear, fraction)
    x = torch.randn(shape, dtype=linear.weight.dtype)
    y, expected = layer(x), linear(x)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    if fraction == 1:
        assert torch.equal(y, expected)
    # An element's error is within 2^-4 of either factor, and products add up.
    bound = functional.linear(x.abs().float(), linear.weight.abs().float()) * 0.14 + 0.02
    assert ((y.float() - expected.float()).abs() <= bound).all()


def test_non_contiguous_inputs():
    layer = layer_of(plain(24, 16), 0.25)
    x = torch.randn(24, 30, 2, dtype=torch.bfloat16).permute(2, 1, 0)[:, ::3]
    assert not x.is_contiguous()
    assert torch.equal(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("inner", [torch.bfloat16, torch.float16])
def test_autocast_is_the_plain_layers(inner):
    linear = plain(64, 32, torch.float32)
    x = torch.randn(10, 64)
    for fraction in (0.0, 0.5, 1.0):
        with torch.autocast("cpu", inner):
            y, expected = layer_of(linear, fraction)(x), linear(x)
        assert y.dtype == expected.dtype == inner
        assert sqnr_db(y, expected) > 24


def test_wrong_inputs_are_named():
    layer = layer_of(plain(16, 16))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 16\), not \(3, 17\)"):
        layer(torch.randn(3, 17, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 16\), not \(\)"):
        layer(torch.tensor(1.0, dtype=torch.bfloat16))
    with pytest.raises(
        ValueError, match=r"activations are torch.float32, the layer's weight is torch.bfloat16"
    ):
        layer(torch.randn(3, 16))
    with pytest.raises(ValueError, match="not torch.float64"):
        layer(torch.randn(3, 16).double())


def test_gradients_are_refused_in_backward_only():
    linear = nn.Linear(16, 16)
    layer = layer_of(linear, 0.5)
    y = layer(torch.randn(4, 16))
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="for inference"):
        y.sum().backward()
    x = torch.randn(4, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="for inference"):
        layer_of(plain(16, 16, torch.float32))(x).sum().backward()
    with torch.inference_mode():
        assert not layer(torch.randn(4, 16)).requires_grad


def test_state_dict_is_the_plain_layers():
    linear, other = plain(20, 18), plain(20, 18)
    layer = layer_of(linear)
    assert set(layer.state_dict()) == {"weight", "bias"}
    expected = layer_of(other)
    for assign in (False, True):
        again = layer_of(copy.deepcopy(linear))
        again.load_state_dict(other.state_dict(), assign=assign)
        assert torch.equal(again.weight_fp8.view(torch.uint8), expected.weight_fp8.view(torch.uint8))
        assert torch.equal(again.weight_scale, expected.weight_scale)
    back = plain(20, 18)
    back.load_state_dict(layer.state_dict())
    assert torch.equal(back.weight, linear.weight)


def test_state_dict_without_weights():
    linear, other = plain(20, 18), plain(20, 18)
    layer = layer_of(linear, keep_weight=False)
    assert set(layer.state_dict()) == {"bias", "weight_fp8", "weight_scale"}
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    again = layer_of(other, keep_weight=False)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    x = torch.randn(5, 20, dtype=torch.bfloat16)
    assert torch.equal(again(x), layer(x))
    state = other.state_dict()
    again.load_state_dict(state)
    assert "weight" in state
    assert torch.equal(again(x), layer_of(other)(x))
    with pytest.raises(ValueError, match="was not kept"):
        layer.to_linear()


def test_weightless_layers_have_no_critical_rows():
    with pytest.raises(ValueError, match="critical_fraction=0"):
        layer_of(plain(16, 16), 0.1, keep_weight=False)


@pytest.mark.parametrize("keep", [True, False])
def test_casting_leaves_codes_alone(keep):
    layer = layer_of(plain(20, 18), keep_weight=keep)
    codes, scale = layer.weight_fp8.clone(), layer.weight_scale.clone()
    layer.half()
    assert (layer.weight_fp8.dtype, layer.weight_scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert torch.equal(layer.weight_fp8.view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(layer.weight_scale, scale)
    assert layer(torch.randn(3, 20, dtype=torch.float16)).dtype == torch.float16
    assert layer.to("meta").weight_fp8.is_meta


def test_deepcopy_is_independent():
    layer = layer_of(plain(20, 18))
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 20, dtype=torch.bfloat16)
    before = layer(x)
    assert torch.equal(twin(x), before)
    twin.weight.zero_()
    assert torch.equal(twin(x), twin.bias.expand(3, -1))
    assert torch.equal(layer(x), before)


def test_changed_weights_are_noticed():
    linear = plain(20, 18)
    layer = layer_of(linear)
    x = torch.randn(3, 20, dtype=torch.bfloat16)
    layer.weight.mul_(2)
    assert torch.equal(layer(x), layer_of(linear)(x))
    layer.weight = nn.Parameter(torch.ones(18, 20, dtype=torch.bfloat16), requires_grad=False)
    torch.testing.assert_close(layer(x), layer.to_linear()(x), rtol=0.1, atol=0.2)
    layer.weight.data.zero_()
    layer.requantize()
    assert torch.equal(layer(x), linear.bias.expand(3, -1))


@pytest.mark.parametrize("keep", [True, False])
def test_scaled_mm_layers_multiply_in_16_bits_elsewhere(keep):
    linear = plain(20, 18)
    layer = layer_of(linear, backend="scaled_mm", keep_weight=keep)
    x = torch.randn(3, 20, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="FP8 products need CUDA"):
        y = layer(x)
    codes_alone = dequantize(quantize_weight(linear.weight, "rows"))[:18, :20].bfloat16()
    weight = linear.weight if keep else codes_alone
    assert torch.equal(y, functional.linear(x, weight, linear.bias))
    layer(x)  # Warnings are errors here: it is said once.


def test_compiles_without_graph_breaks():
    model = nn.Sequential(layer_of(plain(24, 33), 0.1), nn.ReLU(), layer_of(plain(33, 16, bias=False), 0.1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for num_rows in (40, 7, 1):
            x = torch.randn(2, num_rows, 24, dtype=torch.bfloat16)
            torch.testing.assert_close(compiled(x), model(x))


def test_bias_of_another_precision_is_added_in_it():
    linear = plain(32, 16, torch.float32)
    linear.bias.fill_(1 + 2**-12)
    y = layer_of(linear)(torch.zeros(2, 32))
    assert torch.equal(y, linear.bias.expand(2, -1))


@pytest.mark.gpu
@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), [*SHAPES, (300, 576, 1536)])
def test_cuda_equals_the_emulation(num_rows, num_in, num_out):
    from stratakv.fp8 import detect

    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    capability = detect("cuda")
    if not capability.scaled_mm:
        pytest.skip(capability.reason)
    for dtype in DTYPES:
        linear = plain(num_in, num_out, dtype).cuda()
        x = torch.randn(num_rows, num_in, dtype=dtype, device="cuda")
        actual = layer_of(linear, 0.1, backend="scaled_mm")(x)
        expected = layer_of(linear, 0.1)(x)
        torch.testing.assert_close(actual, expected, rtol=2**-6, atol=1e-2)
