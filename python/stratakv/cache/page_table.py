"""Keys and values of one sequence batch in the engine's pages, by layer slot.

Shapes: B rows, H key/value heads, T tokens, Dk and Dv head dims of keys and values.
A slot is the index of a paged layer among the paged layers of a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stratakv import _native
from stratakv.cache.rotary import Rotary
from stratakv.cache.selection import BLOCK_TOKENS, Selection
from stratakv.cache.store import Store

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LayerGeometry:
    """What one layer's keys and values look like."""

    num_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> LayerGeometry:
        """Geometry of (B, H, T, Dk) keys and (B, H, T, Dv) values.

        Raises:
            ValueError: other ranks, unequal batch, heads or tokens, or a dtype that pages cannot hold.
        """
        if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                "keys and values must be (B, H, T, D) with equal B, H and T: got "
                f"{tuple(keys.shape)} and {tuple(values.shape)}"
            )
        if keys.dtype != values.dtype or keys.dtype not in DTYPES:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(
                f"keys of {keys.dtype} and values of {values.dtype}: both must be one of {accepted}"
            )
        return cls(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype)

    def token_bytes(self, num_rows: int) -> int:
        """Bytes of one token's keys and values in `num_rows` rows."""
        return num_rows * self.num_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class DeviceTier(Protocol):
    """What keeps a table's pages on a device and attends there (`stratakv.attention.device`)."""

    def serves(self, slot: int, num_new: int, device: torch.device) -> bool:
        """Whether it attends for so many new tokens of a slot."""

    def attend(self, slot: int, query_BQTD: Tensor, scale: float) -> Tensor:
        """Causal attention of the last T tokens, which have no positions: (B, Q, T, Dv)."""

    def attended(self, slot: int) -> bool:
        """Whether the slot's last attention was a step of this tier."""

    def forget(self, slot: int) -> None:
        """It was not."""

    def selected(self, slot: int) -> tuple[float, float] | None:
        """As `KvCache.selected`, of its own last step."""

    def read_blocks(self, slot: int) -> list[list[list[int]]] | None:
        """As `KvCache.read_blocks`."""

    def read_shares(self, slot: int) -> list[list[list[float]]] | None:
        """As `KvCache.read_shares`."""

    def settle(self) -> None:
        """Waits for what it reads of the table behind the caller's back."""

    def stats(self) -> dict[str, Any]:
        """What it holds and counted."""

    def fork(self, table: PageTable) -> DeviceTier:
        """The same for a fork of the table."""


