"""No call tells or changes what its scope does not cover, in files and in PostgreSQL."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratakv.engram import Engram, FunctionEmbedder, Scope
from stratakv.errors import MemoryNotFoundError

EMBEDDER = FunctionEmbedder(
    function=lambda texts: [[1.0, len(text) % 5, text.count("a")] for text in texts],
    identity="lengths",
    dimension=3,
)
PARTS = st.sampled_from([None, "x", "y"])
# A name that ends as another begins, and one that SQL would trip over.
SCOPES = st.builds(
    Scope,
    user=st.sampled_from(["ana", "ana ", "a'; --"]),
    agent=PARTS,
    project=PARTS,
    session=PARTS,
)


@dataclass(frozen=True)
class Call:
    what: str
    scope: Scope
    id: int


WRITES = ["remember"] * 6 + ["update", "end", "forget", "erase", "retain"]
CALLS = st.builds(
    Call,
    what=st.sampled_from([*WRITES, "list", "history", "recall", "stats"]),
    scope=SCOPES,
    id=st.integers(1, 9),
)


def covers(scope, other):
    return all(mine in (None, its) for mine, its in zip(scope.parts(), other.parts(), strict=True))


class Model:
    """All records by user and number: the scope that each is in, and the chain of versions that it is of."""

    def __init__(self):
        self.records = {}

    def covered(self, scope):
        return {key: one for key, one in self.records.items() if covers(scope, one[0])}

    def add(self, number, scope, chain=None):
        self.records[scope.user, number] = (scope, number if chain is None else chain)

    def erase(self, keys):
        for key in keys:
            del self.records[key]

    def versions(self, key):
        _, chain = self.records[key]
        return [one for one, (_, its) in self.records.items() if one[0] == key[0] and its == chain]


def run(memory, model, call):
    """Makes a call, and says of each memory that was told that it is covered."""
    scope, key = call.scope, (call.scope.user, call.id)
    of = dict(zip(("user", "agent", "project", "session"), scope.parts(), strict=True))
    covered = model.covered(scope)
    told = []
    if call.what == "remember":
        model.add(memory.remember(f"common fact of {scope}", **of), scope)
    elif call.what == "update":
        # What is not covered is not found, what was superseded is refused; nothing changes then.
        with contextlib.suppress(MemoryNotFoundError, ValueError):
            number = memory.update(call.id, f"common news for {scope}", **of)
            home, chain = covered[key]
            model.add(number, home, chain)
    elif call.what == "end":
        with contextlib.suppress(MemoryNotFoundError, ValueError):
            memory.end(call.id, **of)
            assert key in covered
    elif call.what == "forget":
        with contextlib.suppress(MemoryNotFoundError):
            gone = memory.forget(call.id, **of)
            versions = model.versions(key)
            assert key in covered
            assert gone == len(versions)
            model.erase(versions)
    elif call.what == "erase":
        assert memory.forget(everything=True, **of) == len(covered)
        model.erase(covered)
    elif call.what == "retain":
        memory.retain(max_count=call.id, **of)
        left = {(scope.user, one.id) for one in memory.list(past=True, **of)}
        assert len(left) <= call.id
        model.erase(set(covered) - left)
    elif call.what == "list":
        told = list(memory.list(past=True, **of))
        assert {(scope.user, one.id) for one in told} == set(covered)
    elif call.what == "history":
        with contextlib.suppress(MemoryNotFoundError):
            told = memory.history(call.id, **of)
            assert {(scope.user, one.id) for one in told} == set(model.versions(key))
    elif call.what == "recall":
        told = [one.memory for one in memory.recall("common fact", k=50, **of)]
        # All that is present has a vector, and so all of it is found.
        assert {one.id for one in told} == {one.id for one in memory.list(**of)}
    else:
        assert memory.stats(**of)["memories"] == len(covered)
    assert all(covers(scope, one.scope) for one in told)
    assert all(covered[scope.user, one.id][0] == one.scope for one in told)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(calls=st.lists(CALLS, min_size=5, max_size=40))
def test_no_call_tells_of_another_scope(make_place, calls):
    model = Model()
    with Engram.open(make_place(), embedder=EMBEDDER, durable=False) as memory:
        for call in calls:
            run(memory, model, call)
        for user in {call.scope.user for call in calls}:
            run(memory, model, Call("list", Scope(user=user), 1))
        assert memory.users() == sorted({user for user, _ in model.records})


def test_another_scope_changes_no_score(place):
    """Words and counts of another scope, and of another user, are counted nowhere."""
    with Engram.open(place, embedder=None, durable=False) as memory:
        memory.remember_many(["the red door", "a blue door", "green grass"], user="ana", project="shop")
        before = memory.recall("red door", user="ana", project="shop")
        more = [f"red red door {number}" for number in range(50)]
        memory.remember_many(more, user="ana", project="blog")
        memory.remember_many(more, user="bob", project="shop")
        after = memory.recall("red door", user="ana", project="shop")
    assert [replace(one, memory=None) for one in after] == [replace(one, memory=None) for one in before]
