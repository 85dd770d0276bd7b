"""Twins for asyncio: the method's arguments and result, in another thread, a subclass's own method first."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from stratakv.engram.threads import in_thread


class Base:
    def find_(self, text, *, k=1):
        if k < 1:
            raise ValueError(f"k={k}")
        return type(self).__name__, text, k, threading.current_thread()

    afind = in_thread(find_)


class Own(Base):
    def find_(self, text, **options):
        return ("own", *super().find_(text, **options))


def test_a_twin_is_the_method_in_a_thread():
    who, text, k, thread = asyncio.run(Base().afind("tea", k=2))
    assert (who, text, k) == ("Base", "tea", 2)
    assert thread is not threading.current_thread()
    assert asyncio.run(Own().afind("tea"))[:3] == ("own", "Own", "tea")
    with pytest.raises(ValueError, match="k=0"):
        asyncio.run(Base().afind("tea", k=0))


def test_a_twin_tells_what_it_is():
    assert inspect.iscoroutinefunction(Base().afind)
    assert inspect.signature(Base.afind) == inspect.signature(Base.find_)
    assert (Base.afind.__qualname__, Base.afind.__doc__) == ("Base.afind", "As `find_`, in a thread.")
