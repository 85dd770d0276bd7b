"""Which tokens a forward pass adds, and what else determines their keys and values.

A page is shared between sessions by the ids of its tokens, so ids are noted with everything
that could make equal ids mean different values: padding (a masked token's id gets its top bit
set), positions other than the usual ones, images and any other tensor that the model is given.
What cannot be described is not noted: its pages stay private.

Letters: B rows, T new tokens, S tokens held before them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MASKED_BIT = 1 << 31

# Arguments of forward passes that do not change keys and values, or are looked at on their own.
_HARMLESS = {
    "attention_mask",
    "cache",
    "cache_position",
    "input_ids",
    "labels",
    "logits_to_keep",
    "num_items_in_batch",
    "num_logits_to_keep",
    "past_key_values",
    "position_ids",
    "return_dict",
    "use_cache",
}
_HARMLESS_PREFIXES = ("output_", "return_")


@dataclass(frozen=True)
class Note:
    """New tokens of every row, their salts, and the (B, S + T) bool mask; None where nothing is masked."""

    ids: list[list[int]]
    salts: list[bytes]
    mask: Tensor | None

    @property
    def is_salted(self) -> bool:
        """Whether something besides ids and padding determines the values."""
        return any(self.salts)


def describe(arguments: dict[str, Any], held: int, held_mask: Tensor | None) -> Note | None:
    """The tokens of one forward pass.

    Args:
        arguments: the forward pass's arguments by name.
        held: S, tokens in the cache.
        held_mask: (B, S) bool, the padding that earlier passes were noted with; None for none.

    Returns:
        None where ids do not say what is computed (embeddings, several codebooks, negative ids).
    """
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or arguments.get("inputs_embeds") is not None:
        return None
    num_rows, num_new = ids.shape
    if num_new == 0 or int(ids.min()) < 0 or int(ids.max()) >= MASKED_BIT:
        return None
    mask = _padding(arguments.get("attention_mask"), num_rows, held + num_new)
    digest = hashlib.blake2b(digest_size=16)
    salted = _hash_custom_mask(digest, arguments.get("attention_mask"), mask)
    salted |= _hash_changed_padding(digest, mask, held_mask, held)
    salted |= _hash_positions(digest, arguments.get("position_ids"), mask, held, num_new)
    salted |= _hash_others(digest, arguments)
    marked = ids.to("cpu", torch.int64)
    if mask is not None:
        marked = torch.where(mask[:, held:], marked, marked | MASKED_BIT)
    salts = [digest.digest() + row.to_bytes(4, "little") if salted else b"" for row in range(num_rows)]
    return Note(marked.tolist(), salts, mask)


def repeated_ranges(arguments: dict[str, Any], held: int) -> list[tuple[int, int]]:
    """Which held tokens a pass would be repeating, if its ids are theirs.

    `generate` passes the whole prompt again when the cache leaves nothing to compute, at once or
    in chunks. Its mask then ends before the tokens that it would add; without a mask, its
    positions do.

    Args:
        arguments: the forward pass's arguments by name.
        held: tokens in the cache.

    Returns:
        Ranges as first token and one past the last; none for a pass that goes on after the held tokens.
    """
    ids = arguments.get("input_ids")
    if held == 0 or not isinstance(ids, Tensor) or ids.dim() != 2:
        return []
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    num_new = ids.shape[1]
    if isinstance(mask, Tensor) and mask.dim() == 2:
        stop = mask.shape[1]
    elif mask is None and isinstance(positions, Tensor) and positions.dim() == 2:
        # Chunks of a covered prompt come with the empty rest of its positions.
        stop = (int(positions.min()) if positions.numel() else 0) + num_new
    else:
        return []
    return [(stop - num_new, stop), (0, num_new)] if num_new <= stop <= held else []


def plain_ids(ids: list[int]) -> list[int]:
    """Noted ids without their padding marks."""
    return [token & ~MASKED_BIT for token in ids]


def _padding(mask: Any, num_rows: int, total: int) -> Tensor | None:
    """(B, S + T) bool on the CPU; None where a mask excludes nothing or is no padding mask."""
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (num_rows, total):
        return None
    seen = mask.to("cpu") != 0
    return None if bool(seen.all()) else seen


def _hash_custom_mask(digest: Any, mask: Any, padding: Tensor | None) -> bool:
    """Masks of other shapes are hashed whole."""
    if padding is not None or mask is None:
        return False
    if isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask != 0).all()):
        return False
    return _hash_value(digest, "attention_mask", mask)


def _hash_changed_padding(digest: Any, mask: Tensor | None, held_mask: Tensor | None, held: int) -> bool:
    """Held tokens that are masked now but were not when they were noted, or the other way round."""
    if held == 0 or (mask is None and held_mask is None):
        return False
    now = None if mask is None else mask[:, :held]
    if now is None:
        changed = held_mask is not None and not bool(held_mask.all())
    elif held_mask is None:
        changed = not bool(now.all())
    else:
        changed = now.shape != held_mask.shape or not torch.equal(now, held_mask)
    if not changed:
        return False
    return _hash_value(digest, "changed_padding", torch.ones(held, dtype=torch.bool) if now is None else now)


def _hash_positions(digest: Any, positions: Any, mask: Tensor | None, held: int, num_new: int) -> bool:
    """Positions other than 0, 1, 2, ... over the unmasked tokens."""
    if not isinstance(positions, Tensor) or positions.shape[-1] != num_new:
        return False if positions is None else _hash_value(digest, "position_ids", positions)
    positions = positions.to("cpu")
    if mask is None:
        usual = torch.arange(held, held + num_new)
        if bool((positions == usual).all()):
            return False
    else:
        usual = mask.long().cumsum(-1)[:, held:] - 1
        if bool(((positions == usual) | ~mask[:, held:]).all()):
            return False
    return _hash_value(digest, "position_ids", positions)


def _hash_others(digest: Any, arguments: dict[str, Any]) -> bool:
    """Every tensor that is not known to be harmless: images, sound, features, token types."""
    found = False
    for name in sorted(arguments):
        if name not in _HARMLESS and not name.startswith(_HARMLESS_PREFIXES):
            value = arguments[name]
            if name.endswith("token_type_ids") and isinstance(value, Tensor) and not bool(value.any()):
                continue
            found |= _hash_value(digest, name, value)
    return found


def _hash_value(digest: Any, name: str, value: Any) -> bool:
    """Adds the tensors in a value; whether there were any."""
    if isinstance(value, Tensor):
        flat = value.detach().to("cpu").contiguous().reshape(-1)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy())
        return True
    if isinstance(value, dict):
        items = [(f"{name}.{key}", value[key]) for key in sorted(value, key=str)]
    elif isinstance(value, list | tuple):
        items = [(f"{name}.{place}", item) for place, item in enumerate(value)]
    else:
        return False
    found = [_hash_value(digest, path, item) for path, item in items]
    return any(found)
