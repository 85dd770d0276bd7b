"""Decoding that reads a part of the context, on attached models."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import stratakv
from stratakv import Selection, TieredCache
from stratakv.errors import SettingsMismatchError
from stratakv.hf.compat import cache_kwargs
from tests.hf.test_contract import MODES, _run
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

# Eleven blocks of 16: a sink, a window of two, and the best.
SMALL = Selection(budget=176, sinks=16, window=32, dense_below=0, unread=1.0)
EVERYTHING = Selection(budget=1 << 16, sinks=16, window=32, dense_below=0, critical_fraction=1.0)


def open_cache(model, budget, path=None, **options):
    return TieredCache.open(model, path, ram="8MiB", page_tokens=16, budget=budget, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox", "cohere"])
def test_a_budget_of_everything_gives_the_dense_tokens(name, mode):
    model = build(name)
    inputs = {"input_ids": prompt(70)}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    with stratakv.attach(model), open_cache(model, EVERYTHING, precision="full") as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_small_budget_serves_every_mode(mode):
    model = build("llama")
    inputs = {"input_ids": prompt(400)}
    with stratakv.attach(model), open_cache(model, SMALL) as cache:
        output = _run(model, inputs, cache, **MODES[mode])
        assert output.shape[1] > 400
        held = cache.stats()["cache"]
        assert held["read_tokens"] <= SMALL.budget + 16
        assert 0.0 <= held["unread_share"] <= 1.0


@pytest.mark.parametrize("mode", ["prompt_lookup", "assisted"])
def test_guessed_tokens_are_checked_as_if_they_came_one_by_one(mode):
    model = build("llama")
    inputs = {"input_ids": prompt(400)}
    with stratakv.attach(model):
        with open_cache(model, SMALL, precision="full") as cache:
            expected = _run(model, inputs, cache, **MODES["greedy"])
        with open_cache(model, SMALL, precision="full") as cache:
            assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)


@pytest.mark.parametrize("budget", [256, 512, 2048])
def test_what_is_read_past_the_trained_window_fits_it(budget):
    """Tiny models are trained on 512 tokens: they know no number beyond."""
    model = build("llama")
    with stratakv.attach(model), open_cache(model, Selection(budget=budget, unread=0.0)) as cache:
        assert cache.reads_all_of(512)
        last_logits(model, prompt(704)[:, :-1], cache)
        last_logits(model, prompt(704)[:, -1:], cache)
        assert not cache.reads_all_of(704)
        assert cache.stats()["cache"]["read_tokens"] == 512
        cache.select(None)
        assert cache.reads_all_of(704)


def test_padded_rows_are_masked_as_ever():
    model = build("llama")
    ids = prompt(60, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES["greedy"])
    with stratakv.attach(model), open_cache(model, EVERYTHING, precision="full") as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES["greedy"]), expected)


def last_logits(model, ids, cache):
    with torch.inference_mode():
        return model(input_ids=ids, **cache_kwargs(cache), use_cache=True).logits[:, -1].double()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox", "cohere"])
def test_mixed_precision_is_near_and_nearer_with_more_in_16_bits(name):
    model = build(name)
    ids = prompt(200, rows=2)
    with stratakv.attach(model):
        with open_cache(model, None) as cache:
            last_logits(model, ids[:, :-1], cache)
            expected = last_logits(model, ids[:, -1:], cache)
        errors = []
        for fraction in (0.0, 1.0):
            budget = Selection(budget=1 << 16, dense_below=0, critical_fraction=fraction)
            with open_cache(model, budget) as cache:
                last_logits(model, ids[:, :-1], cache)
                errors.append((last_logits(model, ids[:, -1:], cache) - expected).abs().max())
    assert errors[1] < errors[0] < 0.1 * expected.abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision_serves_every_mode(mode):
    model = build("llama")
    inputs = {"input_ids": prompt(70)}
    with stratakv.attach(model), open_cache(model, None, precision="mixed") as cache:
        assert _run(model, inputs, cache, **MODES[mode]).shape[1] > 70


def test_a_session_keeps_its_precision(tmp_path):
    model = build("llama")
    with stratakv.attach(model):
        for precision, budget in (("full", SMALL), ("mixed", None)):
            with open_cache(model, budget, tmp_path, name=precision, precision=precision) as cache:
                last_logits(model, prompt(100), cache)
                cache.save()
            # What a budget would choose for a new session does not matter.
            with open_cache(model, SMALL, tmp_path, name=precision) as cache:
                assert cache.get_seq_length() == 99
        with pytest.raises(SettingsMismatchError, match="planes"):
            open_cache(model, SMALL, tmp_path, name="full", precision="mixed")
        with pytest.raises(ValueError, match="'full', 'mixed'"):
            open_cache(model, SMALL, precision="fp8")
    with pytest.raises(ValueError, match=r"stratakv\.attach"):
        open_cache(model, None, precision="mixed")


def test_a_resumed_session_goes_on_with_the_same_tokens(tmp_path):
    model = build("llama")

    def generate(ids, cache, count):
        # A generated token may be the pad token, which generate would otherwise take for padding.
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return _run(model, inputs, cache, max_new_tokens=count)

    with stratakv.attach(model):
        with open_cache(model, SMALL, tmp_path, name="s") as cache:
            part = generate(prompt(300), cache, 5)
            cache.save()
            cache.crop(-1)  # as a resumed session does: tokens of one step choose their blocks together
            expected = generate(part, cache, 7)
        with open_cache(model, SMALL, tmp_path, name="s") as cache:
            assert torch.equal(generate(part, cache, 7), expected)


def test_changing_the_budget_of_a_live_cache():
    model = build("llama")
    ids = prompt(300)
    with stratakv.attach(model), open_cache(model, None) as cache, torch.inference_mode():
        model(ids, **cache_kwargs(cache))
        assert "read_tokens" not in cache.stats()["cache"]
        cache.select(SMALL)
        model(ids[:, :1], **cache_kwargs(cache))
        assert cache.stats()["cache"]["read_tokens"] < 200
        fork = cache.fork()
        cache.select(None)
        model(ids[:, :1], **cache_kwargs(cache))
        assert "read_tokens" not in cache.stats()["cache"]
        model(ids[:, :1], **cache_kwargs(fork))
        assert fork.stats()["cache"]["read_tokens"] < 200
        fork.close()


def test_short_contexts_are_read_whole():
    model = build("llama")
    ids = prompt(300)
    budget = Selection(budget=176, sinks=16, window=32, unread=1.0)  # dense up to 352 tokens
    with stratakv.attach(model), open_cache(model, budget) as cache, torch.inference_mode():
        model(ids, **cache_kwargs(cache))
        model(ids[:, :1], **cache_kwargs(cache))
        assert cache.stats()["cache"]["read_tokens"] is None
        model(ids[:, :60], **cache_kwargs(cache))
        model(ids[:, :1], **cache_kwargs(cache))
        assert cache.stats()["cache"]["read_tokens"] < 200


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "cohere"])
def test_a_prefill_of_everything_gives_the_dense_logits(name):
    model = build(name)
    ids = prompt(400)
    logits = []
    for below in (0, None):
        budget = Selection(budget=1 << 16, dense_prefill_below=below, dense_below=1 << 20)
        with stratakv.attach(model), open_cache(model, budget, precision="full") as cache:
            for chunk in ids.split(150, dim=1):
                logits.append(last_logits(model, chunk, cache))
    for selected, dense in zip(logits[:3], logits[3:], strict=True):
        assert torch.allclose(selected, dense, atol=1e-5)


def test_a_prefill_past_the_window_reads_a_part_and_makes_no_large_mask(monkeypatch):
    model = build("llama")
    ids = prompt(900)
    budget = Selection(budget=176, sinks=16, window=32, unread=1.0, dense_prefill_below=300)
    masks = []
    monkeypatch.setattr("stratakv.attention.paged.causal_mask", lambda *_: masks.append(1))
    with stratakv.attach(model), open_cache(model, budget) as cache:
        last_logits(model, ids[:, :400], cache)
        last_logits(model, ids[:, 400:], cache)
        read = cache.stats()["cache"]["read_tokens"]
    assert 176 < read <= 176 + 64 + 16
    assert not masks


def test_an_unattached_cache_takes_no_budget():
    model = build("llama")
    with pytest.raises(ValueError, match=r"stratakv\.attach"):
        open_cache(model, 512)
    with open_cache(model, None) as cache, pytest.raises(ValueError, match=r"stratakv\.attach"):
        cache.select(512)


def test_pages_of_parts_of_blocks_are_refused():
    model = build("llama")
    with stratakv.attach(model), pytest.raises(ValueError, match="multiple of 16"):
        TieredCache.open(model, None, page_tokens=40, budget=512)
