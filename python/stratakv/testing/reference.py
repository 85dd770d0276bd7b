"""The engine's cache in plain PyTorch, token by token: slow, without tiers, obviously right.

Same calls as `stratakv._native.Store` and `KvCache`, so that tests drive both and compare.
Every row of every layer is a Python list of one (H, Dk) and one (H, Dv) tensor per token.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stratakv.errors import SessionNotFoundError, SettingsMismatchError


@dataclass
class ReferenceStore:
    """Pages by identity, and sessions by name."""

    pages: dict[Any, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class _Row:
    """One batch row: per layer its tokens, and what was noted of each position."""

    layers: list[list[tuple[Tensor, Tensor]]]
    notes: list[tuple[int, bytes] | None] = field(default_factory=list)

    def twin(self) -> _Row:
        return _Row([list(layer) for layer in self.layers], list(self.notes))


class ReferenceKvCache:
    """See `stratakv._native.KvCache`, whose every call it has."""

    def __init__(
        self,
        store: ReferenceStore,
        *,
        num_layers: int,
        page_tokens: int = 64,
        identity: bytes | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.store = store
        self.num_layers = num_layers
        self.page_tokens = page_tokens
        self.identity = identity
        self.settings = settings or {}
        self.rows: list[_Row] = []
        self.pending: list[list[tuple[int, bytes]]] = []

    @property
    def num_rows(self) -> int:
        """Batch rows; 0 before the first append."""
        return len(self.rows)

    def length(self, layer: int) -> int:
        """Tokens that the layer holds per row."""
        return len(self.rows[0].layers[layer]) if self.rows else 0

    def note_tokens(self, token_ids: list[list[int]], salt: bytes | list[bytes] = b"") -> None:
        """Ids of the next tokens, row by row; replaces what was noted and never appended."""
        salts = salt if isinstance(salt, list) else [salt] * len(token_ids)
        notes = [
            [(token, row_salt if place == 0 else b"") for place, token in enumerate(row)]
            for row, row_salt in zip(token_ids, salts, strict=True)
        ]
        if not self.rows:
            self.pending = notes
            return
        for row, row_notes in zip(self.rows, notes, strict=True):
            self._cut_notes(row)
            row.notes += row_notes

    def token_ids(self, row: int = 0) -> list[int] | None:
        """The row's ids, or None where they were not all noted."""
        shortest = min((self.length(layer) for layer in range(self.num_layers)), default=0)
        notes = self.rows[row].notes[:shortest]
        if len(notes) < shortest or None in notes:
            return None
        return [note[0] for note in notes if note is not None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Adds (B, H, T, Dk) keys and (B, H, T, Dv) values."""
        if not self.rows:
            self.rows = [_Row([[] for _ in range(self.num_layers)]) for _ in range(keys.shape[0])]
            for row, notes in zip(self.rows, self.pending or [[]] * len(self.rows), strict=True):
                row.notes = list(notes)
            self.pending = []
        if keys.shape[0] != len(self.rows):
            raise ValueError(f"{keys.shape[0]} rows appended to {len(self.rows)}")
        for index, row in enumerate(self.rows):
            for token in range(keys.shape[2]):
                row.layers[layer].append((keys[index, :, token].clone(), values[index, :, token].clone()))
            while len(row.notes) < len(row.layers[layer]):
                row.notes.append(None)
            self._publish(row, layer)

    def attend(  # noqa: PLR0917  # the engine's own signature
        self,
        layer: int,
        query: Tensor,
        out: Tensor,
        scale: float,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        """Attention of (B, Q, T, Dk) queries over everything that the layer holds."""
        keys, values = self._stacked(layer, 0, self.length(layer))
        group = query.shape[1] // keys.shape[1]
        keys = keys.float().repeat_interleave(group, dim=1)
        values = values.float().repeat_interleave(group, dim=1)
        scores = query.float() @ keys.mT * scale
        if bias is not None:
            scores = scores + bias[:, None]
        if causal:
            num_new, held = query.shape[2], keys.shape[2]
            seen = torch.ones(num_new, held, dtype=torch.bool).tril(held - num_new)
            scores = scores.masked_fill(~seen, -torch.inf)
        out.copy_((torch.softmax(scores, dim=-1).nan_to_num(0.0) @ values).to(out.dtype))

    def gather(self, layer: int, start: int, stop: int, keys: Tensor, values: Tensor) -> None:
        """Copies tokens [start, stop) out."""
        stacked_keys, stacked_values = self._stacked(layer, start, stop)
        keys.copy_(stacked_keys)
        values.copy_(stacked_values)

    def prefetch(self, layer: int) -> None:
        """Nothing to do: everything is at hand."""

    def crop(self, length: int) -> None:
        """Forgets all tokens from `length` on."""
        for row in self.rows:
            row.layers = [layer[:length] for layer in row.layers]
            self._cut_notes(row)

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was."""
        self.rows = [self.rows[row].twin() for row in rows]

    def reset(self) -> None:
        """Forgets everything."""
        self.rows, self.pending = [], []

    def fork(self) -> ReferenceKvCache:
        """An independent cache with the same contents."""
        twin = copy.copy(self)
        twin.rows = [row.twin() for row in self.rows]
        twin.pending = list(self.pending)
        return twin

    def match_prefix(self, token_ids: list[int], salt: bytes = b"") -> int:
        """Adopts the longest run of whole known pages for a prefix of the ids."""
        notes = [(token, salt if place == 0 else b"") for place, token in enumerate(token_ids)]
        row = _Row([[] for _ in range(self.num_layers)])
        for stop in range(self.page_tokens, len(notes) + 1, self.page_tokens):
            pages = [self.store.pages.get(self._key(notes[:stop], layer)) for layer in range(self.num_layers)]
            if any(page is None for page in pages):
                break
            for layer, page in enumerate(pages):
                row.layers[layer] += page or []
            row.notes = list(notes[:stop])
        if row.notes:
            self.rows = [row]
        return len(row.notes)

    def save(self, name: str, *, model: str, extra: bytes = b"") -> None:
        """Keeps the present state as the session `name`."""
        if any(self.token_ids(row) is None for row in range(self.num_rows)):
            raise ValueError("the ids of some tokens were not noted")
        self.store.saved[name] = {
            "rows": [row.twin() for row in self.rows],
            "identity": self.identity,
            "settings": self.settings,
            "model": model,
            "extra": extra,
        }

    def load(self, name: str) -> bytes:
        """Becomes the session's state; gives its `extra`."""
        if name not in self.store.saved:
            raise SessionNotFoundError(name)
        saved = self.store.saved[name]
        if (saved["identity"], saved["settings"]) != (self.identity, self.settings):
            raise SettingsMismatchError(f"{name} is of {saved['settings']}, not {self.settings}")
        self.rows = [row.twin() for row in saved["rows"]]
        extra: bytes = saved["extra"]
        return extra

    def close(self) -> None:
        """Lets go of everything."""
        self.reset()

    def _cut_notes(self, row: _Row) -> None:
        """Notes of tokens that no layer holds are void."""
        del row.notes[max((len(layer) for layer in row.layers), default=0) :]

    def _stacked(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(B, H, stop - start, Dk) keys and (B, H, stop - start, Dv) values."""
        keys = [torch.stack([k for k, _ in row.layers[layer][start:stop]], dim=1) for row in self.rows]
        values = [torch.stack([v for _, v in row.layers[layer][start:stop]], dim=1) for row in self.rows]
        return torch.stack(keys), torch.stack(values)

    def _key(self, notes: list[Any], layer: int) -> Any:
        return (self.identity, tuple(sorted(self.settings.items())), tuple(notes), layer)

    def _publish(self, row: _Row, layer: int) -> None:
        """Makes full pages known by their identity."""
        if self.identity is None:
            return
        for stop in range(self.page_tokens, len(row.layers[layer]) + 1, self.page_tokens):
            notes = row.notes[:stop]
            if None in notes:
                return
            page = row.layers[layer][stop - self.page_tokens : stop]
            self.store.pages.setdefault(self._key(notes, layer), page)
