"""Twins of methods for programs that run on asyncio: the same calls, in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Args = ParamSpec("Args")
Result = TypeVar("Result")


def in_thread(
    method: Callable[Concatenate[Owner, Args], Result],
) -> Callable[Concatenate[Owner, Args], Coroutine[Any, Any, Result]]:
    """The method as a coroutine with the same arguments; where a subclass has its own, that one."""
    name = method.__name__

    async def twin(self: Owner, /, *args: Args.args, **options: Args.kwargs) -> Result:
        own: Callable[Args, Result] = getattr(self, name)
        return await asyncio.to_thread(own, *args, **options)

    update_wrapper(twin, method)
    twin.__name__ = f"a{name.rstrip('_')}"
    twin.__qualname__ = f"{method.__qualname__.rpartition('.')[0]}.{twin.__name__}"
    twin.__doc__ = f"As `{name}`, in a thread."
    return twin
