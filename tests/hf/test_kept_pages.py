"""Memories that are recalled with their pages: what is computed, what is kept, and what forgetting leaves."""

from __future__ import annotations

import stat
import threading

import pytest
import torch

import stratakv
from stratakv import AssistantMemory, Engram, KeptPages, TieredCache
from stratakv.errors import MemoryNotFoundError
from stratakv.hf.compat import cache_kwargs
from tests.hf.test_splicing import apart
from tests.hf.tiny_models import build, prompt

pytestmark = pytest.mark.hf

BEFORE, LAST = prompt(21), prompt(99)[:, 90:]
TEXT = prompt(130)[:, 30:]  # 100 tokens


@pytest.fixture
def memory(tmp_path):
    with Engram.open(tmp_path / "memory", embedder=None) as memory:
        yield memory


@pytest.fixture
def model():
    model = build("llama")
    with stratakv.attach(model):
        yield model


@torch.inference_mode()
def feed(model, cache, ids):
    return model(input_ids=ids, use_cache=True, **cache_kwargs(cache)).logits[0]


def put_into_new(model, pages, id, text=TEXT, before=BEFORE):
    """How a text came behind others, and the logits of what follows it."""
    with TieredCache.open(model, None, ram="16MiB") as cache:
        if before is not None:
            feed(model, cache, before)
        put = pages.put(cache, text, id=id)
        assert cache.token_ids[-text.shape[1] :] == text[0].tolist()
        return put, feed(model, cache, LAST)


def test_a_text_is_computed_once(memory, model):
    id = memory.remember("a long text", user="ana")
    with KeptPages(memory, model, user="ana") as pages:
        first, logits = put_into_new(model, pages, id)
        again, same = put_into_new(model, pages, id)
    assert (first.computed, first.spliced, first.kept) == (32, 68, False)
    assert (again.computed, again.spliced, again.kept) == (32, 68, True)
    assert again.tokens == 100
    assert torch.equal(logits, same)
    # The next day, by another object.
    with KeptPages(memory, model, user="ana") as pages:
        third, same = put_into_new(model, pages, id)
    assert third.kept
    assert torch.equal(logits, same)


def test_what_follows_sees_a_text_whose_first_tokens_were_computed_here(memory, model):
    id = memory.remember("a long text", user="ana")
    with KeptPages(memory, model, user="ana") as pages:
        _, found = put_into_new(model, pages, id)
    with TieredCache.open(model, None, ram="16MiB") as cache, TieredCache.open(model, None) as alone:
        feed(model, alone, TEXT)
        feed(model, cache, BEFORE)
        feed(model, cache, TEXT[:, :32])
        cache.splice(alone, 32)
        expected = feed(model, cache, LAST)
    assert torch.equal(found, expected)
    spliced_alone = apart(model, [(BEFORE, 0), (TEXT, 0)], LAST)
    assert not torch.allclose(found, spliced_alone, atol=1e-3)


def test_what_texts_are_computed_behind_stays_out_of_sessions(memory, model):
    id = memory.remember("a long text", user="ana")
    behind = prompt(40)[:, 33:]
    with KeptPages(memory, model, user="ana", behind=behind[0].tolist()) as pages:
        first, found = put_into_new(model, pages, id)
        again, same = put_into_new(model, pages, id)
        with KeptPages(memory, model, user="ana", behind=[1]) as others:
            assert not put_into_new(model, others, id)[0].kept
    assert (first.computed, first.spliced, first.kept) == (0, 100, False)
    assert again.kept
    assert torch.equal(found, same)
    expected = apart(model, [(BEFORE, 0), (torch.cat([behind, TEXT], dim=1), 7)], LAST)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_at_the_beginning_of_a_session_nothing_is_approximate(memory, model):
    id = memory.remember("a long text", user="ana")
    with KeptPages(memory, model, user="ana", behind=[1, 2, 3]) as pages:
        put, found = put_into_new(model, pages, id, before=None)
    assert (put.computed, put.spliced) == (100, 0)
    with TieredCache.open(model, None) as cache:
        feed(model, cache, TEXT)
        assert torch.equal(found, feed(model, cache, LAST))


def test_short_texts_are_computed(memory, model):
    id = memory.remember("a short text", user="ana")
    short = TEXT[:, :63]
    with KeptPages(memory, model, user="ana") as pages:
        put, found = put_into_new(model, pages, id, text=short)
        assert pages.used_bytes() < 4096
    assert (put.computed, put.spliced) == (63, 0)
    with TieredCache.open(model, None) as cache:
        feed(model, cache, BEFORE)
        feed(model, cache, short)
        assert torch.equal(found, feed(model, cache, LAST))


