"""Looking a question up in a context that is longer than its model was trained on."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import DynamicCache

import stratakv
from stratakv import Look, Selection, TieredCache
from stratakv.hf import looking
from stratakv.hf.compat import cache_kwargs
from stratakv.hf.lexical import word_scores
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

TRAINED = 512  # of the tiny models
SMALL = Selection(budget=176, sinks=16, window=32, dense_below=0)
HOW = Look(places=4, neighbours=1, candidates=0, own=2, budget=512)


def open_cache(model, budget=SMALL, **options):
    return TieredCache.open(model, None, ram="16MiB", page_tokens=16, budget=budget, **options)


@torch.inference_mode()
def feed(model, cache, ids, chunk=64):
    """The logits of the last token."""
    for start in range(0, len(ids), chunk):
        piece = torch.tensor([ids[start : start + chunk]])
        logits = model(input_ids=piece, use_cache=True, **cache_kwargs(cache)).logits
    return logits[0, -1]


@pytest.fixture
def ids():
    return prompt(900)[0].tolist()


def test_all_heads_then_read_what_was_found(ids):
    model = build("llama")
    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids[:880])
        found = cache.look(ids, HOW)
        assert found == cache.focused == sorted(set(found))
        assert 4 <= len(found) <= 12
        assert all(block in SMALL.far_blocks(900) for block in found)
        feed(model, cache, ids[880:])
        for slot in range(cache.stats()["cache"]["paged_layers"]):
            for blocks in cache._table.read_blocks(slot)[0]:
                assert set(found) <= set(blocks)
                # Sinks, window, the focus and two of its own; tokens after the last page come on top.
                assert len(blocks) <= 1 + 2 + len(found) + 2 + 1
        # A prefill reads so too, with the tokens' own blocks.
        feed(model, cache, prompt(100)[0].tolist(), chunk=100)
        assert all(set(found) <= set(blocks) for blocks in cache._table.read_blocks(0)[0])


def test_a_long_answer_sees_its_question_and_its_beginning(ids):
    model = build("llama")
    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids[:880])
        cache.look(ids, HOW)
        feed(model, cache, ids[880:])
        # Far beyond the window of 32 tokens.
        feed(model, cache, prompt(150)[0].tolist(), chunk=10)
        asked = range(880 // 16, 1050 // 16)
        for blocks in cache._table.read_blocks(0)[0]:
            assert set(asked) <= set(blocks)
        cache.focus(cache.focused, since=1040)
        feed(model, cache, ids[:1])
        assert all(60 not in blocks for blocks in cache._table.read_blocks(0)[0])


def test_looking_changes_nothing_but_the_focus(ids):
    model = build("llama")
    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids[:880])
        with cache.fork() as fork:
            expected = feed(model, fork, ids[880:])
        cache.look(ids, HOW)
        assert cache.get_seq_length() == 880
        assert cache.selection == SMALL
        with cache.fork() as fork:
            assert fork.focused == cache.focused
            assert not torch.equal(feed(model, fork, ids[880:]), expected)
        cache.focus([])
        assert torch.equal(feed(model, cache, ids[880:]), expected)


def test_the_same_is_found_however_the_prompt_came(ids):
    model = build("llama")
    found = []
    with stratakv.attach(model):
        for covered in (832, 768, 576):
            with open_cache(model) as cache:
                feed(model, cache, ids[:covered])
                # What is not covered and does not ask is read on the way.
                found.append(cache.look(ids, Look(places=4, question=20)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("length", [TRAINED, 900])
def test_what_needs_no_looking_is_left_alone(ids, length):
    model = build("llama")
    with stratakv.attach(model):
        # Past the trained window a cache that reads everything has nothing to find.
        with open_cache(model, budget=SMALL if length == TRAINED else None) as cache:
            feed(model, cache, ids[: length - 20])
            cache.focus([3])
            assert cache.look(ids[:length]) == cache.focused == []
        with open_cache(model) as cache:
            assert cache.look(ids[:length]) == []
    with open_cache(model, budget=None) as cache:
        feed(model, cache, ids[:100])
        assert cache.look(ids[:120]) == []


def test_it_can_be_stopped(ids):
    model = build("llama")
    told = []

    def stop(done, total):
        told.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids[:880])
        with pytest.raises(KeyboardInterrupt):
            cache.look(ids, on_token=stop)
        assert told == [(1, 52), (2, 52), (3, 52)]
        assert cache.focused == []
        assert cache.get_seq_length() == 880
        feed(model, cache, ids[880:])


def test_what_is_cropped_is_not_looked_for(ids):
    model = build("llama")
    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids)
        cache.focus([40, 5, 5, 54])
        assert cache.focused == [5, 40, 54]
        cache.crop(-200)
        assert cache.focused == [5, 40]
        cache.reset()
        assert cache.focused == []
        feed(model, cache, ids[:40])


def test_bad_arguments_are_named(ids):
    model = build("llama")
    for arguments, named in (
        ({"places": 0}, "places=0"),
        ({"budget": 8}, "budget=8"),
        ({"own": -1}, "own=-1"),
        ({"candidates": -1}, "candidates=-1"),
    ):
        with pytest.raises(ValueError, match=named):
            Look(**arguments)
    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids[:100])
        with pytest.raises(ValueError, match="a prompt of 100 tokens, and the cache covers 100"):
            cache.look(ids[:100])
        for bad in ({"blocks": [-1]}, {"blocks": [1], "own": -1}, {"blocks": [1], "since": -1}):
            with pytest.raises(ValueError, match="from 0 on"):
                cache.focus(**bad)


def test_places_are_far_blocks_of_the_highest_scores():
    scores = torch.tensor([9.0, 0, 5, 0, 0, 7, 0, 0, 6, 8, 9])
    how = Look(neighbours=1, candidates=0)
    # The sinks and the window are out of the question; neighbours are too where they are those.
    assert looking._places(scores, range(1, 9), how, 2) == [5, 8]
    assert looking._around([5, 8], range(1, 9), how) == [4, 5, 6, 7, 8]
    assert looking._places(scores, range(1, 9), how, 3) == [5, 8, 2]
    # What nobody looked at is no place.
    assert looking._places(scores * 0, range(1, 9), how, 2) == []
    # What is read with a better place is none of its own.
    how = Look(neighbours=2)
    near = torch.tensor([0.0, 9, 8, 7, 6, 5, 4])
    assert looking._places(near, range(7), how, 2) == [1, 4]
    assert looking._apart([5, 3, 9, 8, 11], how) == [5, 9]


def test_places_are_read_that_make_the_question_most_likely():
    how = Look(places=3, neighbours=1)
    assert looking._likely([7, 1, 9, 4], [-30.0, -12.0, -13.5, -14.5], how) == [1, 9, 4]
    # What is read with a better place is none of its own.
    assert looking._likely([7, 1, 8, 2, 4], [-1.0, -4.0, -2.0, -3.0, -9.0], how) == [7, 2, 4]
    assert looking._likely([], [], how) == []


def test_words_count_by_how_rare_they_are(ids):
    question, tokens = ids[:7] + ids[:2], [*ids, *ids[:5]]
    found = word_scores(tokens, question, neighbours=1)
    blocks = [tokens[start : start + 16] for start in range(0, len(tokens), 16)]
    near = [tokens[max(at - 1, 0) * 16 : (at + 2) * 16] for at in range(len(blocks))]
    for at, text in enumerate(near):
        expected = 0.0
        for token in set(question):
            having = sum(token in one for one in near)
            rarity = math.log(1 + (len(blocks) - having + 0.5) / (having + 0.5))
            expected += rarity * text.count(token) * 1.9 / (text.count(token) + 0.9)
        assert found[at] == pytest.approx(expected)
    assert word_scores(tokens, [max(tokens) + 1], neighbours=1).sum() == 0
    assert word_scores([], question, neighbours=1).shape == (0,)


@torch.inference_mode()
def likelihood_of(model, cache, question, blocks):
    """The same on a fork of its own, where nothing was read and taken back before."""
    with cache.fork() as fork:
        fork.focus(blocks, 0)
        logits_TV = model(input_ids=torch.tensor([question]), use_cache=True, **cache_kwargs(fork)).logits[0]
    said_T = torch.tensor(question[1:])
    return float(logits_TV[:-1].log_softmax(-1).gather(1, said_T[:, None]).sum())


def test_places_are_read_one_at_a_time(ids, monkeypatch):
    model, question = build("llama"), ids[880:]
    how = Look(places=3, neighbours=1, candidates=4, budget=512)
    seen = {}
    plain = looking._likelihood

    def noted(cache, model, question, blocks, steps):
        seen[tuple(blocks)] = plain(cache, model, question, blocks, steps)
        return seen[tuple(blocks)]

    monkeypatch.setattr(looking, "_likelihood", noted)
    with stratakv.attach(model), open_cache(model) as cache:
        feed(model, cache, ids[:880])
        found = cache.look(ids, how)
        assert cache.get_seq_length() == 880
        assert 4 <= len(seen) <= 8
        for blocks, likelihood in seen.items():
            assert likelihood == pytest.approx(likelihood_of(model, cache, question, blocks), abs=1e-3)
    best = sorted(seen, key=lambda blocks: -seen[blocks])
    assert set(best[0]) <= set(found)
    # Three places, of which none is among another's neighbours.
    assert 2 * 3 + 1 <= len(found) <= 3 * 3
    assert set(found) <= {block for one in best for block in one}


def test_a_driver_looks_where_the_cache_can(ids):
    from stratakv.cli.engine import Driver, Interrupt
    from stratakv.cli.models import LoadedModel
    from stratakv.cli.output import Output

    model = build("llama")
    loaded = LoadedModel.__new__(LoadedModel)
    object.__setattr__(loaded, "model", model)
    with Interrupt() as interrupt, stratakv.attach(model), open_cache(model) as cache:
        driver = Driver(loaded, cache, interrupt=interrupt, out=Output(), chunk=64)
        read = driver.prefill_question(ids, quiet=True)
        assert read.tokens == cache.get_seq_length() == 900
        assert cache.focused
        first = list(cache.focused)
        # The same prompt again: its last token is computed again, what was found is found again.
        driver.prefill_question(ids, quiet=True)
        assert cache.get_seq_length() == 900
        assert cache.focused
        driver.prefill_question(ids + ids[:5], look=False, quiet=True)
        assert cache.focused == []
        assert first
    with Interrupt() as interrupt:
        plain = Driver(loaded, DynamicCache(config=model.config), interrupt=interrupt, out=Output(), chunk=64)
        assert plain.prefill_question(ids[:90], quiet=True).tokens == 90
