"""The same calls on files and on PostgreSQL tell the same: every memory, every version, every score."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratakv.engram import Engram, FunctionEmbedder

DIMENSION = 6
THEN = datetime(2023, 5, 7, tzinfo=UTC)
# Directions are kept in 16 bits: each in files, sums of them in PostgreSQL.
TOLERANCE = 2e-3


def _vectors(texts):
    seeds = [[ord(character) for character in text] for text in texts]
    return np.stack([np.random.default_rng(seed).standard_normal(DIMENSION) for seed in seeds])


EMBEDDER = FunctionEmbedder(function=_vectors, identity="drawn", dimension=DIMENSION)

WORDS = st.sampled_from(["cat", "cats", "door", "the", "Bob", "last week", "May", "2023", "grün", "東京"])
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
SAID = TEXTS.flatmap(lambda text: st.sampled_from([text, text + "?"]))
SCOPES = st.fixed_dictionaries(
    {}, optional={"project": st.sampled_from("xy"), "session": st.sampled_from("st")}
)
DAYS = st.integers(-400, 400)
REMEMBER = st.tuples(
    st.just("remember"),
    SCOPES,
    st.lists(st.tuples(SAID, st.sampled_from([None, "Bob", "Ana"])), min_size=1, max_size=9),
    DAYS,
)
CHANGES = st.one_of(
    st.tuples(st.just("update"), st.integers(0, 30), SAID, DAYS),
    st.tuples(st.just("end"), st.integers(0, 30), DAYS),
    st.tuples(st.just("forget"), st.integers(0, 30)),
    st.tuples(st.just("retain"), SCOPES, st.integers(2, 12)),
)


def _apply(memory, change, numbers):
    """Makes a change; `numbers` are those that were given, of which a change takes any."""
    kind, *what = change
    if kind == "remember":
        scope, said, days = what
        texts, authors = zip(*said, strict=True)
        valid_from = THEN + timedelta(days=days)
        # Equal texts would have equal cosines, of which rounding alone makes a first and a last.
        texts = [f"{text} n{len(numbers) + at}" for at, text in enumerate(texts)]
        return memory.remember_many(texts, user="ana", authors=list(authors), valid_from=valid_from, **scope)
    if kind == "retain":
        scope, count = what
        return memory.retain(user="ana", max_count=count, **scope)
    number = numbers[what[0] % len(numbers)]
    try:
        if kind == "update":
            return memory.update(number, what[1], user="ana", valid_from=THEN + timedelta(days=what[2]))
        if kind == "end":
            return memory.end(number, user="ana", valid_to=THEN + timedelta(days=what[1]))
        return memory.forget(number, user="ana")
    except (KeyError, ValueError) as error:
        return type(error), str(error)


def _plain(memory):
    """A memory without what depends on the moment of the call."""
    return replace(memory, recorded=None, closed=None if memory.closed is None else THEN)


def _check_same(files, database, query, *, k, **options):
    """Both find the same; of what has nearly one score, in any order."""
    everything = files.recall(query, user="ana", k=1000, **options)
    mine, theirs = (one.recall(query, user="ana", k=k, **options) for one in (files, database))
    # A score tells where a cosine is between the least and the most: the nearer they are, the less exactly.
    cosines = [one.parts["cosine_window"] for one in everything] or [0.0]
    scores = TOLERANCE * max(1.0, 0.5 / (max(cosines) - min(cosines) + 1e-9))
    assert [one.score for one in mine] == pytest.approx([one.score for one in theirs], abs=scores)
    by_id = {one.memory.id: one for one in mine}
    edge = min((one.score for one in mine), default=0)
    for one in theirs:
        same = by_id.get(one.memory.id)
        if same is None:
            # What is last may be another of the same score.
            assert one.score == pytest.approx(edge, abs=scores)
            continue
        assert one.parts == pytest.approx(same.parts, abs=TOLERANCE)
        assert _plain(one.memory) == _plain(same.memory)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    first=REMEMBER,
    changes=st.lists(st.one_of(REMEMBER, CHANGES), max_size=12),
    queries=st.lists(TEXTS, min_size=1, max_size=3),
    scope=SCOPES,
    as_of=st.none() | DAYS,
)
def test_the_same_calls_tell_the_same(tmp_path, make_database, first, changes, queries, scope, as_of):
    tmp_path = tmp_path / str(len(list(tmp_path.iterdir())))
    with (
        Engram.open(tmp_path, embedder=EMBEDDER, durable=False) as files,
        Engram.open(make_database(), embedder=EMBEDDER, durable=False) as database,
    ):
        numbers = []
        for change in [first, *changes]:
            told = _apply(files, change, numbers)
            assert _apply(database, change, numbers) == told
            numbers += told if isinstance(told, list) else []
        time = None if as_of is None else THEN + timedelta(days=as_of)
        for options in ({}, {"as_of": time}, {"past": True}, scope):
            mine = [_plain(one) for one in files.list(user="ana", **options)]
            assert [_plain(one) for one in database.list(user="ana", **options)] == mine
        for number in numbers:
            mine, theirs = (_history(one, number) for one in (files, database))
            assert mine == theirs
        stats = (one.stats(user="ana", **scope) for one in (files, database))
        mine, theirs = ([one[name] for name in ("memories", "present", "vectors")] for one in stats)
        assert mine == theirs
        for query in queries:
            for k in (3, 100):
                _check_same(files, database, query, k=k, as_of=time, **scope)
        weights = {"bm25": 0.5, "cosine": 0.3, "bm25_window": 0.0}
        _check_same(files, database, queries[0], k=100, weights=weights)


def _history(memory, number):
    try:
        return [_plain(one) for one in memory.history(number, user="ana")]
    except KeyError as error:
        return str(error)


@pytest.mark.parametrize("dimension", [2, 300])
def test_more_than_are_rated(tmp_path, make_database, dimension):
    """Of more memories than the pool has, the best by words and the nearest are rated by both."""
    embedder = FunctionEmbedder(
        function=lambda texts: np.stack(
            [np.random.default_rng([ord(c) for c in text]).standard_normal(dimension) for text in texts]
        ),
        identity="random",
        dimension=dimension,
    )
    texts = [f"w{number % 7}x w{number % 11}x w{number % 13}x n{number}" for number in range(600)]
    with (
        Engram.open(tmp_path, embedder=embedder, durable=False) as files,
        Engram.open(make_database(), embedder=embedder, durable=False) as database,
    ):
        for memory in (files, database):
            memory.remember_many(texts[:300], user="ana", session="s", valid_from=THEN)
            memory.remember_many(texts[300:], user="ana", valid_from=THEN)
        for query in ("w1x w2x w3x", "w6x n599", "nothing"):
            _check_same(files, database, query, k=10)
