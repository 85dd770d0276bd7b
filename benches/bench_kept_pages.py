"""Memories that are recalled with their pages, beside computing them again.

Set-up: a session of 600 tokens of prose (a handbook), then three recalled texts, each prose of its own with
one fact somewhere in it ("The serial number of the harp is NNNNN."), then a question about one of the facts,
answered greedily. Computed: the model reads all of it. From pages: each text was computed once, alone, and
its pages are spliced in by `KeptPages`.
"""

from __future__ import annotations

import functools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benches.bench_decode import load, prefill
from benches.harness import Result, figure
from benches.texts import prose

THINGS = ["telescope", "violin", "bicycle", "lantern", "camera", "kettle", "globe", "harp", "canoe", "anvil"]
HEAD_TOKENS = 600
NUM_TEXTS = 3
TIMED_TOKENS, ROUNDS = 1000, 7
ASKED_TOKENS, TRIALS = 200, 40
ANSWER_TOKENS = 28


class Texts:
    """Prose in pieces of a length, and questions about facts in it; the same each time."""

    def __init__(self, tokenizer: Any) -> None:
        from stratakv.cli.prompts import MARK, encode, encode_text, notes_start

        self.chance = random.Random(11)
        self.paragraphs = [
            part.strip() for chapter in prose() for part in chapter.split("\n\n") if len(part) > 200
        ]
        self.encode = functools.partial(encode_text, tokenizer)
        message = [{"role": "user", "content": MARK}]
        frame = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        self.behind = notes_start(tokenizer)
        self.before, self.after = (encode(tokenizer, part) for part in frame.split(MARK))

    def some(self, tokens: int) -> list[str]:
        """Paragraphs of about so many tokens."""
        place = self.chance.randrange(len(self.paragraphs) - 60)
        chosen, left = [], tokens
        for paragraph in self.paragraphs[place : place + 60]:
            length = len(self.encode(paragraph))
            if length < left:
                chosen.append(paragraph)
                left -= length
        return chosen

    def trial(self, tokens: int) -> tuple[list[int], list[list[int]], list[int], str]:
        """The ids of a session's beginning, of the texts and of a question; and the number asked for."""
        numbers = ["".join(self.chance.sample("123456789", 5)) for _ in range(NUM_TEXTS)]
        things = self.chance.sample(THINGS, NUM_TEXTS)
        texts = []
        for thing, number in zip(things, numbers, strict=True):
            paragraphs = self.some(tokens)
            fact = f"The serial number of the {thing} is {number}."
            paragraphs.insert(self.chance.randrange(len(paragraphs) + 1), fact)
            texts.append(self.encode("\n\n".join(paragraphs) + "\n\n"))
        asked = self.chance.randrange(NUM_TEXTS)
        question = self.encode(f"Question: What is the serial number of the {things[asked]}?")
        head = self.before + self.encode("\n\n".join(self.some(HEAD_TOKENS)) + "\n\n")
        return head, texts, question + self.after, numbers[asked]


@contextmanager
def kept_pages(model: Any, behind: list[int]) -> Iterator[tuple[Any, Any]]:
    """Pages beside memories that are thrown away at the end."""
    import stratakv

    with (
        tempfile.TemporaryDirectory() as directory,
        stratakv.Engram.open(directory, embedder=None) as memory,
        stratakv.KeptPages(memory, model, user="ana", behind=behind) as pages,
    ):
        yield memory, pages


