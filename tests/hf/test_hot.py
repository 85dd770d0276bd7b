"""A model that decodes through the hot tier, here on the CPU, beside the engine's own sparse decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import stratakv
from stratakv import Look, Selection
from stratakv.hf.compat import cache_kwargs
from tests.hf.test_contract import MODES, _run
from tests.hf.test_selection import SMALL, last_logits, open_cache
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

CPU = torch.device("cpu")
LIMIT = 1 << 20


def open_hot(model, budget=SMALL, limit=LIMIT, **options):
    cache = open_cache(model, budget, **options)
    cache._keep_hot(limit, [CPU])
    return cache


# Rotaries of all elements, of some and of neighbours, and every way to ask for tokens.
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("llama", "greedy"),
        ("gpt_neox", "greedy"),
        ("cohere", "greedy"),
        ("llama", "assisted"),
        ("llama", "prompt_lookup"),
        ("llama", "beam"),
    ],
)
def test_a_model_gives_the_engine_s_tokens(name, mode):
    model = build(name)
    inputs = {"input_ids": prompt(400)}
    with stratakv.attach(model):
        with open_cache(model, SMALL) as cache:
            expected = _run(model, inputs, cache, **MODES[mode])
        with open_hot(model) as cache:
            assert torch.equal(_run(model, inputs, cache, **MODES[mode]), expected)
            stats = cache.stats()["hot"]
    assert stats["hits"] > 0
    assert 0 < stats["used_bytes"] <= LIMIT


def test_logits_are_the_engine_s_up_to_rounding():
    model = build("llama")
    ids = prompt(500, rows=2)
    found = []
    with stratakv.attach(model):
        for make in (open_cache, open_hot):
            with make(model, SMALL) as cache:
                last_logits(model, ids[:, :-8], cache)
                found.append([last_logits(model, ids[:, t : t + 1], cache) for t in range(492, 500)])
                stats = cache.stats()
                assert stats["cache"]["read_tokens"] <= SMALL.budget + 16
    for engine, hot in zip(*found, strict=True):
        # Float32 throughout; both planes' values are the same.
        torch.testing.assert_close(hot, engine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [64, 150])
def test_a_prefill_in_chunks_is_the_engine_s(chunk):
    """Dense up to 384 tokens, then 64 at a time select; the engine reads these tokens' own blocks in FP8."""
    model = build("llama")
    ids = prompt(900, rows=2)
    selection = replace(SMALL, dense_prefill_below=384, critical_fraction=1.0)
    found = []
    with stratakv.attach(model):
        for make in (open_cache, open_hot):
            with make(model, selection) as cache:
                found.append([last_logits(model, piece, cache) for piece in ids.split(chunk, dim=1)])
                stats = cache.stats()
    assert stats["hot"]["hits"] > 0
    assert stats["cache"]["read_tokens"] < 900
    for engine, hot in zip(*found, strict=True):
        # Pages round keys to bfloat16: what sums in another order made differ may be rounded apart.
        torch.testing.assert_close(hot, engine, rtol=1e-2, atol=2e-3)


@torch.inference_mode()
def test_a_question_is_looked_up_as_by_the_engine():
    model = build("llama")
    ids = prompt(900)
    found, logits = [], []
    with stratakv.attach(model):
        for make in (open_cache, open_hot):
            with make(model, SMALL) as cache:
                model(ids[:, :880], **cache_kwargs(cache))
                found.append(cache.look(ids, Look(places=4, neighbours=1, own=2, budget=512)))
                for token in ids[:, 880:].split(1, dim=1):
                    out = model(token, **cache_kwargs(cache)).logits
                logits.append(out)
                shares = cache.attention_shares()
                assert shares is not None
                assert shares[:, :, found[-1]].count_nonzero() > 0
    assert found[0] == found[1] != []
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)


def test_padded_rows_are_read_as_without_it():
    model = build("llama")
    ids = prompt(400, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with stratakv.attach(model):
        with open_cache(model, SMALL) as cache:
            expected = _run(model, inputs, cache, **MODES["greedy"])
        with open_hot(model) as cache:
            assert torch.equal(_run(model, inputs, cache, **MODES["greedy"]), expected)
            assert "hits" not in cache.stats()["hot"]


def test_forks_and_resumed_sessions_go_on(tmp_path):
    model = build("llama")
    ids = prompt(400)
    with stratakv.attach(model), torch.inference_mode():
        with open_hot(model, path=tmp_path, name="s") as cache:
            model(ids, **cache_kwargs(cache))
            cache.save()
            fork = cache.fork()
            logits = [model(ids[:, :1], **cache_kwargs(one)).logits for one in (cache, fork)]
            assert torch.equal(*logits)
            assert fork.stats()["hot"]["misses"] == cache.stats()["hot"]["misses"] > 0
            fork.close()
        with open_hot(model, path=tmp_path, name="s") as cache:
            model(ids[:, -1:], **cache_kwargs(cache))  # held back
            again = model(ids[:, :1], **cache_kwargs(cache)).logits
            torch.testing.assert_close(again, logits[0], rtol=1e-4, atol=1e-5)


def test_inference_mode_may_begin_and_end_in_between():
    """What grew in it is written outside it."""
    model = build("llama")
    # What a prefill reads of itself is in 16 bits here, and in FP8 there: all is in 16 bits.
    exact = replace(SMALL, critical_fraction=1.0)
    pieces = prompt(525).split([400, 1, 60, 1, 62, 1], dim=1)
    with stratakv.attach(model), open_hot(model, exact) as cache, open_cache(model, exact) as engine:
        for place, piece in enumerate(pieces):
            with torch.inference_mode(place == 3), torch.set_grad_enabled(False):
                found, expected = (model(piece, **cache_kwargs(one)).logits[0, -1] for one in (cache, engine))
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)
        assert cache.stats()["hot"]["hits"] > 0


def test_what_it_needs_is_said():
    model = build("llama")
    with stratakv.attach(model):
        with pytest.raises(ValueError, match="the model is on cpu"):
            open_cache(model, SMALL, hot="1MiB")
        with open_cache(model, None, precision="mixed") as cache, pytest.raises(ValueError, match="budget"):
            cache._keep_hot(LIMIT, [CPU])
        with open_cache(model, SMALL, precision="full") as cache, pytest.raises(ValueError, match="mixed"):
            cache._keep_hot(LIMIT, [CPU])
        small = Selection(budget=176, sinks=16, window=32, dense_below=0)
        with open_hot(model, small, limit=20_000) as cache, pytest.raises(ValueError, match="raise hot="):
            _run(model, {"input_ids": prompt(400)}, cache, **MODES["greedy"])