@pytest.mark.parametrize("way", ["one", "all", "retain", "erase"])
@pytest.mark.parametrize("is_open", [True, False])
def test_forgetting_leaves_no_page(tmp_path, model, way, is_open):
    home = tmp_path / "memory"
    with AssistantMemory.open(home, embedder=None, extractor=None) as memory:
        ids = [memory.remember(text, user="ana") for text in ("a long text", "another")]
        other = memory.remember("a long text", user="ben")
        pages = {user: KeptPages(memory, model, user=user) for user in ("ana", "ben")}
        put_into_new(model, pages["ana"], ids[0])
        put_into_new(model, pages["ben"], other)
        assert len(list((home / "pages").iterdir())) == 2
        if not is_open:
            pages["ana"].close()
        if way == "one":
            memory.forget(ids[1], user="ana")
        elif way == "all":
            memory.forget(user="ana", everything=True)
        elif way == "retain":
            memory.retain(user="ana", max_count=1)
        else:
            memory.erase("ana")
        left = list((home / "pages").iterdir())
        assert len(left) == 1  # of the other user
        assert put_into_new(model, pages["ben"], other)[0].kept
        # Of what is still remembered they are made again; of the rest they are not.
        if way in {"one"} and is_open:
            assert not put_into_new(model, pages["ana"], ids[0])[0].kept
            assert put_into_new(model, pages["ana"], ids[0])[0].kept
        if way in {"all", "erase"} and is_open:
            with pytest.raises(MemoryNotFoundError):
                put_into_new(model, pages["ana"], ids[0])
            assert len(list((home / "pages").iterdir())) == 1
        for each in pages.values():
            each.close()
            each.close()


def test_nothing_is_kept_while_something_is_forgotten(memory, model):
    id = memory.remember("a long text", user="ana")
    entered, finish = threading.Event(), threading.Event()

    def forget():
        with memory._beside.forgetting("ana"):
            entered.set()
            finish.wait(20)

    with KeptPages(memory, model, user="ana") as pages:
        forgetting = threading.Thread(target=forget)
        forgetting.start()
        entered.wait(20)
        putting = threading.Thread(target=put_into_new, args=(model, pages, id))
        putting.start()
        putting.join(0.3)
        assert putting.is_alive()
        finish.set()
        putting.join(20)
        forgetting.join(20)
        assert put_into_new(model, pages, id)[0].kept


def test_files_are_the_owners(memory, model, tmp_path):
    id = memory.remember("a long text", user="ana")
    with KeptPages(memory, model, user="ana") as pages:
        put_into_new(model, pages, id)
        assert pages.used_bytes() > 10_000
    home = tmp_path / "memory" / "pages"
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert "ana" not in str(list(home.rglob("*")))


def test_models_do_not_share_them(memory, model):
    id = memory.remember("a long text", user="ana")
    other = build("qwen3")
    with KeptPages(memory, model, user="ana") as pages:
        put_into_new(model, pages, id)
        with stratakv.attach(other), KeptPages(memory, other, user="ana") as others:
            assert not put_into_new(other, others, id)[0].kept
        assert put_into_new(model, pages, id)[0].kept


def test_a_damaged_page_is_computed_again(memory, model, tmp_path):
    id = memory.remember("a long text", user="ana")
    with KeptPages(memory, model, user="ana") as pages:
        _, expected = put_into_new(model, pages, id)
    for path in (tmp_path / "memory" / "pages").rglob("*.seg"):
        data = bytearray(path.read_bytes())
        data[4096:] = b"\x55" * (len(data) - 4096)
        path.write_bytes(data)
    with KeptPages(memory, model, user="ana") as pages:
        with pytest.warns(stratakv.errors.PagesLostWarning):
            put, found = put_into_new(model, pages, id)
        assert not put.kept
        assert torch.equal(found, expected)
        assert put_into_new(model, pages, id)[0].kept


def test_a_limit_lets_old_ones_go(memory, model):
    ids = [memory.remember(f"text {number}", user="ana") for number in range(4)]
    texts = [prompt(400 + number)[:, number:] for number in range(4)]
    with KeptPages(memory, model, user="ana", disk_limit="1MiB") as pages:
        for id, text in zip(ids, texts, strict=True):
            put_into_new(model, pages, id, text=text)
        assert pages.used_bytes() <= 1 << 20
        assert put_into_new(model, pages, ids[-1], text=texts[-1])[0].kept


def test_what_is_refused(memory, model, tmp_path):
    id = memory.remember("a long text", user="ana")
    with KeptPages(memory, model, user="ana") as pages:
        with TieredCache.open(model, None) as cache:
            with pytest.raises(ValueError, match="empty"):
                pages.put(cache, [], id=id)
            with pytest.raises(MemoryNotFoundError):
                pages.put(cache, TEXT, id=id + 1)
            assert cache.get_seq_length() == 0
        assert memory.remember("ben's", user="ben") == 1
        with pytest.raises(MemoryNotFoundError):
            put_into_new(model, pages, id + 1)
    plain = build("qwen3")
    with pytest.raises(ValueError, match="attach"):
        KeptPages(memory, plain, user="ana")
    sliding = build("mistral_sliding")
    with stratakv.attach(sliding), pytest.raises(ValueError, match="keep no pages"):
        KeptPages(memory, sliding, user="ana")
    with pytest.raises(ValueError, match="ram"):
        KeptPages(memory, model, user="ana", ram="lots")
