"""Attached models: every way of generating gives the unattached model's tokens; the rest is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import stratakv
from stratakv import TieredCache
from stratakv.errors import SettingsMismatchError
from stratakv.hf import UnsupportedModelError
from stratakv.hf.compat import cache_kwargs
from tests.hf.test_contract import MODES, _run
from tests.hf.tiny_models import RECURRENT, build, padded_prompt, prompt

pytestmark = pytest.mark.hf

ROOT = Path(__file__).parents[2]
ATTACHABLE = [
    "llama",
    "llama_scaled",
    "qwen2",
    "qwen3",
    "mistral_sliding",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "phi",
    "cohere",
    "cohere2",
    "glm",
    "qwen3_next",
]
REFUSED = {
    "gpt2": "no rotary embedding",
    "gptj": "no rotary embedding",
    "bloom": "no rotary embedding",
    "llama_dynamic": "'dynamic' rotary embeddings, whose frequencies change with the length",
    "phi3_longrope": "'longrope' rotary embeddings, whose frequencies change with the length",
    "smollm3": "full-attention layers have different positions",
    "gpt_oss": "attention sinks",
    "deepseek_v3": "how DeepseekV3Attention applies positions is not known",
    "qwen2_vl": "multimodal positions",
    "t5": "encoder-decoder",
}


@pytest.fixture
def tiers(tmp_path):
    """Arguments of a cache whose pages cannot all stay in RAM: a page takes 4 KiB of it at least."""
    return {"path": tmp_path, "ram": "96KiB", "page_tokens": 4}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ATTACHABLE)
def test_tokens_equal_the_unattached_model(name, mode, tiers):
    model = build(name)
    if name in RECURRENT and mode in ("prompt_lookup", "assisted"):
        pytest.skip("transformers itself cannot roll back a recurrence")
    inputs = {"input_ids": prompt(30)}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    with stratakv.attach(model), TieredCache.open(model, **tiers) as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


@pytest.mark.parametrize("mode", ["greedy", "beam", "chunked_prefill"])
@pytest.mark.parametrize("name", ATTACHABLE)
def test_left_padded_batch(name, mode, tiers):
    model = build(name)
    inputs = padded_prompt()
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    with stratakv.attach(model), TieredCache.open(model, **tiers | {"ram": "256KiB"}) as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


@pytest.mark.parametrize("name", ATTACHABLE)
def test_continuation_over_turns_and_deep_copies(name, tiers):
    model = build(name)
    caches = [DynamicCache(config=model.config)]
    rows = [prompt(18), prompt(18)]

    def everything(ids):
        # Generated ids may be the pad token's, which generate would take for padding.
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def turns(which, cache):
        for turn in range(3):
            ids = torch.cat([rows[which], prompt(5, seed=turn + 1)], 1)
            rows[which] = _run(model, everything(ids), cache, max_new_tokens=8)
        copies = (copy.deepcopy(cache) for _ in range(2))
        ids = torch.cat([rows[which], prompt(3, seed=9)], 1)
        return [_run(model, everything(ids), twin, max_new_tokens=6) for twin in copies]

    expected = turns(0, caches[0])
    with stratakv.attach(model), TieredCache.open(model, **tiers) as cache:
        actual = turns(1, cache)
    assert torch.equal(rows[1], rows[0])
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("name", ["llama_scaled", "cohere", "gemma3", "phi"])
def test_a_session_resumes_in_another_process(name, tiers):
    model = build(name)
    expected = _run(model, {"input_ids": prompt(30)}, DynamicCache(config=model.config))
    with stratakv.attach(model), TieredCache.open(model, name="doc", **tiers) as cache:
        _run(model, {"input_ids": prompt(30)}, cache, max_new_tokens=9)
        cache.save()
    code = f"""
        import stratakv
        from stratakv.hf.compat import cache_kwargs
        from tests.hf.tiny_models import build, prompt
        model = build({name!r})
        with stratakv.attach(model):
            cache = stratakv.TieredCache.open(model, {str(tiers["path"])!r}, name="doc", ram="96KiB")
            held = cache.get_seq_length()
            assert held >= 37, held
            ids = __import__("torch").tensor([{expected[0, :39].tolist()}])
            print(model.generate(ids, **cache_kwargs(cache), max_new_tokens=15, do_sample=False)[0].tolist())
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(expected[0].tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "cohere", "gpt_neox"])
def test_sixteen_bits(name, dtype, tiers):
    """Pages keep keys rounded once, after a turn in float32: as near to float32 as the model itself."""
    exact = build(name)
    model = copy.deepcopy(exact).to(dtype)
    ids = prompt(60)
    with torch.no_grad():
        wanted = exact(ids).logits[:, -1]
        plain = DynamicCache(config=model.config)
        model(ids[:, :-1], **cache_kwargs(plain))
        expected = model(ids[:, -1:], **cache_kwargs(plain)).logits[:, -1]
        with stratakv.attach(model), TieredCache.open(model, **tiers) as cache:
            model(ids[:, :-1], **cache_kwargs(cache))
            actual = model(ids[:, -1:], **cache_kwargs(cache)).logits[:, -1]
    error = (actual - wanted).norm() / wanted.norm()
    assert error <= 2 * (expected - wanted).norm() / wanted.norm() + 1e-3


