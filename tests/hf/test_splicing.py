"""Tokens of another cache at the end of this one: beside a dense model whose mask keeps them apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import stratakv
from stratakv import Selection, TieredCache
from stratakv.errors import RamFullError
from stratakv.hf.compat import cache_kwargs
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

FAMILIES = ["llama", "llama_scaled", "qwen3", "gpt_neox", "phi"]


def open_cache(model, path=None, **options):
    return TieredCache.open(model, path, ram=options.pop("ram", "16MiB"), page_tokens=16, **options)


@torch.inference_mode()
def feed(model, cache, ids):
    """(T, V) logits of a pass over `ids` (1, T)."""
    return model(input_ids=ids, use_cache=True, **cache_kwargs(cache)).logits[0]


@torch.inference_mode()
def apart(model, pieces, last):
    """Logits of `last` behind all pieces, by one dense pass in which the others see themselves alone.

    A piece is (ids, first): tokens before `first` are attended to by the piece and by nothing else.
    """
    ids = torch.cat([*(ids for ids, _ in pieces), last], dim=1)
    total = ids.shape[1]
    seen = torch.zeros(total, total, dtype=torch.bool)
    positions, kept, at = torch.empty(1, total, dtype=torch.long), [], 0
    place = 0
    for index, (piece, first) in enumerate(pieces):
        end = at + piece.shape[1]
        seen[at:end, at:end] = True
        positions[0, at:end] = torch.arange(piece.shape[1]) + place - first
        kept += range(at + first, end)
        place += piece.shape[1] - first
        if index == 0:
            assert first == 0
        at = end
    seen[at:, kept] = True
    seen[at:, at:] = True
    positions[0, at:] = torch.arange(last.shape[1]) + place
    mask = torch.zeros(1, 1, total, total).masked_fill(~(seen & torch.ones_like(seen).tril()), -1e30)
    # Positions may be below 0: those of rotary embeddings are relative.
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0, at:]


def ids_of(count, seed=0):
    return prompt(count + seed)[:, seed:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["full", "mixed"])
def test_what_follows_sees_them_as_they_were(family, precision):
    model = build(family)
    before, text, last = ids_of(21), ids_of(50, 30), ids_of(9, 90)
    with stratakv.attach(model), open_cache(model, precision=precision) as cache:
        with open_cache(model) as source:
            feed(model, source, text)
            feed(model, cache, before)
            assert cache.splice(source, 3) == 47
        assert cache.get_seq_length() == 68
        assert cache.token_ids == [*before[0].tolist(), *text[0, 3:].tolist()]
        found = feed(model, cache, last)
    expected = apart(model, [(before, 0), (text, 3)], last)
    exact = precision == "full"
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 if exact else 0.2)


@settings(max_examples=25, deadline=None)
@given(
    held=st.integers(0, 50),
    pieces=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 70)), min_size=1, max_size=3),
    chunk=st.sampled_from([1, 16, 4096]),
)
def test_any_pieces_at_any_places(held, pieces, chunk):
    model = build("llama")
    last = ids_of(5, 7)
    shown = []
    with pytest.MonkeyPatch.context() as patch, stratakv.attach(model), open_cache(model) as cache:
        patch.setattr("stratakv.hf.splicing.COPY_TOKENS", chunk)
        if held:
            feed(model, cache, ids_of(held))
            shown.append((ids_of(held), 0))
        for index, (length, first) in enumerate(pieces):
            text = ids_of(length, 11 * index)
            # The dense pass begins with a whole piece.
            start = min(first, length) if shown else 0
            with open_cache(model) as source:
                feed(model, source, text)
                assert cache.splice(source, start) == length - start
            shown.append((text, start))
        found = feed(model, cache, last)
    torch.testing.assert_close(found, apart(model, shown, last), rtol=0, atol=2e-4)


def test_a_part_of_a_part():
    """From a cache that was spliced itself, and of which the end is left out."""
    model = build("llama")
    first, second, last = ids_of(40), ids_of(30, 50), ids_of(4, 3)
    with (
        stratakv.attach(model),
        open_cache(model) as one,
        open_cache(model) as two,
        open_cache(model) as cache,
    ):
        feed(model, one, first)
        feed(model, two, second)
        two.splice(one)
        assert cache.splice(two, 0, 50) == 50
        assert cache.token_ids == [*second[0].tolist(), *first[0, :20].tolist()]
        found = feed(model, cache, last)
    torch.testing.assert_close(
        found, apart(model, [(second, 0), (first[:, :20], 0)], last), rtol=0, atol=2e-4
    )


def test_a_session_keeps_them_and_shares_their_pages(tmp_path):
    model = build("llama")
    before, text, last = ids_of(21), ids_of(100, 30), ids_of(9, 90)
    everything = torch.cat([before, text, last], dim=1)[0].tolist()
    with stratakv.attach(model):
        used = []
        for name in ("one", "two"):
            with open_cache(model, tmp_path, name=name) as cache, cache.fork() as source:
                feed(model, source, text)
                feed(model, cache, before)
                cache.splice(source)
                cache.save()
                cache.crop(-1)
                expected = feed(model, cache, torch.tensor([everything[120:]]))
                cache.flush()
                used.append(cache.stats()["disk"]["used_bytes"])
        # The second wrote its session file, and no page.
        assert used[1] - used[0] < 16 * 1024
        with open_cache(model, tmp_path, name="one") as cache:
            # A resumed session holds its last token back.
            assert cache.match(everything) == 120
            assert torch.equal(feed(model, cache, torch.tensor([everything[120:]])), expected)
        # Computed from the same ids, pages are others: theirs would be wrong here.
        with open_cache(model, tmp_path) as cache:
            assert cache.match(everything) <= 21


def test_generating_goes_on_behind_them():
    model = build("llama")
    before, text, last = ids_of(21), ids_of(40, 30), ids_of(9, 90)
    whole = torch.cat([before, text, last], dim=1)
    with stratakv.attach(model), open_cache(model) as cache, open_cache(model) as source:
        feed(model, source, text)
        feed(model, cache, before)
        cache.splice(source)
        with cache.fork() as fork:
            logits = feed(model, fork, last)
            expected = []
            for _ in range(6):
                expected.append(int(logits[-1].argmax()))
                logits = feed(model, fork, torch.tensor([expected[-1:]]))
        made = model.generate(whole, max_new_tokens=6, do_sample=False, **cache_kwargs(cache))
        assert made[0, whole.shape[1] :].tolist() == expected
        cache.crop(30 - cache.get_seq_length())
        assert cache.token_ids == whole[0, :30].tolist()


def test_selecting_caches_find_them():
    """Summaries of spliced pages are made: steps read blocks of them."""
    model = build("llama")
    selection = Selection(budget=64, sinks=16, window=16, dense_below=0)
    with stratakv.attach(model), open_cache(model, budget=selection) as cache, open_cache(model) as source:
        feed(model, source, ids_of(160))
        feed(model, cache, ids_of(32))
        cache.splice(source)
        feed(model, cache, ids_of(1))
        blocks = cache._table.read_blocks(0)[0]
        assert any(2 <= block < 11 for head in blocks for block in head)
        shares = cache.attention_shares()
        assert shares.sum() > 0.5 * shares.shape[0] * shares.shape[1]


def test_what_is_refused():
    model, other = build("llama"), build("qwen3")
    with stratakv.attach(model), open_cache(model) as cache, open_cache(model) as source:
        feed(model, source, ids_of(20))
        for start, stop in [(-1, 5), (3, 2), (0, 21), (21, None)]:
            with pytest.raises(ValueError, match="has 20"):
                cache.splice(source, start, stop)
        assert cache.splice(source, 20) == 0
        with (
            stratakv.attach(other),
            open_cache(other) as foreign,
            pytest.raises(ValueError, match="same model"),
        ):
            foreign.splice(source)
        with open_cache(model) as batch:
            feed(model, batch, ids_of(8).repeat(2, 1))
            with pytest.raises(ValueError, match="one row"):
                batch.splice(source)
            with pytest.raises(ValueError, match="one row"):
                cache.splice(batch)
        assert cache.get_seq_length() == 0
    with open_cache(model) as cache, pytest.raises(ValueError, match="attach"):
        cache.splice(cache)
    sliding = build("mistral_sliding")
    with stratakv.attach(sliding), open_cache(sliding) as cache, open_cache(sliding) as source:
        feed(sliding, source, ids_of(8))
        with pytest.raises(ValueError, match="keep no pages"):
            cache.splice(source)


def test_no_room_leaves_what_was_there():
    model = build("llama")
    with stratakv.attach(model), open_cache(model, ram="64KiB") as cache, open_cache(model) as source:
        feed(model, source, ids_of(400))
        feed(model, cache, ids_of(21))
        before = cache.token_ids
        with cache.fork() as fork:
            expected = feed(model, fork, ids_of(2))
        with pytest.raises(RamFullError):
            cache.splice(source)
        assert cache.token_ids == before
        assert torch.equal(feed(model, cache, ids_of(2)), expected)


def test_a_whole_text_at_the_beginning_is_what_computing_gives():
    model = build("llama")
    text, last = ids_of(50), ids_of(5, 60)
    plain = DynamicCache(config=model.config)
    feed(model, plain, text)
    expected = feed(model, plain, last)
    with stratakv.attach(model), open_cache(model) as cache, open_cache(model) as source:
        feed(model, source, text)
        cache.splice(source)
        torch.testing.assert_close(feed(model, cache, last), expected, rtol=0, atol=1e-4)