@figure(
    "kept_pages_over_prefill",
    "three recalled texts of 1,000 tokens put into a session from their pages",
    unit="times the speed of computing them",
    target=10,
    peer="the same texts computed behind the same session, same cache",
    limit="two copies of the keys and values at the memory's bandwidth",
)
def kept_pages_over_prefill() -> Result:
    import stratakv

    loaded = load("bfloat16")
    model = loaded.model
    source = Texts(loaded.tokenizer)
    head, texts, *_ = source.trial(TIMED_TOKENS)
    pairs = []
    with stratakv.attach(model), kept_pages(model, source.behind) as (memory, pages):
        ids = [memory.remember(f"text {number}", user="ana") for number in range(NUM_TEXTS)]
        with stratakv.TieredCache.open(model, None, ram="1GiB") as session:
            prefill(model, session, head)
            # The texts are computed and kept here.
            put_seconds(session, pages, ids, texts)
            for _ in range(ROUNDS):
                pairs.append(
                    (computed_seconds(model, session, texts), put_seconds(session, pages, ids, texts))
                )
        kept_bytes = pages.used_bytes()
    details = {
        "computed_s": round(statistics.median(computed for computed, _ in pairs), 3),
        "from_pages_s": round(statistics.median(put for _, put in pairs), 3),
        "tokens": sum(map(len, texts)),
        "kept_bytes": kept_bytes,
    }
    return Result([computed / put for computed, put in pairs], details)


def computed_seconds(model: Any, session: Any, texts: list[list[int]]) -> float:
    with session.fork() as cache:
        start = time.perf_counter()
        for text in texts:
            prefill(model, cache, text)
        return time.perf_counter() - start


def put_seconds(session: Any, pages: Any, ids: list[int], texts: list[list[int]]) -> float:
    with session.fork() as cache:
        start = time.perf_counter()
        for id, text in zip(ids, texts, strict=True):
            pages.put(cache, text, id=id)
        return time.perf_counter() - start


@functools.cache
def answers() -> list[tuple[bool, bool, float]]:
    """For each trial: found when computed, found from pages, and the KL divergence of what follows."""
    import stratakv

    loaded = load("float32")
    model = loaded.model
    source = Texts(loaded.tokenizer)
    found = []
    with stratakv.attach(model), kept_pages(model, source.behind) as (memory, pages):
        for _ in range(TRIALS):
            head, texts, question, number = source.trial(ASKED_TOKENS)
            ids = [memory.remember(f"text {place}", user="ana") for place in range(len(texts))]
            with stratakv.TieredCache.open(model, None, ram="1GiB") as session:
                prefill(model, session, head)
                with session.fork() as computed:
                    for text in texts:
                        prefill(model, computed, text)
                    expected_TV, expected = answer(loaded, computed, question)
                for id, text in zip(ids, texts, strict=True):
                    pages.put(session, text, id=id)
                spliced_TV, spliced = answer(loaded, session, question)
            distance = (expected_TV.exp() * (expected_TV - spliced_TV)).sum(-1).mean()
            found.append((number in expected, number in spliced, float(distance)))
    return found


@torch.inference_mode()
def answer(loaded: Any, cache: Any, question: list[int]) -> tuple[torch.Tensor, str]:
    """The log-probabilities (T, V) after each token of the question, and what is answered greedily."""
    from stratakv.hf.compat import cache_kwargs

    def logits_of(ids: list[int]) -> torch.Tensor:
        logits_TV: torch.Tensor = loaded.model(
            input_ids=torch.tensor([ids]), use_cache=True, **cache_kwargs(cache)
        ).logits[0]
        return logits_TV

    first_TV = logits_TV = logits_of(question)
    tokens: list[int] = []
    while len(tokens) < ANSWER_TOKENS and int(logits_TV[-1].argmax()) not in loaded.stop_ids:
        tokens.append(int(logits_TV[-1].argmax()))
        logits_TV = logits_of(tokens[-1:])
    return first_TV.log_softmax(-1), loaded.tokenizer.decode(tokens)


@figure(
    "kept_pages_facts",
    "facts found in three recalled texts of 200 tokens that are put into a session from their pages",
    unit="of all",
    target=None,
    peer="the same texts computed behind the same session (in the details)",
    limit="what the model finds when it computes them",
)
def kept_pages_facts() -> Result:
    found = answers()
    details = {
        "computed": sum(computed for computed, *_ in found) / len(found),
        "trials": len(found),
        "kl": round(statistics.mean(distance for *_, distance in found), 4),
    }
    return Result([sum(spliced for _, spliced, _ in found) / len(found)], details)