class PageTable:
    """The engine's page table of one batch, with tensors of any device going in and out.

    Every change other than an append moves `epoch` on, so that a `Snapshot` taken before it
    can tell that it no longer describes the table.

    With a `rotary`, keys and queries come without positions and are attended to at their
    positions in the sequence; keys are stored turned by their offset inside the page. With `planes`,
    full pages are kept as FP8 codes and residuals, which needs a rotary.
    """

    def __init__(
        self,
        store: Store,
        *,
        num_slots: int,
        page_tokens: int,
        identity: bytes | None = None,
        settings: dict[str, str] | None = None,
        rotary: Rotary | None = None,
        planes: bool = False,
    ) -> None:
        if num_slots:
            self._kv: _native.KvCache | None = _native.KvCache(
                store.native,
                num_layers=num_slots,
                page_tokens=page_tokens,
                identity=identity,
                settings=settings,
                rotary=None if rotary is None else (list(rotary.inv_freq), rotary.interleaved),
                planes=planes,
            )
        else:
            self._kv = None
        self.num_slots = num_slots
        self.page_tokens = page_tokens
        self.rotary = rotary
        self.planes = planes
        self.reads_disk = store.settings.directory is not None
        self.geometry: list[LayerGeometry | None] = [None] * num_slots
        # Where each slot's tensors last came from; None before the first.
        self.devices: list[torch.device | None] = [None] * num_slots
        self.epoch = 0
        self.selection: Selection | None = None
        self.dense_prefill_below: float = math.inf
        self.trained_tokens = 0
        # What is read whatever is selected: for each row its blocks, and how many of its own a head reads.
        self.focused: list[list[int]] = []
        self.focus_own = 0
        self.focus_since: int | None = None
        self.hot: DeviceTier | None = None

    @property
    def native(self) -> _native.KvCache:
        """The engine's table.

        Raises:
            ValueError: closed, or a model without paged layers.
        """
        if self._kv is None:
            raise ValueError("this cache is closed, or none of the model's layers is a full-attention layer")
        return self._kv

    @property
    def is_open(self) -> bool:
        """Whether there is a table to use."""
        return self._kv is not None

    @property
    def num_rows(self) -> int:
        """Batch rows; 0 while empty."""
        return self.native.num_rows

    def length(self, slot: int) -> int:
        """Tokens per row in one slot."""
        return self.native.length(slot)

    def min_length(self) -> int:
        """Tokens that every slot holds."""
        return min((self.native.length(slot) for slot in range(self.num_slots)), default=0)

    def append(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Adds (B, H, T, Dk) keys and (B, H, T, Dv) values of any device, without their gradients.

        Raises:
            ValueError: shapes or dtypes that pages cannot hold, or other than those held already.
        """
        geometry = LayerGeometry.of(keys, values)
        held = self.geometry[slot]
        if held is not None and held != geometry and self.length(slot):
            raise ValueError(f"this layer holds {held}; {geometry} cannot be appended")
        self.native.append(slot, _row_major(keys), _row_major(values))
        self.geometry[slot] = geometry
        self.devices[slot] = keys.device

    def snapshot(self, slot: int, device: torch.device) -> Snapshot:
        """What the slot holds now, to be read on `device`.

        Raises:
            ValueError: nothing was appended to the slot yet.
        """
        geometry = self.geometry[slot]
        if geometry is None:
            raise ValueError(f"layer slot {slot} holds no keys and values yet")
        return Snapshot(self, slot, geometry, device)

    def select(self, selection: Selection | None, trained_tokens: int) -> None:
        """From now on reads what the selection says of long contexts; None reads everything.

        Raises:
            ValueError: a table without a rotary, or pages that are not whole blocks.
        """
        self.selection = selection
        self.trained_tokens = trained_tokens
        if selection is None:
            self.native.select_all()
            self.dense_prefill_below = math.inf
        else:
            arguments = selection.native(trained_tokens)
            self.native.select(**arguments)
            self.dense_prefill_below = arguments["dense_prefill_below"]

    def focus(self, rows: list[list[int]], own: int, since: int | None = None) -> None:
        """The body of `TieredCache.focus`, for every row; no rows for none. `since` is a block."""
        self.native.focus(rows, own, since)
        self.focused, self.focus_own = [sorted(set(blocks)) for blocks in rows], own
        self.focus_since = since

    def selected(self) -> tuple[float, float] | None:
        """Tokens that the last step read per head, and the estimated share of the mass that it did not.

        Both averaged over the slots; None where the step read everything.
        """
        slots = [self._reader(slot).selected(slot) for slot in range(self.num_slots)]
        known = [slot for slot in slots if slot is not None]
        if not known:
            return None
        tokens, unread = zip(*known, strict=True)
        return sum(tokens) / len(known), sum(unread) / len(known)

    def read_blocks(self, slot: int) -> list[list[list[int]]] | None:
        """Which blocks the slot's last step read, by row and head; None where it read everything.

        Blocks of 16 tokens, counted from the first token on, ascending; the last may be shorter.
        """
        return self._reader(slot).read_blocks(slot)

    def _reader(self, slot: int) -> DeviceTier | _native.KvCache:
        """Who attended last, and can tell what it read."""
        return self.hot if self.hot is not None and self.hot.attended(slot) else self.native

    def attention_shares(self, row: int, length: int) -> Tensor | None:
        """The body of `TieredCache.attention_shares`, (L, H, N): N blocks of `length` tokens."""
        shares = []
        for slot in range(self.num_slots):
            reader = self._reader(slot)
            read, given = reader.read_blocks(slot), reader.read_shares(slot)
            if read is None or given is None:
                return None
            shares_HN = torch.zeros(len(read[row]), -(-length // BLOCK_TOKENS))
            for shares_N, own, share in zip(shares_HN, read[row], given[row], strict=True):
                shares_N[own] = torch.tensor(share)
            shares.append(shares_HN)
        return torch.stack(shares) if shares else None

    def prefetch(self, slot: int) -> None:
        """Starts reading what the slot's next use misses in RAM."""
        if self.reads_disk and self.selection is None:
            self.native.prefetch(slot % self.num_slots)

    def crop(self, length: int) -> None:
        """Forgets all tokens from `length` on, in every slot and row."""
        self._settle()
        self.native.crop(length)
        self.focused = [[block for block in row if block < length // BLOCK_TOKENS] for row in self.focused]
        self.epoch += 1

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row `rows[i]` was."""
        self._settle()
        self.native.reorder(rows)
        self.focused = [self.focused[row] for row in rows] if self.focused else []
        self.epoch += 1

    def reset(self) -> None:
        """Forgets everything, row count and geometry too."""
        self._settle()
        if self._kv is not None:
            self._kv.reset()
        self.focused = []
        self.geometry = [None] * self.num_slots
        self.devices = [None] * self.num_slots
        self.epoch += 1

    def fork(self) -> PageTable:
        """An independent table with the same contents; copies only the open pages."""
        twin = object.__new__(PageTable)
        twin._kv = None if self._kv is None else self._kv.fork()
        twin.num_slots = self.num_slots
        twin.page_tokens = self.page_tokens
        twin.rotary = self.rotary
        twin.planes = self.planes
        twin.reads_disk = self.reads_disk
        twin.geometry = list(self.geometry)
        twin.devices = list(self.devices)
        twin.epoch = 0
        twin.selection = self.selection
        twin.dense_prefill_below = self.dense_prefill_below
        twin.trained_tokens = self.trained_tokens
        twin.focused, twin.focus_own = list(self.focused), self.focus_own
        twin.focus_since = self.focus_since
        twin.hot = None if self.hot is None else self.hot.fork(twin)
        return twin

    def _settle(self) -> None:
        """Before pages get other numbers."""
        if self.hot is not None:
            self.hot.settle()

    def close(self) -> None:
        """Lets go of all pages. Closing twice is no error."""
        self._settle()
        if self._kv is not None:
            self._kv.close()
            self._kv = None
        self.hot = None
        self.epoch += 1


class Snapshot:
    """One slot's first `length` tokens, until the table is cropped, reordered or reset.

    Reading copies pages out; a snapshot itself holds none.
    """

    __slots__ = ("_spare", "device", "epoch", "geometry", "length", "num_rows", "slot", "table")

    def __init__(self, table: PageTable, slot: int, geometry: LayerGeometry, device: torch.device) -> None:
        self.table = table
        self.slot = slot
        self.length = table.length(slot)
        self.num_rows = table.num_rows
        self.geometry = geometry
        self.device = device
        self.epoch = table.epoch
        self._spare: dict[str, Tensor] = {}

    def check(self) -> None:
        """Refuses to go on once the table changed underneath.

        Raises:
            RuntimeError: it did.
        """
        if self.epoch != self.table.epoch:
            raise RuntimeError(
                "these keys and values belong to a cache that has since been cropped, reordered, reset or "
                "closed; take them from the cache again"
            )

    def gather(
        self, start: int, stop: int, buffer: Tensor | None = None, *, turn: str = "appended"
    ) -> tuple[Tensor, Tensor]:
        """Copies tokens [start, stop) out.

        Args:
            start: first token.
            stop: one past the last.
            buffer: flat CPU tensor of the geometry's dtype to copy into where it is large
                enough; the result then aliases it.
            turn: in a table with a rotary, keys as they were "appended", as they are "stored", or "placed" at
                their positions.

        Returns:
            (B, H, stop - start, Dk) keys and (B, H, stop - start, Dv) values on `device`.
        """
        self.check()
        num_heads, num_tokens = self.geometry.num_heads, stop - start
        shape = (self.num_rows, num_heads, num_tokens)
        key_numel = self.num_rows * num_heads * num_tokens * self.geometry.key_dim
        value_numel = self.num_rows * num_heads * num_tokens * self.geometry.value_dim
        if buffer is None or buffer.numel() < key_numel + value_numel:
            keys = torch.empty(*shape, self.geometry.key_dim, dtype=self.geometry.dtype)
            values = torch.empty(*shape, self.geometry.value_dim, dtype=self.geometry.dtype)
        else:
            keys = buffer[:key_numel].view(*shape, self.geometry.key_dim)
            values = buffer[key_numel : key_numel + value_numel].view(*shape, self.geometry.value_dim)
        self.table.native.gather(self.slot, start, stop, keys, values, turn)
        return keys.to(self.device), values.to(self.device)

    def part(self, name: str) -> Tensor:
        """All "keys" or all "values", each freshly copied.

        The engine reads both at once; the half not asked for is kept for the call that
        usually follows, so that code which uses both reads the pages once.
        """
        kept = self._spare.pop(name, None)
        if kept is not None and self.epoch == self.table.epoch:
            return kept
        keys, values = self.gather(0, self.length)
        if name == "keys":
            self._spare = {"values": values}
            return keys
        self._spare = {"keys": keys}
        return values

    @property
    def num_bytes(self) -> int:
        """Bytes of all its keys and values."""
        return self.length * self.geometry.token_bytes(self.num_rows)


def _row_major(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, detached, its last dimension contiguous."""
    tensor = tensor.detach().to("cpu")
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
