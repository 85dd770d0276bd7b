"""The engine's eviction policies, for tiers that are not its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv import _native
from stratakv.cache.store import POLICIES


def key(number):
    return number.to_bytes(16, "little")


def test_least_recently_read_leaves_first():
    policy = _native.Policy("lru", capacity_pages=4)
    policy.insert([key(i) for i in range(4)], 100)
    policy.touch([key(0)])
    assert policy.admit([key(9)]) == [True]
    assert policy.evict(2, keep=[key(1)]) == [key(2), key(3)]
    assert len(policy) == 2
    policy.remove([key(0), key(7)])
    assert policy.evict(5, keep=[]) == [key(1)]


@pytest.mark.parametrize("name", POLICIES)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["insert", "touch", "remove", "admit", "evict"]), st.sets(st.integers(0, 12))
        ),
        max_size=30,
    )
)
def test_every_policy_tracks_what_is_resident(name, steps):
    policy = _native.Policy(name, capacity_pages=6)
    resident = set()
    for step, numbers in steps:
        keys = [key(number) for number in sorted(numbers)]
        if step == "insert":
            policy.insert(keys, 64)
            resident |= set(keys)
        elif step == "touch":
            policy.touch(keys)
        elif step == "remove":
            policy.remove(keys)
            resident -= set(keys)
        elif step == "admit":
            missing = [one for one in keys if one not in resident]
            assert len(policy.admit(missing)) == len(missing)
        else:
            evicted = policy.evict(2, keep=keys)
            assert len(set(evicted)) == len(evicted) == min(2, len(resident - set(keys)))
            assert set(evicted) <= resident - set(keys)
            resident -= set(evicted)
        assert len(policy) == len(resident)


def test_names_and_keys_are_checked():
    assert _native.Policy(capacity_pages=1).name == "tiny-lirs"
    with pytest.raises(ValueError, match="choose one of lru"):
        _native.Policy("oldest", capacity_pages=1)
    with pytest.raises(ValueError, match="16"):
        _native.Policy(capacity_pages=1).touch([b"short"])
