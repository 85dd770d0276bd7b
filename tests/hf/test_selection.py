"""Decoding that reads a part of the context, on attached models."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import stratakv
from stratakv import Selection, TieredCache
from stratakv.hf.compat import cache_kwargs
from tests.hf.test_contract import MODES, _run
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

# Eleven blocks of 16: a sink, a window of two, and the best.
SMALL = Selection(budget=176, sinks=16, window=32, dense_below=0, unread=1.0)
EVERYTHING = Selection(budget=1 << 16, sinks=16, window=32, dense_below=0)


def open_cache(model, budget, path=None, **options):
    return TieredCache.open(model, path, ram="8MiB", page_tokens=16, budget=budget, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox", "cohere"])
def test_a_budget_of_everything_gives_the_dense_tokens(name, mode):
    model = build(name)
    inputs = {"input_ids": prompt(70)}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES[mode])
    with stratakv.attach(model), open_cache(model, EVERYTHING) as cache:
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


def test_padded_rows_are_masked_as_ever():
    model = build("llama")
    ids = prompt(60, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    expected = _run(model, inputs, DynamicCache(config=model.config), **MODES["greedy"])
    with stratakv.attach(model), open_cache(model, EVERYTHING) as cache:
        assert torch.equal(_run(model, inputs, cache, **MODES["greedy"]), expected)


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
