from __future__ import annotations

import itertools
import signal

import pytest
from transformers import DynamicCache

from stratakv.cli import engine
from stratakv.cli.engine import Driver, Interrupt, StoppedError, TextStream
from stratakv.cli.models import find_model, load
from stratakv.cli.output import Output
from stratakv.cli.prompts import document_pieces, encode, user_turn
from stratakv.cli.texts import Fact, hide, random_facts, standard_library_text


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load(find_model(tiny_model), "float32")


@pytest.fixture
def driver(loaded):
    with Interrupt() as interrupt:
        yield Driver(
            loaded, DynamicCache(config=loaded.model.config), interrupt=interrupt, out=Output(), chunk=16
        )


def joined(tokenizer, *texts, is_first=True):
    return list(itertools.chain(*user_turn(tokenizer, texts, is_first=is_first)))


def test_a_document_has_the_same_ids_whatever_is_asked(loaded):
    first, asked = document_pieces(loaded.tokenizer, "Some text.", "Why?")
    second, _ = document_pieces(loaded.tokenizer, "Some text.", "Because of what?")
    assert first == second
    whole = loaded.tokenizer.decode(first + asked)
    assert whole == "<|start|>user\nSome text.\n\nQuestion: Why?<|end|>\n<|start|>assistant\n"


def test_a_special_token_spelled_in_a_document_is_only_text(loaded):
    tokenizer = loaded.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    context, question = document_pieces(tokenizer, "It ends with <|end|> there.", "<|end|>?")
    assert end not in context
    assert question.count(end) == 1
    assert "<|end|> there." in tokenizer.decode(context)
    assert joined(tokenizer, "<|end|>").count(end) == joined(tokenizer, "x").count(end)


def test_turns_join_to_what_the_template_renders(loaded):
    tokenizer = loaded.tokenizer
    turns = [("user", "hello"), ("assistant", "hi"), ("user", "and?")]
    whole = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = joined(tokenizer, "hello") + encode(tokenizer, "hi") + joined(tokenizer, "and?", is_first=False)
    assert ids == encode(tokenizer, whole)


def test_each_text_of_a_turn_has_ids_of_its_own(loaded):
    texts = ["One note. ", "Another. ", "And?"]
    pieces = user_turn(loaded.tokenizer, texts, is_first=True)
    assert [loaded.tokenizer.decode(piece) for piece in pieces[1:-1]] == texts
    assert pieces[2] == user_turn(loaded.tokenizer, ["Another. "], is_first=False)[1]
    whole = loaded.tokenizer.decode(list(itertools.chain(*pieces)))
    assert whole == "<|start|>user\nOne note. Another. And?<|end|>\n<|start|>assistant\n"


def test_without_a_template_headings_divide(loaded, monkeypatch):
    monkeypatch.setattr(loaded.tokenizer, "chat_template", None)
    assert loaded.tokenizer.decode(joined(loaded.tokenizer, "hello")) == "User: hello\nAssistant:"
    assert (
        loaded.tokenizer.decode(joined(loaded.tokenizer, "so?", is_first=False)) == "\nUser: so?\nAssistant:"
    )


@pytest.mark.parametrize("covered", [0, 7, 49, 50])
def test_prefill_completes_any_prefix_and_logits_are_the_same(driver, covered):
    ids = encode(driver.loaded.tokenizer, "x" * 50)
    whole = Driver(
        driver.loaded,
        DynamicCache(config=driver.loaded.model.config),
        interrupt=driver.interrupt,
        out=Output(),
    ).prefill(ids)
    if covered:
        driver.prefill(ids[:covered])
    rest = driver.prefill(ids)
    assert rest.tokens == max(50 - covered, 1)
    assert driver.cache.get_seq_length() == 50
    assert (whole.logits_V - rest.logits_V).abs().max() < 1e-4


def test_the_cache_covers_every_token_that_was_handed_out(driver):
    ids = encode(driver.loaded.tokenizer, "hello")
    tokens = list(driver.decode(driver.prefill(ids).logits_V, 6))
    assert driver.cache.get_seq_length() == len(ids) + len(tokens)


def test_ctrl_c_stops_between_chunks_and_twice_stops_at_once(driver):
    previous = signal.getsignal(signal.SIGINT)
    ids = encode(driver.loaded.tokenizer, "x" * 64)
    steps = driver.step

    def step_then_ctrl_c(piece):
        signal.raise_signal(signal.SIGINT)
        return steps(piece)

    driver.step = step_then_ctrl_c
    with pytest.raises(StoppedError) as stopped:
        driver.prefill(ids)
    assert (stopped.value.done, stopped.value.total) == (16, 64)
    assert driver.cache.get_seq_length() == 16
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


def test_what_is_read_is_kept_now_and_then_and_when_stopped(driver, monkeypatch):
    ids, kept = encode(driver.loaded.tokenizer, "x" * 64), []
    driver.keep = lambda: kept.append(driver.cache.get_seq_length())
    driver.prefill(ids[:40])
    assert kept == []
    monkeypatch.setattr(engine, "KEEP_SECONDS", 0)
    driver.prefill(ids[:56])
    assert kept == [40]
    driver.interrupt.requested = True
    with pytest.raises(StoppedError):
        driver.prefill(ids)
    assert kept == [40, 56]


def test_streamed_text_is_the_whole_text(loaded):
    text = "Grüße,\nWelt, naïve ☃ snow\n" + "long " * 40
    stream = TextStream(loaded.tokenizer)
    pieces = [stream.push(token) for token in encode(loaded.tokenizer, text)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces)


def test_the_demo_text_is_as_long_as_asked_and_the_same_each_time():
    text, modules = standard_library_text(3000, lambda paragraph: len(paragraph) // 4)
    assert text == standard_library_text(3000, lambda paragraph: len(paragraph) // 4)[0]
    assert modules >= 1
    assert 2900 < sum(len(paragraph) // 4 for paragraph in text) <= 3000


def test_facts_are_hidden_and_judged():
    facts = random_facts()
    assert random_facts()[0].sentence != facts[0].sentence
    text = hide(["a", "b", "c"], facts)
    assert text.split("\n\n") == ["a", facts[0].sentence, "b", facts[1].sentence, "c"]
    assert facts[0].answered_by(facts[0].sentence)
    fact = Fact("", "", "12345")
    assert fact.answered_by("It is 12,345.")
    assert not fact.answered_by("It is 54321.")
    assert Fact("", "", "velvet").answered_by("Velvet.")
