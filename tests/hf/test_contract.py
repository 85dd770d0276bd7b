"""The drop-in contract: every way of generating gives DynamicCache's tokens, while pages spill to disk."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from stratakv import TieredCache
from stratakv.attention import PagedTensor
from stratakv.hf.compat import cache_kwargs
from tests.hf.tiny_models import DECODERS, ENCODER_DECODERS, RECURRENT, build, padded_prompt, prompt

pytestmark = pytest.mark.hf

NEW_TOKENS = 24

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beam": {"num_beams": 4},
    "beam_returning_several": {"num_beams": 4, "num_return_sequences": 3},
    "returning_several": {"do_sample": True, "num_return_sequences": 3},
    "chunked_prefill": {"prefill_chunk_size": 5},
    "prompt_lookup": {"prompt_lookup_num_tokens": 4},
    "assisted": {"assistant": True},
}


@pytest.fixture
def tiers(tmp_path):
    """Arguments of a cache whose pages cannot all stay in RAM: a page takes 4 KiB of it at least."""
    return {"disk": tmp_path, "ram": "96KiB", "page_tokens": 4}


def _run(model, inputs, cache, **mode):
    mode = {"do_sample": False, "max_new_tokens": NEW_TOKENS} | mode
    if mode.pop("assistant", False):
        assistant = build("llama", seed=1)
        mode["assistant_model"] = assistant
    torch.manual_seed(7)
    return model.generate(**inputs, **cache_kwargs(cache), **mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_equal_dynamic_cache(name, mode, tiers):
    model = build(name)
    if name in RECURRENT and mode in ("prompt_lookup", "assisted"):
        pytest.skip("transformers itself cannot roll back a recurrence")
    inputs = {"input_ids": prompt(30)}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    with TieredCache(model.config, **tiers) as cache:
        actual = _run(model, inputs, cache, **MODES[mode])
        assert torch.equal(actual, expected)
        assert cache.get_seq_length() >= 30


@pytest.mark.parametrize("mode", ["greedy", "beam", "chunked_prefill"])
@pytest.mark.parametrize("name", DECODERS)
def test_left_padded_batch(name, mode, tiers):
    model = build(name)
    inputs = padded_prompt()
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    # Each of up to twelve rows has an open page in each layer.
    with TieredCache(model.config, **tiers | {"ram": "256KiB"}) as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_continuation_over_turns(name, tiers):
    model = build(name)
    expected_cache, cache = DynamicCache(config=model.config), TieredCache(model.config, **tiers)
    expected = actual = prompt(18)
    for turn in range(3):
        extra = prompt(5, seed=turn + 1)
        expected = _run(
            model, {"input_ids": torch.cat([expected, extra], 1)}, expected_cache, max_new_tokens=8
        )
        actual = _run(model, {"input_ids": torch.cat([actual, extra], 1)}, cache, max_new_tokens=8)
        assert torch.equal(actual, expected)
    cache.close()


@pytest.mark.parametrize("name", DECODERS)
def test_deepcopy_forks(name, tiers):
    """The documented way of reusing a prefix: copy the cache, generate, copy again."""
    model = build(name)
    prefix = prompt(17)
    originals = [DynamicCache(config=model.config), TieredCache(model.config, **tiers)]
    with torch.no_grad():
        for cache in originals:
            model(prefix, **cache_kwargs(cache))
    for seed in (1, 2):
        inputs = {"input_ids": torch.cat([prefix, prompt(4, seed=seed)], 1)}
        expected, actual = (_run(model, inputs, copy.deepcopy(cache)) for cache in originals)
        assert torch.equal(actual, expected)
    assert originals[1].get_seq_length() == 17
    originals[1].close()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_attention_kinds(name, attention, tiers):
    model = build(name, attention=attention)
    inputs = {"input_ids": prompt(21)}
    expected = _run(model, inputs, DynamicCache(config=model.config))
    with TieredCache(model.config, **tiers) as cache:
        assert torch.equal(_run(model, inputs, cache), expected)
    build.cache_clear()


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beam"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder(name, cross, mode, tiers):
    model = build(name)
    ids = prompt(15, rows=2)
    mask = torch.ones_like(ids)
    mask[0, 11:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    config = model.config

    expected = _run(model, inputs, EncoderDecoderCache(DynamicCache(), DynamicCache()), **MODES[mode])
    tiers["ram"] = "256KiB"
    with TieredCache(config, **tiers) as own, TieredCache(config, **tiers) as other:
        cache = EncoderDecoderCache(own, other if cross else DynamicCache())
        assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


def test_encoder_decoder_batch_operations(tiers):
    model = build("bart")
    ids = prompt(9, rows=2)
    decoder_ids = prompt(6, rows=2, seed=1)
    with TieredCache(model.config, **tiers) as own, TieredCache(model.config, **tiers) as other:
        caches = [
            EncoderDecoderCache(DynamicCache(), DynamicCache()),
            EncoderDecoderCache(own, other),
        ]
        logits = []
        for cache in caches:
            with torch.no_grad():
                model(ids, decoder_input_ids=decoder_ids, **cache_kwargs(cache))
                cache.batch_repeat_interleave(2)
                cache.batch_select_indices(torch.tensor([3, 0]))
                cache.crop(-2)
                step = {"decoder_input_ids": decoder_ids[[1, 0]][:, :1], **cache_kwargs(cache)}
                logits.append(model(ids[[1, 0]], **step).logits)
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beam", "returning_several"])
def test_vision_language(mode, tiers):
    model = build("llava")
    ids = prompt(24)
    ids[0, 3:7] = 50
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    with TieredCache(model.config, **tiers) as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, tiers):
    model = copy.deepcopy(build("llama")).to(dtype)
    inputs = {"input_ids": prompt(30)}
    expected = _run(model, inputs, DynamicCache(config=model.config), max_new_tokens=12)
    with TieredCache(model.config, **tiers) as cache:
        assert torch.equal(_run(model, inputs, cache, max_new_tokens=12), expected)


def test_first_pass_is_bit_identical(tiers):
    model = build("llama")
    with TieredCache(model.config, **tiers) as cache, torch.no_grad():
        expected = model(prompt(40), **cache_kwargs(DynamicCache(config=model.config))).logits
        assert torch.equal(model(prompt(40), **cache_kwargs(cache)).logits, expected)


def test_chunk_with_small_past_is_bit_identical(tiers):
    """A chunk of many tokens over a past that fits the tile budget makes the very call the model made."""
    model = build("llama")
    with TieredCache(model.config, **tiers) as cache, torch.no_grad():
        plain = DynamicCache(config=model.config)
        for ids in prompt(120).split(60, dim=1):
            expected, actual = (model(ids, **cache_kwargs(c)).logits for c in (plain, cache))
        assert torch.equal(actual, expected)


def test_prefill_hands_back_what_it_was_given_then_pages(tiers):
    model = build("llama")
    keys, values = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    with TieredCache(model.config, **tiers) as cache:
        first = cache.update(keys, values, 0)
        assert first[0] is keys
        assert first[1] is values
        more = cache.update(keys, values, 0)
        assert all(isinstance(part, PagedTensor) for part in more)
        assert torch.equal(more[1].clone(), torch.cat([values, values], 2))


def test_the_first_layer_may_be_linear(tiers):
    model = build("qwen3_next")
    with TieredCache(model.config, **tiers) as cache:
        assert cache.is_linear == [True, False, True]
        assert cache.get_seq_length() == 0
        with torch.no_grad():
            model(prompt(6), **cache_kwargs(cache))
        assert cache.get_seq_length() == 6
        assert cache.get_mask_sizes(2, 1) == (8, 0)


def test_cache_is_what_transformers_expects(tiers):
    model = build("gemma3")
    with TieredCache(model.config, **tiers) as cache:
        assert isinstance(cache, DynamicCache)
        assert cache.is_sliding == [True, False, True]
        assert not cache.is_compileable
        assert cache.get_max_length(1) == -1
        assert cache.get_max_cache_shape(1) == -1
        assert [part is None for part in next(iter(cache))[:2]] == [True, True]
        assert len(cache) == 3


@pytest.mark.parametrize("remove", [0, -1, -7, -100])
def test_crop_matches_dynamic_cache(remove, tiers):
    model = build("llama")
    with TieredCache(model.config, **tiers) as cache, torch.no_grad():
        plain = DynamicCache(config=model.config)
        logits = []
        for each in (plain, cache):
            model(prompt(19), **cache_kwargs(each))
            each.crop(remove)
            if each.get_seq_length():
                logits.append(model(prompt(3, seed=1), **cache_kwargs(each)).logits)
        assert cache.get_seq_length() == plain.get_seq_length()
        if logits:
            torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_crop_refuses_what_the_contract_refuses(tiers):
    with TieredCache(build("llama").config, **tiers) as cache:
        with pytest.raises(ValueError, match="negative integer"):
            cache.crop(3)
        with pytest.raises(RuntimeError, match="call crop on the TieredCache"):
            cache.layers[0].crop(-1)


def test_full_window_refuses_to_step_back_before_pages_change(tiers):
    model = build("gemma3")
    with TieredCache(model.config, **tiers) as cache, torch.no_grad():
        model(prompt(20), **cache_kwargs(cache))
        with pytest.raises(RuntimeError, match="activate_past_recording"):
            cache.crop(-1)
        assert cache.get_seq_length(1) == 20


def test_reset_starts_over_with_another_batch(tiers):
    model = build("llama")
    with TieredCache(model.config, **tiers) as cache, torch.no_grad():
        model(prompt(9, rows=3), **cache_kwargs(cache))
        cache.reset()
        assert cache.get_seq_length() == 0
        inputs = {"input_ids": prompt(11, rows=2)}
        expected = _run(model, inputs, DynamicCache(config=model.config))
        assert torch.equal(_run(model, inputs, cache), expected)


def test_select_by_bool_and_index(tiers):
    model = build("llama")
    with TieredCache(model.config, **tiers) as cache, torch.no_grad():
        model(prompt(9, rows=3), **cache_kwargs(cache))
        before = cache.layers[0].keys.clone()
        cache.batch_select_indices(torch.tensor([True, False, True]))
        assert torch.equal(cache.layers[0].keys.clone(), before[[0, 2]])
        cache.batch_select_indices(torch.tensor([-1]))
        assert torch.equal(cache.layers[0].keys.clone(), before[[2]])


def test_backward_through_a_past_is_an_error_not_a_wrong_gradient(tiers):
    model = build("llama")
    with TieredCache(model.config, **tiers) as cache:
        model(prompt(9), **cache_kwargs(cache))
        loss = model(prompt(2, seed=1), **cache_kwargs(cache)).logits.sum()
        with pytest.raises(RuntimeError, match="pages hold no gradients"):
            loss.backward()
    model.zero_grad()


def test_unusable_dtype_is_named(tiers):
    with TieredCache(build("llama").config, **tiers) as cache:
        wide = torch.zeros(1, 2, 3, 8, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"float64.*float32, bfloat16, float16"):
            cache.update(wide, wide, 0)


def test_prompt_lookup_rolls_back_sliding_windows_too(tiers):
    model = build("gemma3")
    inputs = {"input_ids": prompt(6).repeat(1, 5)}
    expected = _run(model, inputs, DynamicCache(config=model.config), prompt_lookup_num_tokens=5)
    with TieredCache(model.config, **tiers) as cache:
        assert torch.equal(_run(model, inputs, cache, prompt_lookup_num_tokens=5), expected)