@pytest.mark.parametrize("name", ATTACHABLE)
def test_without_a_cache_nothing_changes_and_detaching_restores_all(name):
    model = build(name)
    ids, positions = prompt(25, rows=2), torch.arange(25).repeat(2, 1) + 3
    hooks = _hooks(model)
    implementation = model.config._attn_implementation
    with torch.no_grad():
        expected = model(ids, position_ids=positions).logits
        handle = stratakv.attach(model)
        output = model(ids, position_ids=positions)
        handle.detach()
        handle.detach()
        torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
        assert getattr(output, "past_key_values", None) is None
        assert torch.equal(model(ids, position_ids=positions).logits, expected)
    assert (_hooks(model), model.config._attn_implementation) == (hooks, implementation)


def _hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_packed_sequences_without_a_cache_have_their_own_positions():
    model = build("llama")
    ids = prompt(20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    with torch.no_grad():
        expected = model(ids, position_ids=positions, use_cache=False).logits
        with stratakv.attach(model):
            assert torch.equal(model(ids, position_ids=positions, use_cache=False).logits, expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_reproduced_is_refused_and_left_as_it_was(name):
    model = build(name)
    hooks, implementation = _hooks(model), model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]) as caught:
        stratakv.attach(model)
    assert isinstance(caught.value, ValueError)
    assert "exact mode" in str(caught.value)
    assert (_hooks(model), model.config._attn_implementation) == (hooks, implementation)
    assert not any(module.training for module in model.modules())


def test_an_attention_that_does_more_is_refused():
    model = copy.deepcopy(build("llama"))
    original = model.model.layers[1].self_attn.forward

    def louder(*args, **kwargs):
        loud = 1.5 if model.config._attn_implementation == "sdpa" else 1.0
        output, weights = original(*args, **kwargs)
        return output * loud, weights

    model.model.layers[1].self_attn.forward = louder
    with pytest.raises(UnsupportedModelError, match="not reproduced"):
        stratakv.attach(model)


def test_gradients_and_training_without_a_cache():
    model = copy.deepcopy(build("llama")).train()
    with stratakv.attach(model):
        assert model.training
        model(prompt(9), labels=prompt(9)).loss.backward()
        attached = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    model.zero_grad()
    model(prompt(9), labels=prompt(9)).loss.backward()
    torch.testing.assert_close(attached, model.model.layers[0].self_attn.k_proj.weight.grad)


def test_exceptions_detach():
    model = build("llama")
    hooks = _hooks(model)
    with pytest.raises(KeyError), stratakv.attach(model):
        raise KeyError
    assert (_hooks(model), model.config._attn_implementation) == (hooks, "sdpa")


def test_attaching_twice_copying_and_pickling_are_errors():
    model = build("llama")
    with stratakv.attach(model) as attachment:
        with pytest.raises(RuntimeError, match="attached already"):
            stratakv.attach(model)
        with pytest.raises(RuntimeError, match="attached already"):
            stratakv.attach(model.model)
        with pytest.raises(RuntimeError, match="detach it first"):
            copy.deepcopy(model)
        with pytest.raises(TypeError, match="detach it first"):
            pickle.dumps(model)
        assert "attached to LlamaForCausalLM" in repr(attachment)
    with stratakv.attach(model.model):
        pass


def test_other_models_are_not_changed(tiers):
    one, other = build("llama"), build("llama", seed=1)
    expected = _run(other, {"input_ids": prompt(12)}, DynamicCache(config=other.config))
    with stratakv.attach(one):
        assert torch.equal(
            _run(other, {"input_ids": prompt(12)}, DynamicCache(config=other.config)), expected
        )
        assert other.config._attn_implementation == "sdpa"
        with TieredCache.open(one, **tiers) as cache, pytest.raises(RuntimeError, match="with another one"):
            other(prompt(5), **cache_kwargs(cache))
        wrong = pytest.raises(ValueError, match="another attached model")
        with stratakv.attach(other), TieredCache.open(one, None) as cache, wrong:
            other(prompt(5), **cache_kwargs(cache))


