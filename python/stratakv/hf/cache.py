"""`TieredCache`: a transformers cache whose full-attention layers live in RAM and on disk."""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from stratakv.attention.device.tiers import HotTiers
from stratakv.cache.page_table import PageTable
from stratakv.cache.selection import BLOCK_TOKENS, Look, Selection
from stratakv.cache.store import Store
from stratakv.errors import AlreadyCoveredError, PagesLostError, PagesLostWarning
from stratakv.hf import session_state, tokens
from stratakv.hf.arguments import (
    check_config,
    check_page_tokens,
    common_prefix,
    gpus_of,
    is_mixed,
    one_row,
    session_or_none,
)
from stratakv.hf.attachment import Attachment, attachment_of
from stratakv.hf.binding import ModelBinding, bind
from stratakv.hf.compat import check_version, is_full_attention, layer_plan
from stratakv.hf.fingerprint import model_settings
from stratakv.hf.layers import TieredLayer
from stratakv.hf.looking import agreed_blocks
from stratakv.hf.memory_layer import MemoryLayer
from stratakv.hf.splicing import splice
from stratakv.sizes import parse_bytes

DEFAULT_PAGE_TOKENS = 64
NO_TRAINED_WINDOW = 1 << 40  # of a model whose config names none: positions are always true


class TieredCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """Keys and values under a RAM limit, the rest in files; a drop-in for `DynamicCache`.

        cache = TieredCache(model.config, ram="4GiB", disk="sessions/")
        model.generate(**inputs, cache=cache)  # before transformers 5.24: past_key_values=cache

    Exact: attention reads every token. Layers that keep no whole past (sliding windows,
    convolutions, recurrences) are transformers' own. Made this way a cache knows no model, so
    it cannot be saved; `TieredCache.open` makes one that can.

    Gradients do not flow into a cached past: a backward pass through it is an error.

    Args:
        config: the model's config.
        ram: limit of all pages in RAM, bytes or text ("4GiB").
        disk: directory for what RAM cannot hold; None keeps everything in RAM, and a full RAM
            limit is then an error.
        disk_limit: limit of the directory; None is bounded by `free_floor` only.
        page_tokens: tokens of a page.
        io: "auto", "direct", "mmap" or "buffered".
        policy: which pages stay in RAM, one of `stratakv.cache.store.POLICIES`.
        free_floor: bytes that stay free on the file system; None is the engine's default.

    Raises:
        ValueError: an argument that is not accepted; the message names what is.
        LockedError: another process writes the directory.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        ram: int | str = "4GiB",
        disk: str | os.PathLike[str] | None = None,
        disk_limit: int | str | None = None,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        io: str = "auto",
        policy: str = "auto",
        free_floor: int | str | None = None,
    ) -> None:
        check_version()
        check_config(config)
        check_page_tokens(page_tokens)
        store = Store(disk, ram=ram, disk_limit=disk_limit, free_floor=free_floor, io=io, policy=policy)
        self._build(config, store, page_tokens, binding=None, settings=None)

    @classmethod
    def open(
        cls,
        model: nn.Module,
        path: str | os.PathLike[str] | None,
        *,
        name: str | None = None,
        ram: int | str = "4GiB",
        disk_limit: int | str | None = None,
        page_tokens: int | None = None,
        io: str = "auto",
        policy: str = "auto",
        free_floor: int | str | None = None,
        read_only: bool = False,
        budget: int | Selection | None = None,
        precision: str | None = None,
        hot: int | str | None = None,
    ) -> Self:
        """A cache that knows its model: it can be saved, and shares pages with other sessions.

        A session of that name in the directory is resumed, otherwise the cache starts empty.
        A resumed session holds back its last token, so that `generate` with all its ids has
        one left to compute. Where a layer cannot step back (a full sliding window, a
        recurrence), it holds all of them; `generate` then needs at least one new id.

        For a model that is attached (`stratakv.attach`) the cache holds keys without positions, and can
        be used only while that model is attached.

        Args:
            model: a transformers model; it gets a forward hook until the cache is closed.
            path: the store's directory; None keeps everything in RAM, without sessions.
            name: the session; None for a cache without one.
            ram: as for the class, like the rest.
            disk_limit: limit of the directory.
            page_tokens: tokens of a page; None is the session's own, or 64.
            io: "auto", "direct", "mmap" or "buffered".
            policy: which pages stay in RAM, one of `stratakv.cache.store.POLICIES`.
            free_floor: bytes that stay free on the file system.
            read_only: go on with a session while another process writes the directory. New tokens
                then live in RAM only, and nothing can be saved.
            budget: tokens that a step of decoding reads per head of a long context, or a `Selection` that
                says more; None reads everything. Only for a model that is attached.
            precision: "full" keeps pages in the model's own type; "mixed" keeps FP8 codes and, in a plane of
                their own, what restores 16 bits, so that RAM may hold half the bytes. None is the session's
                own, else "mixed" with a budget and "full" without. Mixed only for a model that is attached.
            hot: for a model on a GPU, bytes of its memory ("4GiB") in which the pages that long contexts are
                read of are kept; needs a budget and mixed precision. Of each GPU where layers are on several.
                None copies what is attended to there each time.

        Raises:
            ValueError: an argument that is not accepted.
            SettingsMismatchError: the session is of another model or other settings; the
                message names what differs.
            LockedError: another process writes the directory.
        """
        check_version()
        config = getattr(model, "config", None)
        if not isinstance(model, nn.Module) or config is None:
            raise ValueError(f"model must be a transformers model, not {type(model).__name__}")
        check_config(config)
        if name is not None and path is None:
            raise ValueError(f"name={name!r} without a path: a session needs a directory")
        store = Store(
            path,
            ram=ram,
            disk_limit=disk_limit,
            free_floor=free_floor,
            io=io,
            policy=policy,
            read_only=read_only,
        )
        try:
            saved = None if name is None else session_or_none(store, name)
            if page_tokens is None:
                page_tokens = int((saved or {}).get("settings", {}).get("page_tokens", DEFAULT_PAGE_TOKENS))
            check_page_tokens(page_tokens)
            self = cls.__new__(cls)
            attachment = attachment_of(model)
            mixed = is_mixed(precision, budget, saved, is_attached=attachment is not None)
            settings = model_settings(model, page_tokens=page_tokens)
            if attachment is not None:
                settings |= attachment.settings
            self._build(
                config,
                store,
                page_tokens,
                binding=bind(model),
                settings=settings,
                attachment=attachment,
                mixed=mixed,
            )
            self.name = name
            self.select(budget)
            if hot is not None:
                self._keep_hot(parse_bytes(hot, name="hot"), gpus_of(model), policy)
            if saved is not None:
                self._resume(saved)
        except BaseException:
            store.close()
            raise
        return self

    def _keep_hot(self, limit_bytes: int, devices: list[torch.device], policy: str = "auto") -> None:
        """From now on what is attended to on these devices keeps its pages there."""
        if self._table.selection is None:
            raise ValueError("hot= keeps what a step selects: give the cache a budget")
        self._table.hot = HotTiers(self._table, limit_bytes, devices, policy=policy)

    def _build(
        self,
        config: PreTrainedConfig,
        store: Store,
        page_tokens: int,
        *,
        binding: ModelBinding | None,
        settings: dict[str, str] | None,
        attachment: Attachment | None = None,
        mixed: bool = False,
    ) -> None:
        plan = layer_plan(config)
        num_tiered = sum(is_full_attention(layer_class) for layer_class, _ in plan)
        table = PageTable(
            store,
            num_slots=num_tiered,
            page_tokens=page_tokens,
            identity=None if binding is None else binding.identity,
            settings=settings,
            rotary=None if attachment is None else attachment.rotary,
            planes=mixed,
        )
        layers: list[Any] = []
        slot = 0
        for layer_class, kwargs in plan:
            if is_full_attention(layer_class):
                layers.append(TieredLayer(table, slot))
                slot += 1
            else:
                layers.append(layer_class(**kwargs))
        self._assemble(layers, table, store, binding, attachment)

    def _assemble(
        self,
        layers: list[Any],
        table: PageTable,
        store: Store,
        binding: ModelBinding | None,
        attachment: Attachment | None,
    ) -> None:
        # Past DynamicCache's own initialiser, which builds plain layers from a config.
        super(DynamicCache, self).__init__(layers=layers)
        self.name: str | None = None
        self.binding = binding
        self.attachment = attachment
        self._table = table
        self._store = store
        self._mask: Tensor | None = None
        self._salted_from: int | None = None
        self._closed = False
        self._finalizer = None
        self.focused: list[int] = []
        if binding is not None:
            binding.acquire()
            self._finalizer = weakref.finalize(self, binding.abandon)

    # What generation calls.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds one layer's (B, H, T, D) keys and values and gives all that it holds.

        Returns:
            Keys and values: plain tensors on the first call, `PagedTensor`s with a past.
        """
        if self.attachment is not None:
            self.attachment.check_update(self)
        layer = self.layers[layer_idx]
        result: tuple[Tensor, Tensor] = layer.update(key_states, value_states, *args, **kwargs)
        if isinstance(layer, TieredLayer) and self._table.reads_disk:
            self._table.prefetch(layer.slot + 1)
        return result

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens; 0 only lets go of recorded past states.

        Raises:
            ValueError: a positive number.
            RuntimeError: a layer that cannot step back (see `activate_past_recording`).
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): pass the number of tokens to remove as a negative integer, or 0"
            )
        left = max(self._table.length(0) + tokens_to_remove, 0) if self._table.num_slots else 0
        for layer in self._other_layers().values():
            if isinstance(layer, MemoryLayer):
                # To the pages' length: after an interrupted pass theirs may be another.
                layer.crop(min(left - layer.get_seq_length(), 0))
            else:
                layer.crop(tokens_to_remove)
        if tokens_to_remove and self._table.num_slots:
            self._crop_pages(left)

    def reset(self) -> None:
        """Forgets everything, in place."""
        for layer in self.layers:
            layer.reset()
        self._table.reset()
        self._mask = self._salted_from = None
        self.focused = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was; page tables move, tensors do not."""
        for layer in self._other_layers().values():
            layer.reorder_cache(beam_idx)
        self._reorder_pages(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, in place (r0 r0 r1 r1)."""
        for layer in self._other_layers().values():
            layer.batch_repeat_interleave(repeats)
        if self._num_rows():
            self._reorder_pages([row for row in range(self._num_rows()) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows that an index or bool tensor selects."""
        for layer in self._other_layers().values():
            layer.batch_select_indices(indices)
        if self._num_rows():
            indices = torch.as_tensor(indices).to("cpu")
            self._reorder_pages(torch.arange(self._num_rows())[indices].tolist())

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """The name of `get_max_length` before transformers 5.20."""
        return int(self.get_max_length(layer_idx))

    # What users call.

    @property
    def token_ids(self) -> list[int] | None:
        """Ids of the tokens held by the first row; None where they are not all known."""
        return self.row_token_ids(0)

    def row_token_ids(self, row: int) -> list[int] | None:
        """Ids of the tokens held by a row, padding included; None where they are not all known.

        Only caches made by `open` know ids, and only of passes that were given ids.
        """
        if not self._table.num_slots or not 0 <= row < self._num_rows():
            return None
        ids = self._table.native.token_ids(row)
        return None if ids is None else tokens.plain_ids(ids)

    def match(self, input_ids: Tensor | list[int]) -> int:
        """Keeps what serves a prompt and forgets the rest, before generating from that prompt.

        A cache that holds tokens is cropped to their longest common prefix with the prompt.
        An empty one adopts whole pages that any session of this model has stored for it. At
        least the last token of the prompt is left to compute. Tokens that depended on more
        than ids (images) are never matched.

        Args:
            input_ids: the whole prompt: a list, or a tensor of (N,) or (1, N).

        Returns:
            Tokens that are covered.

        Raises:
            ValueError: a batch, or a cache whose ids are not known.
            RuntimeError: a layer that cannot step back.
        """
        ids = one_row(input_ids)
        length = int(self.get_seq_length())
        if length:
            held = self._known_ids()
            common = min(common_prefix(held, ids), len(ids) - 1)
            if self._salted_from is not None:
                common = min(common, self._salted_from)
            if common < length:
                self.crop(common - length)
            length = common
        if length == 0 and self.binding is not None and not self._other_layers() and self._table.num_slots:
            self._table.reset()
            length = self._table.native.match_prefix(ids[:-1])
        return length

    def select(self, budget: int | Selection | None) -> None:
        """From now on a step of decoding reads so much of a long context; None reads everything.

        Args:
            budget: tokens per head, or a `Selection`.

        Raises:
            ValueError: a budget out of range, or a cache that was not opened for an attached model.
        """
        selection = Selection.of(budget)
        if selection is not None and self.attachment is None:
            raise ValueError(
                "budget= selects tokens by scores of keys without positions: open the cache inside "
                "`with stratakv.attach(model):`, or leave the budget out for exact decoding"
            )
        if self._table.num_slots:
            self._table.select(selection, self._trained_tokens)

    @property
    def selection(self) -> Selection | None:
        """What a step reads of a long context; None where that is everything."""
        return self._table.selection

    def reads_all_of(self, tokens: int) -> bool:
        """Whether a step over a context of that many tokens reads it whole."""
        return self.selection is None or self.selection.reads_all_of(tokens, self._trained_tokens)

    @property
    def _trained_tokens(self) -> int:
        """Tokens that the model was trained on at once."""
        return (self.attachment.trained_tokens if self.attachment else 0) or NO_TRAINED_WINDOW

    def look(
        self,
        input_ids: Tensor | list[int],
        how: Look | None = None,
        *,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[int]:
        """Finds where a long context answers the end of a prompt, and lets the coming steps read there.

        For contexts that are longer than the model was trained on, where one pass finds little: call it
        before generating, once the cache covers what is asked about. Shorter ones, and caches that read
        everything, are left as they are. What was found stays in force until the next `look`, `focus`
        or `reset`.

        Args:
            input_ids: the whole prompt, the question at its end: a list, or a tensor of (N,) or (1, N).
            how: how to look; None is `Look()`.
            on_token: is called with the steps that are done (tokens of the question, then places) and all
                there may be; what it raises stops the search.

        Returns:
            The blocks of 16 tokens that all heads will read, ascending.

        Raises:
            ValueError: a batch; or a prompt that is not longer than what the cache covers.
        """
        ids = one_row(input_ids)
        if self._num_rows() > 1:
            raise ValueError(f"look needs a cache of one row; this one holds {self._num_rows()}")
        if len(ids) <= self.get_seq_length():
            raise ValueError(
                f"a prompt of {len(ids)} tokens, and the cache covers {self.get_seq_length()}: pass all that "
                "it covers and the question after it, or call cache.match(input_ids) first"
            )
        self.focus([])
        model = None if self.binding is None else self.binding.model
        if model is None or self.attachment is None or self.selection is None:
            return []
        if not self.get_seq_length() or len(ids) <= self._trained_tokens:
            return []
        how = how or Look()
        found = agreed_blocks(self, model, ids, how, on_token)
        # A long answer goes on to see its question, and its own beginning.
        self.focus(found, how.own, since=self.get_seq_length())
        return self.focused

    def focus(self, blocks: Sequence[int], own: int = 1, *, since: int | None = None) -> None:
        """From now on all heads read the same blocks of a long context, instead of a budget of their choice.

        Args:
            blocks: blocks of 16 tokens, counted from the first token on, of every row; without any, each head
                chooses again.
            own: blocks that each head chooses besides; the sinks and the window are always read.
            since: the tokens from this one on are read as well, the last of them as far as what is read fits
                the model's trained length; None is the window alone.

        Raises:
            ValueError: a negative number.
        """
        if own < 0 or (since or 0) < 0 or any(block < 0 for block in blocks):
            said = f"focus({list(blocks)}, own={own}, since={since})"
            raise ValueError(f"{said}: accepted are whole numbers from 0 on")
        self.focused = sorted(set(blocks))
        if self._table.num_slots:
            rows = [self.focused] * self._num_rows() if self.focused else []
            self._table.focus(rows, own, None if since is None else since // BLOCK_TOKENS)

    def splice(self, source: TieredCache, start: int = 0, stop: int | None = None) -> int:
        """Appends tokens that another cache of this model holds, without computing them.

        Their keys and values are those of the other cache, at the positions that follow what this one holds.
        What it holds does not enter into them: an approximation, good for texts that stand on their own, and
        better if their first few tokens are computed here and the rest is spliced (`KeptPages` does that).

        Args:
            source: a cache of the same model, both attached; it stays as it is.
            start: the first of its tokens.
            stop: one past the last; None for all.

        Returns:
            How many tokens were appended.

        Raises:
            ValueError: caches that are not attached, of two models, or of several rows; a model with layers
                that keep no pages; a range that the other cache has not; padding.
            RamFullError, DiskFullError: no room; this cache holds what it held.
        """
        return splice(self, source, start, stop)

    def attention_shares(self, row: int = 0) -> Tensor | None:
        """Where the last step of decoding looked: shares of the attention mass, as the summaries tell.

        Args:
            row: of the batch.

        Returns:
            (L, H, N) float32 for L layers with pages, H KV heads and N blocks of 16 tokens: the share that
            each block had, averaged over the query heads of a KV head; 0 for blocks that were not read
            and for those after the last whole page. None where a layer read everything without asking.
        """
        return self._table.attention_shares(row, int(self.get_seq_length()))

    def save(self, name: str | None = None) -> None:
        """Makes the present state a session of the store, durably.

        Args:
            name: the session's name; None is the name that the cache was opened or forked with.

        Raises:
            ValueError: no name, no directory, no model (see `open`), or tokens whose ids are not known.
            DiskFullError: it does not fit.
        """
        if self.binding is None:
            raise ValueError(
                "a cache made from a config knows neither its model nor token ids, so it cannot be saved: "
                "make it with TieredCache.open(model, path, name=...)"
            )
        name = self.name if name is None else name
        if name is None:
            raise ValueError("the cache has no name: pass one to save(name)")
        if self._store.settings.directory is None:
            raise ValueError("the cache lives in RAM only: open it with a path to save sessions")
        for row in range(self._num_rows()):
            if self._table.native.token_ids(row) is None:
                raise ValueError(
                    "the ids of some tokens are not known, because they were computed from embeddings or "
                    "without the model that opened the cache: such a cache cannot be saved"
                )
        extra = session_state.encode(self._table, self._other_layers(), self._salted_from)
        self._table.native.save(name, model=self.binding.name, extra=extra)
        self.name = name

    def fork(self, name: str | None = None) -> Self:
        """An independent cache with the same contents, at the cost of the open pages.

        Args:
            name: what `save` calls it; nothing is written before.
        """
        twin = self.__class__.__new__(self.__class__)
        table = self._table.fork()
        layers: list[Any] = []
        for layer in self.layers:
            if isinstance(layer, TieredLayer):
                tiered = TieredLayer(table, layer.slot)
                tiered.dtype, tiered.device = layer.dtype, layer.device
                tiered.is_initialized = layer.is_initialized
                layers.append(tiered)
            else:
                layers.append(copy.deepcopy(layer))
        twin._assemble(layers, table, self._store.share(), self.binding, self.attachment)
        twin.name = name
        twin._mask, twin._salted_from = self._mask, self._salted_from
        twin.focused = list(self.focused)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = self.fork()
        memo[id(self)] = twin
        return twin

    def flush(self) -> None:
        """Writes what is dirty in the store and makes it durable."""
        self._store.native.flush()

    def stats(self) -> dict[str, Any]:
        """The store's counters and sizes per tier, and under "cache" what this cache holds."""
        return self._store.stats() | {
            "cache": {
                "name": self.name,
                "tokens": self.get_seq_length(),
                "rows": self._num_rows(),
                "paged_layers": self._table.num_slots,
                "other_layers": len(self._other_layers()),
                "page_tokens": self._table.page_tokens,
                **self._selected(),
            },
            **({} if self._table.hot is None else {"hot": self._table.hot.stats()}),
        }

    def _selected(self) -> dict[str, Any]:
        """What the last step read of a long context, where it selected."""
        selection = self._table.selection
        if selection is None or not self._table.is_open:
            return {}
        tokens, unread = self._table.selected() or (None, None)
        return {"budget": selection.budget, "read_tokens": tokens, "unread_share": unread}

    def close(self) -> None:
        """Lets go of pages, hook and store, without saving. Closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        if self._finalizer is not None and self._finalizer.detach() and self.binding is not None:
            self.binding.release()
        self._table.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the model's hook calls.

    def before_forward(self, arguments: dict[str, Any]) -> None:
        """Notes the ids of the tokens that the coming pass appends.

        Raises:
            AlreadyCoveredError: the pass repeats tokens that the cache holds.
        """
        if not self._table.num_slots:
            return
        held = self._mend_interrupted()
        repeated = tokens.repeated_ranges(arguments, held)
        if any(self._holds(arguments["input_ids"], start, stop) for start, stop in repeated):
            raise AlreadyCoveredError(
                f"the cache already holds these tokens ({held} of them), so they would be appended twice: "
                "pass at least one id more than the cache covers, or call cache.match(input_ids) or "
                "cache.crop(-1) first"
            )
        note = tokens.describe(arguments, held, self._mask)
        if note is None:
            self._mask = None
            return
        self._table.native.note_tokens(note.ids, note.salts if note.is_salted else b"")
        self._mask = note.mask
        if note.is_salted and self._salted_from is None:
            self._salted_from = held

    # Helpers.

    def _holds(self, ids: Tensor, start: int, stop: int) -> bool:
        """Whether tokens [start, stop) of every row are these (B, stop - start) ids."""
        held = [self.row_token_ids(row) for row in range(self._num_rows())]
        new = ids.tolist()
        return len(held) == len(new) and all(
            mine is not None and mine[start:stop] == theirs for mine, theirs in zip(held, new, strict=True)
        )

    def _mend_interrupted(self) -> int:
        """Drops what an interrupted pass left in some layers only; gives the tokens held."""
        length = self._table.min_length()
        others = self._other_layers().values()
        memories = [layer for layer in others if isinstance(layer, MemoryLayer)]
        slots = [self._table.length(slot) for slot in range(self._table.num_slots)]
        if any(held != length for held in (*slots, *(layer.get_seq_length() for layer in memories))):
            if len(memories) < len(others) or any(layer.get_seq_length() < length for layer in memories):
                raise RuntimeError(
                    "an interrupted forward pass left this cache's layers at different lengths: reset() it, "
                    "or open its session again"
                )
            for layer in memories:
                layer.crop(length - layer.get_seq_length())
            self._crop_pages(length)
        return length

    def _resume(self, saved: dict[str, Any], *, hold_back: bool = True) -> None:
        """Becomes the session of its name; without its last token, if that can be and is asked for."""
        try:
            extra = self._table.native.load(str(self.name))
        except PagesLostError as error:
            self._resume_partly(saved, str(error))
            return
        assert self.binding is not None
        state = session_state.decode(extra, self._table, self._other_layers(), self.binding.layer_device)
        self._mask, self._salted_from = state.mask, state.salted_from
        for index, layer in enumerate(self.layers):
            if isinstance(layer, TieredLayer):
                layer.device = self.binding.layer_device(index)
        if hold_back and self._can_step_back() and self.get_seq_length():
            self.crop(-1)

    def _resume_partly(self, saved: dict[str, Any], reason: str) -> None:
        """Goes on with the pages that precede a loss, where the other layers allow it."""
        if self._other_layers():
            self._table.reset()
        kept = self._table.min_length()
        self._crop_pages(kept)
        if kept:
            # What else determined the values is lost with the session's state: match nothing by ids.
            self._mask, self._salted_from = session_state.padding_of(self._table), 0
        warnings.warn(
            f"session {self.name!r}: {kept} of {saved.get('tokens')} tokens are left ({reason}); "
            "pass the whole prompt to compute the rest again",
            PagesLostWarning,
            stacklevel=4,
        )

    def _can_step_back(self) -> bool:
        """Whether every layer can be cropped by one token without having recorded its past."""
        for layer in self._other_layers().values():
            window = getattr(layer, "sliding_window", None)
            if not isinstance(layer, DynamicLayer) or isinstance(layer, LinearAttentionLayer):
                return False
            if window is not None and layer.get_seq_length() >= window:
                return False
        return True

    def _other_layers(self) -> dict[int, Any]:
        return {i: layer for i, layer in enumerate(self.layers) if not isinstance(layer, TieredLayer)}

    def _num_rows(self) -> int:
        return self._table.num_rows if self._table.num_slots and self._table.is_open else 0

    def _crop_pages(self, length: int) -> None:
        self._table.crop(length)
        self.focused = [block for block in self.focused if block < length // BLOCK_TOKENS]
        if self._mask is not None:
            self._mask = self._mask[:, :length]
        if self._salted_from is not None and self._salted_from >= length:
            self._salted_from = None

    def _reorder_pages(self, rows: list[int]) -> None:
        if not self._num_rows():
            return
        self._table.reorder(rows)
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _known_ids(self) -> list[int]:
        if self._num_rows() > 1:
            raise ValueError(f"match needs a cache of one row; this one holds {self._num_rows()}")
        ids = self._table.native.token_ids(0) if self._table.num_slots else None
        if ids is None:
            raise ValueError(
                "match needs token ids, and this cache does not know them: "
                "make it with TieredCache.open(model, path)"
            )
        return ids
