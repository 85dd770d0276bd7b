"""What a session keeps beside its pages: geometry, padding, and the layers that are not paged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stratakv.cache.page_table import LayerGeometry, PageTable
from stratakv.errors import CorruptError
from stratakv.hf.layer_state import decode_layers, encode_layers
from stratakv.hf.tokens import MASKED_BIT

VERSION = 1


@dataclass(frozen=True)
class SessionState:
    """What `decode` found: padding of the held tokens, and the first token that depends on more than ids."""

    mask: Tensor | None
    salted_from: int | None


def encode(table: PageTable, other_layers: dict[int, Any], salted_from: int | None) -> bytes:
    """Packs it for the engine to keep.

    Raises:
        ValueError: a layer whose state has no encoding.
    """
    geometry = [None if g is None else asdict(g) | {"dtype": str(g.dtype)} for g in table.geometry]
    header = {"version": VERSION, "geometry": geometry, "salted_from": salted_from}
    return encode_layers(other_layers, header)


def decode(
    data: bytes, table: PageTable, other_layers: dict[int, Any], device_of: Callable[[int], torch.device]
) -> SessionState:
    """Puts a loaded session's geometry and layer states in place.

    Args:
        data: what `encode` gave.
        table: the loaded pages.
        other_layers: fresh layers by index, to be filled.
        device_of: where a layer of an index lives.

    Raises:
        CorruptError: damaged, of a later version, or of other layers.
    """
    try:
        header = _checked(decode_layers(data, other_layers, device_of))
        geometry = [_geometry(entry) for entry in header["geometry"]]
        salted_from = header["salted_from"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the session's state beside its pages cannot be read: {error}") from error
    table.geometry = geometry
    return SessionState(padding_of(table), salted_from)


def _checked(header: dict[str, Any]) -> dict[str, Any]:
    if header["version"] != VERSION:
        raise ValueError(f"it is of version {header['version']}, this library reads {VERSION}")
    return header


def padding_of(table: PageTable) -> Tensor | None:
    """(B, S) bool from the marks on the noted ids; None where nothing is masked."""
    rows = [table.native.token_ids(row) or [] for row in range(table.num_rows)]
    if not any(token & MASKED_BIT for row in rows for token in row):
        return None
    return torch.tensor([[not token & MASKED_BIT for token in row] for row in rows])


def _geometry(entry: dict[str, Any] | None) -> LayerGeometry | None:
    if entry is None:
        return None
    dtype = getattr(torch, str(entry["dtype"]).removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {entry['dtype']}")  # noqa: TRY004
    return LayerGeometry(int(entry["num_heads"]), int(entry["key_dim"]), int(entry["value_dim"]), dtype)
