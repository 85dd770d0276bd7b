"""The language model, alone and as a transformers model: state, generation, caches, attached decoding."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import stratakv
from stratakv.nn import HyperConnections, StrataLM, TransformerConfig, watch
from tests.nn.tiny import SIZES

TINY = SIZES | {"vocab_size": 61}
KINDS = {
    "mhc": {},
    "mhc-2": {"num_streams": 2},
    "permutations": {"mixing": "permutations"},
    "unconstrained": {"mixing": "unconstrained"},
    "one stream": {"num_streams": 1},
    "plain": {"num_streams": 1, "learnable_scale": False},
}


def tiny(kind="mhc", *, trained=True, **options):
    """A model whose parameters are all away from where they start."""
    model = StrataLM(TransformerConfig(**(TINY | KINDS[kind] | options)))
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiny_hf(kind="mhc", **options):
    from stratakv.hf import StrataForCausalLM

    return StrataForCausalLM.from_strata_lm(tiny(kind, **options), pad_token_id=0).eval()


def ids(batch, length, seed=0):
    return torch.randint(1, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", list(KINDS))
def test_starts_as_the_plain_model(kind):
    model, plain = tiny(kind, trained=False), tiny("plain", trained=False)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all("connection" in name or "stream_head" in name for name in unexpected)
    tokens = ids(2, 17)
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_learns(kind):
    model = tiny(kind, trained=False)
    tokens = ids(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model.loss(tokens).detach()
    assert abs(float(first) - 4.11) < 0.2  # log 61
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(tokens)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * float(first)


def test_gradients_of_the_kernels_equal_plain_pytorchs():
    fast, slow = tiny(hyper_backend="fused"), tiny(hyper_backend="reference")
    slow.load_state_dict(fast.state_dict())
    tokens = ids(2, 19)
    for model in (fast, slow):
        model.loss(tokens).backward()
    for (name, mine), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_recomputing_changes_nothing():
    model, tokens = tiny(), ids(2, 19)
    model.loss(tokens).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.loss(tokens, recompute="blocks").backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_is_causal():
    model = tiny()
    tokens = ids(1, 20)
    changed = tokens.clone()
    changed[0, 12:] = 5
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12])
    assert not torch.allclose(model(tokens)[:, 12:], model(changed)[:, 12:])


def test_what_is_refused():
    for options, message in [
        ({"num_heads": 3}, "multiple of num_kv_heads"),
        ({"num_kv_heads": 4, "hidden_size": 30, "head_dim": None}, "give head_dim"),
        ({"head_dim": 7}, "even"),
        ({"num_layers": 0}, "num_layers=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            TransformerConfig(**(TINY | options))
    with pytest.raises(ValueError, match="at least two tokens"):
        tiny().loss(ids(1, 1))


@pytest.mark.hf
@pytest.mark.parametrize("kind", list(KINDS))
def test_is_the_same_in_transformers(kind):
    from stratakv.hf import StrataForCausalLM

    model = tiny(kind).eval()
    twin = StrataForCausalLM.from_strata_lm(model).eval()
    assert twin.config.transformer() == model.config
    tokens = ids(2, 21)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
        loss = twin(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, model.loss(tokens), rtol=1e-5, atol=1e-5)
    model.load_state_dict(twin.state_dict())


@pytest.mark.hf
def test_made_from_a_config_starts_as_the_plain_model():
    from stratakv.hf import StrataConfig, StrataForCausalLM

    torch.manual_seed(1)
    model = StrataForCausalLM(StrataConfig.from_transformer(TransformerConfig(**TINY)))
    connections = [module for module in model.modules() if isinstance(module, HyperConnections)]
    assert len(connections) == 6
    for index, connection in enumerate(connections):
        expected = HyperConnections(32, num_streams=4, layer_index=index)
        for mine, theirs in zip(connection.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert abs(float(model.model.layers[0].mlp.down_proj.weight.detach().std()) - 0.02 / 6**0.5) < 1e-3
    assert abs(float(model.model.layers[0].mlp.up_proj.weight.detach().std()) - 0.02) < 2e-3


@pytest.mark.hf
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_in_a_fresh_process(tmp_path, dtype):
    model = tiny_hf().to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if "connection" in name or "stream_head" in name:
            parameter.data = parameter.data.float()
    model.save_pretrained(tmp_path)
    tokens = ids(1, 9)
    with torch.no_grad():
        expected = model(tokens).logits
    code = (
        "import sys, torch, stratakv.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, dtype=torch.{dtype}).eval()\n"
        f"with torch.no_grad(): logits = model(torch.tensor({tokens.tolist()})).logits\n"
        "kinds = {p.dtype for n, p in model.named_parameters() if 'connection' in n or 'stream_head' in n}\n"
        "assert kinds == {torch.float32}, kinds\n"
        f"torch.save(logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def generated(model, tokens, **options):
    with torch.no_grad():
        return model.generate(tokens, max_new_tokens=24, min_new_tokens=24, do_sample=False, **options)


@pytest.mark.hf
@pytest.mark.parametrize("kind", list(KINDS))
def test_greedy_generation_equals_dynamic_cache(kind, tmp_path):
    from transformers import DynamicCache

    from stratakv.hf.library import cache_kwargs

    model, tokens = tiny_hf(kind), ids(2, 37)
    expected = generated(model, tokens, **cache_kwargs(DynamicCache(config=model.config)))
    without = tokens
    for _ in range(6):
        with torch.no_grad():
            nearest = model(without, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        without = torch.cat([without, nearest], -1)
    assert torch.equal(without, expected[:, : without.shape[1]])
    with stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path / "pages", page_tokens=16) as cache:
        assert torch.equal(generated(model, tokens, **cache_kwargs(cache)), expected)


@pytest.mark.hf
def test_padded_batches_equal_single_rows():
    model = tiny_hf()
    long, short = ids(1, 20, seed=1), ids(1, 13, seed=2)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 7, dtype=torch.long), short], -1)])
    mask = (padded != 0).long()
    both = generated(model, padded, attention_mask=mask)
    assert torch.equal(both[0], generated(model, long)[0])
    assert torch.equal(both[1, 7:], generated(model, short)[0])


@pytest.mark.hf
def test_attached_and_sparse(tmp_path):
    """Positions come from pages: all of them give the tokens of a dense model, some of them still decode."""
    from transformers import DynamicCache

    from stratakv.hf.library import cache_kwargs

    model, tokens = tiny_hf(max_positions=512), ids(1, 150)
    expected = generated(model, tokens, **cache_kwargs(DynamicCache(config=model.config)))
    with stratakv.attach(model):
        with stratakv.TieredCache.open(model, tmp_path / "dense", name="a", page_tokens=16) as cache:
            assert torch.equal(generated(model, tokens, **cache_kwargs(cache)), expected)
            cache.save()
        with stratakv.TieredCache.open(model, tmp_path / "dense", name="a", page_tokens=16) as cache:
            assert cache.get_seq_length() > 150
        selection = stratakv.Selection(budget=64, sinks=16, window=16, dense_below=64, unread=1.0)
        with stratakv.TieredCache.open(
            model, tmp_path / "sparse", name="b", page_tokens=16, budget=selection
        ) as cache:
            out = generated(model, tokens, **cache_kwargs(cache))
            assert out.shape == expected.shape
            assert cache.stats()["cache"]["read_tokens"] <= 64
    assert torch.equal(generated(model, tokens), expected)


@pytest.mark.hf
def test_hyper_connections_are_watched_in_generation():
    model = tiny_hf()
    with torch.no_grad(), watch(model) as seen:
        model(ids(1, 12))
    assert len(seen.names) == 6
    assert seen.gains().largest < 1.5
