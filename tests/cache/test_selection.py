"""What a selection accepts, and what it tells the engine."""

import pytest

from stratakv.cache.selection import Selection


def test_tokens_become_blocks_rounded_up():
    native = Selection(budget=1000, sinks=1, window=17, dense_below=5).native(8192)
    assert (native["blocks"], native["sinks"], native["window"]) == (63, 1, 2)
    assert (native["dense_below"], native["trained_tokens"]) == (5, 8192)
    assert native["recent"] == 1000 * 7 // 8 // 16
    assert Selection(budget=1000, recent=0.0).native(8192)["recent"] == 0


def test_short_contexts_are_read_whole_but_none_that_is_longer_than_the_trained_window():
    assert Selection(budget=1000).native(8192)["dense_below"] == 2000
    assert Selection(budget=8192).native(8192)["dense_below"] == 8192
    assert Selection(budget=1000, dense_below=9000).native(8192)["dense_below"] == 9000
    assert Selection(budget=1000).reads_all_of(2000, 8192)
    assert not Selection(budget=1000).reads_all_of(2000, 1999)


def test_a_number_is_a_budget_and_none_is_everything():
    assert Selection.of(512) == Selection(budget=512)
    assert Selection.of(None) is None
    mine = Selection(budget=512, unread=0.5)
    assert Selection.of(mine) is mine


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 100}, "need at least 160"),
        ({"budget": -1}, "budget=-1: accepted are whole numbers"),
        ({"budget": 512.5}, "budget=512.5"),
        ({"budget": True}, "budget=True"),
        ({"recent": 1.5}, "recent=1.5"),
        ({"recent": float("nan")}, "recent=nan"),
        ({"sinks": "many"}, "sinks='many'"),
        ({"dense_below": -5}, "dense_below=-5"),
        ({"unread": 1.5}, "unread=1.5: accepted are shares from 0 to 1"),
        ({"growth": 0.5}, "growth=0.5: accepted are factors from 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        Selection(**wrong)
