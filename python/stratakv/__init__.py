"""StrataKV: a tiered KV cache that gives any Hugging Face model a long memory.

    import stratakv
    cache = stratakv.TieredCache(model.config, ram="4GiB", disk="sessions/")
    model.generate(**inputs, cache=cache)  # before transformers 5.24: past_key_values=cache

Importing this module imports neither torch nor transformers; each public name brings what
it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratakv import fp8 as fp8
    from stratakv import nn as nn
    from stratakv._native import __version__ as __version__
    from stratakv.cache.selection import Look as Look
    from stratakv.cache.selection import Selection as Selection
    from stratakv.cache.store import Store as Store
    from stratakv.engram import AssistantMemory as AssistantMemory
    from stratakv.engram import Engram as Engram
    from stratakv.errors import StrataError as StrataError
    from stratakv.hf import KeptPages as KeptPages
    from stratakv.hf import TieredCache as TieredCache
    from stratakv.hf import attach as attach

_HOMES = {
    "TieredCache": "stratakv.hf",
    "KeptPages": "stratakv.hf",
    "attach": "stratakv.hf",
    "Look": "stratakv.cache.selection",
    "Selection": "stratakv.cache.selection",
    "Store": "stratakv.cache.store",
    "AssistantMemory": "stratakv.engram",
    "Engram": "stratakv.engram",
    "StrataError": "stratakv.errors",
    "__version__": "stratakv._native",
}

# Sub-packages that are names of their own, as in `stratakv.fp8.convert(model)`.
_PACKAGES = frozenset({"fp8", "nn"})

__all__ = [
    "AssistantMemory",
    "Engram",
    "KeptPages",
    "Look",
    "Selection",
    "Store",
    "StrataError",
    "TieredCache",
    "__version__",
    "attach",
    "fp8",
    "nn",
]


def __getattr__(name: str) -> Any:
    """Imports a public name's module on first use."""
    if name in _PACKAGES:
        return import_module(f"stratakv.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'stratakv' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
