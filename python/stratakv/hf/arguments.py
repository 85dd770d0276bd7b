"""Checks of what users pass to a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stratakv.cache.store import Store
from stratakv.errors import SessionNotFoundError

PAGE_TOKENS_MAX = 4096
PRECISIONS = ("full", "mixed")


def check_config(config: Any) -> None:
    """Accepts anything with a text config, as models' configs have.

    Raises:
        ValueError: something else.
    """
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"config must be a transformers config such as model.config, not {type(config).__name__}"
        )


def check_page_tokens(page_tokens: int) -> None:
    """Accepts 1 to 4096.

    Raises:
        ValueError: anything else.
    """
    is_whole = isinstance(page_tokens, int) and not isinstance(page_tokens, bool)
    if not is_whole or not 1 <= page_tokens <= PAGE_TOKENS_MAX:
        raise ValueError(
            f"page_tokens={page_tokens!r}: accepted are whole numbers from 1 to {PAGE_TOKENS_MAX}"
        )


def is_gpu(device: torch.device) -> bool:
    """Whether a device has memory of its own, which the engine does not use."""
    return device.type not in {"cpu", "meta"}


def gpus_of(model: nn.Module) -> list[torch.device]:
    """The devices of a model's weights, on which hot tiers keep pages.

    Layers on the CPU are left to the engine, which attends there by itself.

    Raises:
        ValueError: there is no other.
    """
    devices = list(dict.fromkeys(weight.device for weight in model.parameters()))
    found = [device for device in devices if is_gpu(device)]
    if not found:
        where = ", ".join(map(str, devices)) or "no device"
        raise ValueError(
            f"hot= keeps pages in a GPU's memory, and the model is on {where}, where the engine attends by "
            "itself: leave it out"
        )
    return found


def is_mixed(
    precision: str | None, budget: object, saved: dict[str, Any] | None, *, is_attached: bool
) -> bool:
    """Whether a cache keeps planes: as it is told, as its session does, or where it selects.

    Raises:
        ValueError: another word, or planes for a model that is not attached.
    """
    if precision not in {None, *PRECISIONS}:
        raise ValueError(f"precision={precision!r}: accepted are {', '.join(map(repr, PRECISIONS))} and None")
    if precision == "mixed" and not is_attached:
        raise ValueError(
            'precision="mixed" needs keys without positions: open the cache inside '
            "`with stratakv.attach(model):`"
        )
    if precision is not None:
        return precision == "mixed"
    if saved is not None:
        return "planes" in saved.get("settings", {})
    return budget is not None and is_attached


def session_or_none(store: Store, name: str) -> dict[str, Any] | None:
    """What the store says of a session without reading it, if it has it."""
    try:
        return store.native.session_head(name)
    except SessionNotFoundError:
        return None


def one_row(input_ids: Tensor | list[int]) -> list[int]:
    """Ids of a single prompt.

    Raises:
        ValueError: an empty prompt, or a batch.
    """
    if isinstance(input_ids, Tensor):
        if input_ids.dim() == 2 and input_ids.shape[0] == 1:
            input_ids = input_ids[0]
        if input_ids.dim() != 1:
            raise ValueError(f"input_ids must be (N,) or (1, N), not {tuple(input_ids.shape)}")
        input_ids = input_ids.tolist()
    if not input_ids:
        raise ValueError("input_ids is empty: pass the whole prompt")
    return [int(token) for token in input_ids]


def common_prefix(first: list[int], second: list[int]) -> int:
    """How many leading items two lists share."""
    for place, (mine, theirs) in enumerate(zip(first, second, strict=False)):
        if mine != theirs:
            return place
    return min(len(first), len(second))