def test_caches_made_otherwise_are_refused_with_what_to_do(tiers):
    model = build("llama")
    with TieredCache.open(model, **tiers) as before:
        model(prompt(6), **cache_kwargs(before))
        with stratakv.attach(model):
            plain = [DynamicCache(config=model.config), TieredCache(model.config), before]
            for cache in plain:
                with pytest.raises(ValueError, match=r"TieredCache\.open\(model"):
                    model(prompt(3), **cache_kwargs(cache))
            with pytest.raises(ValueError, match="have no positions"):
                model.generate(prompt(3), max_new_tokens=2)
    with stratakv.attach(model):
        cache = TieredCache.open(model, None, page_tokens=4)
        model(prompt(6), **cache_kwargs(cache))
    with pytest.raises(RuntimeError, match="inside `with stratakv.attach"):
        model(prompt(3), **cache_kwargs(cache))
    with pytest.raises(RuntimeError, match="have no positions"):
        cache.layers[0].keys.clone()
    # Attached again, in the same way, the model goes on with it.
    with stratakv.attach(model):
        model(prompt(3), **cache_kwargs(cache))
    assert cache.get_seq_length() == 9
    cache.close()


def test_sessions_of_the_other_kind_are_refused_by_name(tiers):
    model = build("llama")
    with stratakv.attach(model), TieredCache.open(model, name="paged", **tiers) as cache:
        _run(model, {"input_ids": prompt(9)}, cache)
        cache.save()
    with pytest.raises(SettingsMismatchError, match=r'key_rotation: session has "page"'):
        TieredCache.open(model, tiers["path"], name="paged")
    with TieredCache.open(model, name="plain", **tiers) as cache:
        _run(model, {"input_ids": prompt(9)}, cache)
        assert cache.match(prompt(9)) == 8
        cache.save()
    with stratakv.attach(model):
        with pytest.raises(SettingsMismatchError, match=r'this cache has "page".*rotary_dims'):
            TieredCache.open(model, tiers["path"], name="plain")
        with TieredCache.open(model, **tiers) as cache:
            assert cache.match(prompt(9)) == 8
            model(prompt(9)[:, 8:], **cache_kwargs(cache))


@pytest.mark.parametrize(
    "positions",
    [
        torch.tensor([[0, 1, 2, 0, 1]]),
        torch.tensor([[0, 1, 3, 4, 5]]),
        torch.arange(5)[None] + 1,
        torch.arange(5).expand(3, 1, 5),
    ],
)
def test_positions_that_pages_do_not_have_are_refused(positions, tiers):
    model = build("llama")
    with stratakv.attach(model), TieredCache.open(model, **tiers) as cache:
        with pytest.raises(ValueError, match=r"position_ids.*attached"):
            model(prompt(5), position_ids=positions, **cache_kwargs(cache))
        assert cache.get_seq_length() == 0
        model(prompt(5), **cache_kwargs(cache))
        with pytest.raises(ValueError, match="after 5 tokens"):
            model(prompt(1), position_ids=torch.tensor([[9]]), **cache_kwargs(cache))


def test_padding_inside_a_row_is_refused(tiers):
    model = build("llama")
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    refused = pytest.raises(ValueError, match="padding on the left")
    with stratakv.attach(model), TieredCache.open(model, **tiers) as cache, refused:
        positions = mask.cumsum(-1) - 1
        model(prompt(5), attention_mask=mask, position_ids=positions, **cache_kwargs(cache))


def test_moving_the_model_and_wrapped_forwards_change_nothing(tiers):
    hooks = pytest.importorskip("accelerate.hooks")
    model = copy.deepcopy(build("llama"))
    expected = _run(model, {"input_ids": prompt(20)}, DynamicCache(config=model.config))
    for module in model.modules():
        if not list(module.children()):
            hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device="cpu"))
    with stratakv.attach(model), TieredCache.open(model, **tiers) as cache:
        model.to("cpu")
        assert torch.equal(_run(model, {"input_ids": prompt(20)}, cache), expected)


def test_an_attached_model_is_freed():
    import gc
    import weakref

    model = copy.deepcopy(build("llama"))
    handle = stratakv.attach(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    handle.detach()
    assert "gone" in repr(handle)
