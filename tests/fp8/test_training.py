"""Training in FP8: products and gradients against float64, and what a converted model is to others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stratakv import fp8
from stratakv.fp8.training import Fp8TrainingLinear

from .test_linear import sqnr_db

SHAPES = [(40, 130, 200), (7, 16, 33), (64, 48, 16), (1, 128, 128)]


def layer_of(num_in, num_out, *, bias=True, dtype=torch.float32, **options):
    model = nn.Sequential(nn.Linear(num_in, num_out, bias=bias, dtype=dtype))
    fp8.convert_for_training(model, **{"backend": "emulate", "min_features": 1, **options})
    return model[0]


def gradients(layer, x, grad):
    """Output, gradient of the input, and those of the parameters."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("weight_gradient", ["high", "fp8"])
@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), SHAPES)
def test_product_and_gradients_are_near_those_of_float64(num_rows, num_in, num_out, weight_gradient):
    torch.manual_seed(0)
    layer = layer_of(num_in, num_out, weight_gradient=weight_gradient)
    plain = nn.Linear(num_in, num_out, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x, grad = torch.randn(num_rows, num_in), torch.randn(num_rows, num_out)
    # Tokens and features of other sizes: each has a scale of its own.
    x *= torch.logspace(-2, 2, num_rows)[:, None]
    found = gradients(layer, x, grad)
    for actual, expected in zip(found, gradients(plain, x.double(), grad.double()), strict=True):
        assert actual.dtype == torch.float32
        assert sqnr_db(actual, expected) >= 27
    if weight_gradient == "high":
        torch.testing.assert_close(found[2], grad.t() @ x)


def test_the_hardware_product_is_the_emulated_one():
    torch.manual_seed(1)
    emulated = layer_of(32, 48)
    scaled = copy.deepcopy(emulated)
    scaled.backend = "scaled_mm"  # which torch emulates on a CPU
    x, grad = torch.randn(5, 32), torch.randn(5, 48)
    for actual, expected in zip(gradients(scaled, x, grad), gradients(emulated, x, grad), strict=True):
        torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 32), (32,), (0, 32)])
def test_any_shape_of_input(shape):
    layer = layer_of(32, 48, bias=False)
    found = gradients(layer, torch.randn(shape), torch.randn(*shape[:-1], 48))
    assert found[0].shape == (*shape[:-1], 48)
    assert found[1].shape == shape
    assert found[2].shape == (48, 32)


def test_under_autocast_and_in_16_bits():
    layer = layer_of(32, 48)
    x = torch.randn(6, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    half = layer_of(32, 48, dtype=torch.bfloat16)
    found = gradients(half, x.bfloat16(), torch.randn(6, 48, dtype=torch.bfloat16))
    assert {one.dtype for one in found} == {torch.bfloat16}


def test_a_converted_model_is_the_plain_one_to_others():
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 2), nn.Linear(128, 128).double())
    before, parameters = copy.deepcopy(model), list(model.parameters())
    report = fp8.convert_for_training(model, backend="emulate")
    assert report.converted == ("0",)
    assert report.kept == {"2": "fewer than 128 features", "3": "of torch.float64"}
    assert (report.backend, report.bytes_before) == ("emulate", report.bytes_after)
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert "backend=emulate, scales=rows, weight_gradient=high" in repr(model[0])
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="revert"):
        fp8.convert(model, backend="emulate")
    assert fp8.revert(model) == 1
    assert type(model[0]) is nn.Linear
    assert not any(isinstance(module, Fp8TrainingLinear) for module in model.modules())
    x = torch.randn(4, 128)
    assert torch.equal(model[0](x), before[0](x))


def test_what_is_refused_and_what_stays():
    model = nn.Sequential(nn.Linear(128, 128))
    with pytest.raises(ValueError, match="weight_gradient must be one of high, fp8"):
        fp8.convert_for_training(model, weight_gradient="bf16")
    with pytest.raises(ValueError, match="backend must be one of"):
        fp8.convert_for_training(model, backend="cuda")
    with pytest.raises(ValueError, match="not possible here"):
        fp8.convert_for_training(model, backend="scaled_mm")
    with pytest.warns(UserWarning, match="no FP8 products here"):
        report = fp8.convert_for_training(model)
    assert report.backend == "keep"
    assert type(model[0]) is nn.Linear
