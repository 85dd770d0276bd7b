"""The engine, as Python sees it. Private: use the `stratakv` package.

Shapes: B batch rows, H key/value heads, Q query heads (a multiple of H), T tokens,
D head dim (keys and values may differ). Tensors are CPU tensors of float32, bfloat16 or
float16 with a contiguous last dimension; every call checks that and releases the GIL.
"""

import builtins
from collections.abc import Sequence
from os import PathLike
from typing import Any, TypeAlias, final

__version__: str

class StrataError(Exception):
    """Base of the engine's own errors."""

class RamFullError(StrataError, MemoryError):
    """The RAM limit cannot hold what one step needs."""

class DiskFullError(StrataError, OSError):
    """The disk limit or the free-space floor is reached and nothing is left to evict."""

class LockedError(StrataError, OSError):
    """Another process writes the directory."""

class CorruptError(StrataError, ValueError):
    """Bytes on disk that are not what the format says."""

class SettingsMismatchError(StrataError, ValueError):
    """A session of another model, or of other settings."""

class SessionNotFoundError(StrataError, KeyError):
    """No session of that name."""

class PagesLostError(StrataError, LookupError):
    """Pages that a sequence needs are in no tier any more."""

class MemoryNotFoundError(StrataError, KeyError):
    """No memory of that number in that scope."""

@final
class Store:
    """Tiers of pages: RAM under a byte limit, and a directory of segment files.

    `directory=None` keeps everything in RAM: a full RAM limit is then an error.
    `io` is "auto", "direct", "mmap" or "buffered"; `policy` is "auto", "lru", "lfu", "s3-fifo",
    "w-tinylfu", "lirs" or "tiny-lirs". Opening reads no page bodies.
    """

    def __new__(
        cls,
        directory: str | PathLike[str] | None = None,
        *,
        ram_bytes: int,
        disk_limit_bytes: int | None = None,
        free_floor_bytes: int = ...,
        io: str = "auto",
        policy: str = "auto",
        read_only: bool = False,
    ) -> Store: ...
    @property
    def directory(self) -> str | None: ...
    @property
    def read_only(self) -> bool: ...
    def recovery_report(self) -> list[str]:
        """What opening found and dropped, one sentence each; empty when all was well."""
    def stats(self) -> dict[str, Any]:
        """Counters since opening and present sizes, per tier.

        `{"ram": {"limit_bytes", "used_bytes", "pages", "hits", "misses"},
          "disk": {"limit_bytes" | None, "used_bytes", "pages", "reads", "read_bytes", "writes",
                   "written_bytes", "corrupt_pages", "evicted_sessions"},
          "waits": {"count", "seconds"}, "io": str, "policy": str}`; all integers but seconds.
        """
    def sessions(self) -> list[dict[str, Any]]:
        """Every readable session, the last used first.

        Each has `name, rows, tokens, bytes, shared_bytes, created, last_used (unix seconds), model, settings
        (dict[str, str])`.
        """
    def session(self, name: str) -> dict[str, Any]:
        """One session as in `sessions()`, plus `token_ids` (list of lists) and `missing_pages`."""
    def session_head(self, name: str) -> dict[str, Any]:
        """Of one session, without reading its token ids: name, rows, tokens, created, model, settings."""
    def fork_session(self, source: str, target: str) -> None:
        """Gives a session a second name; copies no page."""
    def remove_session(self, name: str) -> None: ...
    def verify(self, name: str | None = None) -> dict[str, Any]:
        """Reads every page of one session, or of all, and checks it.

        Gives `{"pages", "bytes", "corrupt", "missing", "problems": list[str]}`.
        """
    def gc(self) -> dict[str, int]:
        """Deletes pages that no session uses: `{"freed_bytes", "freed_pages", "moved_pages"}`."""
    def flush(self) -> None:
        """Writes what is dirty and makes it durable."""
    def close(self) -> None: ...

@final
class KvCache:
    """Page tables of one sequence batch: every layer's keys and values, by row.

    Rows share sealed pages; reorder, select, repeat and fork move table entries only.
    `identity` (model fingerprint) makes pages content-addressed by the noted token ids; without it, or for
    tokens never noted, pages are private to this cache.

    `rotary` is (radians per position of each pair, whether pairs are neighbours): keys then come without
    positions, are stored turned by their offset inside the page, and are attended to at their positions in
    the sequence. The first two elements of a head per frequency are turned. `settings` must tell.

    With `planes`, full pages are kept as FP8 codes, and beside them the residuals that restore 16 bits
    (float32 is rounded to bfloat16). Needs a rotary and pages of a multiple of 16 tokens; becomes a setting.
    """

    def __new__(
        cls,
        store: Store,
        *,
        num_layers: int,
        page_tokens: int = 64,
        identity: bytes | None = None,
        settings: dict[str, str] | None = None,
        rotary: tuple[list[float], bool] | None = None,
        planes: bool = False,
    ) -> KvCache: ...
    @property
    def page_tokens(self) -> int: ...
    @property
    def num_rows(self) -> int:
        """Batch rows; 0 before the first append."""
    def length(self, layer: int) -> int:
        """Tokens that the layer holds per row."""
    def note_tokens(self, token_ids: list[list[int]], salt: bytes | list[bytes] = b"") -> None:
        """Tells which ids the next T appended tokens have, row by row.

        Called before the layers append; replaces what was noted for tokens that never came. `salt` is
        whatever else determines their values (image bytes, a mask): one for all rows, or one per row, so that
        rows with equal ids and different images never share a page. Salts may change from call to call, and
        an id may be any 32-bit number (a masked token has its top bit set).
        """
    def token_ids(self, row: int = 0) -> list[int] | None:
        """The row's ids up to the shortest layer, or None where they were not all noted."""
    def append(self, layer: int, keys: Any, values: Any) -> None:
        """Adds (B, H, T, Dk) keys and (B, H, T, Dv) values.

        The first append fixes B for the cache, and H, Dk, Dv and dtype for the layer. A failed append leaves
        the layer as it was.
        """
    def attend(
        self,
        layer: int,
        query: Any,
        out: Any,
        scale: float,
        bias: Any | None = None,
        causal: bool = False,
    ) -> None:
        """Exact attention of (B, Q, T, Dk) queries over everything that the layer holds, into (B, Q, T, Dv).

        bias: float32 (B or 1, T or 1, S) added to the scores, S the layer's length; -inf excludes.
        With a rotary the queries come without positions too, and are the last T tokens'.
        causal: query t sees all but the last T - 1 - t tokens. A query that sees nothing gives zeros.
        Sums in float32, rounds once into `out`'s dtype. Made for few query tokens (T up to about 32).
        """
    def gather(
        self, layer: int, start: int, stop: int, keys: Any, values: Any, turn: str = "appended"
    ) -> None:
        """Copies tokens [start, stop) into (B, H, stop - start, Dk) and (B, H, stop - start, Dv).

        With a rotary, keys are as they were "appended", or "placed" at their positions, turned in float32 and
        rounded once more in both cases; or as they are "stored", turned by their offset in their page.
        Without one, `turn` changes nothing.
        """
    def page_keys(self, layer: int, pages: list[tuple[int, int]]) -> list[bytes]:
        """The identities of whole pages, (row, page) each: 16 bytes. Equal ones hold equal values."""
    def copy_planes(
        self, layer: int, pages: list[tuple[int, int]], out: Any, *, residuals: bool = False
    ) -> None:
        """Copies the codes, or the residuals, of whole pages into (N, bytes) uint8.

        Of each page, per KV head: the scale bytes of its keys, of its values, then the rows of its keys and
        of its values (`stratakv.cache.planes.PlaneLayout`). Only of a cache with planes. Codes of pages that
        are summarised leave their residuals where they are.
        """
    def copy_summaries(self, layer: int, start: int, stop: int, out: Any) -> None:
        """Copies the summaries of whole pages [start, stop) into (B, H, blocks, bytes) uint8.

        Those that are not made yet are made of the pages. Only of a cache that selects.
        """
    def select(
        self,
        *,
        blocks: int,
        sinks: int,
        window: int,
        recent: int,
        unread: float,
        growth: float,
        critical: float,
        dense_below: int,
        dense_prefill_below: int,
        trained_tokens: int,
        sketches: bool,
    ) -> None:
        """Makes `attend` read a part of long contexts.

        Where up to 32 query tokens meet a context of more than `dense_below` tokens, `blocks` blocks of
        16 tokens are read per KV head: the first `sinks`, the last `window`, and those of the largest
        estimated mass; up to `growth` times as many while more than the share `unread` of the mass would
        be left out. A causal call of more tokens is a prefill: where its context is longer than
        `dense_prefill_below`, 64 tokens at a time read their own blocks and so many. Contexts past
        `trained_tokens` are numbered by what is read, and a step that has no focus reads their last `recent`
        blocks. With planes, the share `critical` of the blocks, those of the largest mass, is read in 16
        bits, the rest in FP8. With `sketches`, the far blocks of long
        contexts are told from sketches; without, each is estimated from its summary. Needs a rotary.
        """
    def select_all(self) -> None:
        """From now on `attend` reads everything."""
    def focus(self, rows: Sequence[Sequence[int]], own: int, since: int | None = None) -> None:
        """Blocks, by row and in any order, that all heads read where they select; no rows for none.

        Beside them a head reads the sinks, the window and `own` blocks of its choice, instead of a budget.
        The window begins at block `since`, or later where what is read would not fit the trained window.

        Raises:
            ValueError: another number of rows than the cache has.
        """
    def selected(self, layer: int) -> tuple[float, float] | None:
        """What the layer's last attend read; None where it read everything.

        Tokens per KV head, and the estimated share of the attention mass that was not read.
        """
    def read_blocks(self, layer: int) -> list[list[list[int]]] | None:
        """Which blocks the layer's last attend read, by row and KV head; None where it read everything.

        Blocks of 16 tokens, counted from the first token on, ascending; the last may be shorter.
        """
    def read_shares(self, layer: int) -> list[list[list[float]]] | None:
        """The estimated share of the attention mass of each block of `read_blocks`.

        Averaged over the query heads of a group; 0 for blocks after the last whole page.
        """
    def prefetch(self, layer: int) -> None:
        """Starts reading what the layer's next attend or gather will miss in RAM."""
    def crop(self, length: int) -> None:
        """Forgets all tokens from `length` on, in every layer and row."""
    def reorder(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was; also selects and repeats: any number of rows."""
    def reset(self) -> None: ...
    def fork(self) -> KvCache:
        """An independent cache with the same contents; an open page is copied when either side appends.

        `copy.copy` and `copy.deepcopy` do the same.
        """
    def __copy__(self) -> KvCache: ...
    def __deepcopy__(self, memo: dict[Any, Any]) -> KvCache: ...
    def match_prefix(self, token_ids: list[int], salt: bytes = b"") -> int:
        """On an empty cache: goes on with what is stored for a prefix of `token_ids`, as one row.

        Adopts the longest run of whole pages that this identity has in all layers, and returns its length in
        tokens (0 when there is none).
        """
    def save(self, name: str, *, model: str, extra: bytes = b"") -> None:
        """Makes the present state the session `name`, durably: pages, token ids, open pages and `extra`.

        Raises ValueError where token ids were not noted, or the layers differ in length.
        """
    def load(self, name: str) -> bytes:
        """On an empty cache: becomes the session's state and returns its `extra`.

        Raises SessionNotFoundError, SettingsMismatchError, and PagesLostError after keeping the whole pages
        that precede the loss.
        """
    def close(self) -> None:
        """Lets go of all pages."""

@final
class Policy:
    """Which pages stay in a tier that is not the engine's: keys of 16 bytes and sizes, never contents.

    `name` is as the store's `policy`; `capacity_pages` is about how many there is room for. The caller
    inserts what became resident, touches what was read there, and asks about what was read and was not.
    """

    def __new__(cls, name: str = "auto", *, capacity_pages: int) -> Policy: ...
    @property
    def name(self) -> str: ...
    def __len__(self) -> int:
        """Pages that are tracked."""
    def insert(self, keys: list[bytes], page_bytes: int) -> None: ...
    def touch(self, keys: list[bytes]) -> None: ...
    def remove(self, keys: list[bytes]) -> None: ...
    def admit(self, keys: list[bytes]) -> list[bool]:
        """Whether each page, which was just missed, should stay. Called once a miss; inserts nothing."""
    def evict(self, count: int, keep: list[bytes]) -> list[bytes]:
        """Removes and names up to so many pages, none of `keep`; fewer only where there are no more."""

_Scope: TypeAlias = tuple[str, str | None, str | None, str | None]
_Draft: TypeAlias = tuple[str, str, str | None, str | None, int | None, int | None, int | None, int | None]
_When: TypeAlias = tuple[int | None, int | None, bool]

@final
class Engram:
    """Long-term memory in a directory, for one process at a time.

    Every call takes a scope, (user, agent, project, session): a memory is told or changed only where its
    user is the scope's and each part that the scope names is the memory's. Times are milliseconds since
    1970. A memory is told as `{"id", "text", "user", "agent", "project", "session", "metadata" (str),
    "source", "author", "valid_from", "valid_to", "recorded", "closed", "supersedes", "superseded_by",
    "has_vector"}`; None for what is not known or not given.
    """

    def __new__(
        cls,
        directory: str | PathLike[str],
        *,
        embedder: tuple[str, int] | None = None,
        durable: bool = True,
    ) -> Engram:
        """`embedder` is the identity and dimension of what makes the vectors, stored at first.

        Without `durable`, what is remembered is durable after `flush` or `close` only. Raises LockedError,
        SettingsMismatchError for another embedder than the stored one, CorruptError.
        """
    @property
    def embedder(self) -> tuple[str, int] | None:
        """The stored one."""
    def remember(self, scope: _Scope, drafts: list[_Draft], vectors: Any | None = None) -> list[int]:
        """Stores (text, metadata, source, author, valid from, valid to, recorded, superseded id) each.

        `vectors` is a C-contiguous float32 buffer (N, D), a row for each. Gives their numbers; durable on
        return. Raises ValueError, or MemoryNotFoundError for one to supersede, and nothing of the batch is
        kept.
        """
    def recall(
        self,
        scope: _Scope,
        *,
        text: str | None = None,
        vector: Any | None = None,
        k: int,
        when: _When | None = None,
        weights: dict[str, float] | None = None,
    ) -> list[tuple[dict[str, Any], float, dict[str, float]]]:
        """The best `k`: memory, score, and its signals by name.

        `vector` is float32 (1, D). `when` is (as of, known at, whatever was recorded). `weights` are those of
        the signals "bm25", "bm25_window", "cosine", "cosine_window", "author", "date", "asks", "answers" and
        "when", where they are not to be the engine's.
        """
    def get(self, scope: _Scope, id: int) -> dict[str, Any]: ...
    def list(
        self, scope: _Scope, *, when: _When | None = None, after: int = 0, limit: int
    ) -> builtins.list[dict[str, Any]]:
        """Memories whose numbers are larger than `after`, in order."""
    def history(self, scope: _Scope, id: int) -> builtins.list[dict[str, Any]]:
        """All versions of a memory, the oldest first."""
    def end(self, scope: _Scope, id: int, valid_to: int) -> None:
        """Notes that a memory is true until `valid_to` only."""
    def forget(self, scope: _Scope, ids: builtins.list[int] | None = None) -> int:
        """Erases memories with their versions from every file, or all of the scope; how many records went."""
    def retain(
        self,
        scope: _Scope,
        *,
        age_ms_max: int | None = None,
        count_max: int | None = None,
        bytes_max: int | None = None,
    ) -> int:
        """Erases what is beyond the limits, the oldest first; how many records went."""
    def optimize(self, scope: _Scope) -> tuple[int, int]:
        """Takes a step of indexing the user's vectors; (done, total) memories, equal when it is done."""
    def stats(self, scope: _Scope) -> dict[str, int]:
        """`{"memories", "present", "vectors", "log_bytes", "damaged"}`."""
    def users(self) -> builtins.list[str]: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...

@final
class Reembedding:
    """A directory of memories whose vectors are being made anew, for one process.

    Until `finish` the directory is what it was, and whoever closes this before goes on with the next one.
    """

    def __new__(cls, directory: str | PathLike[str], *, embedder: tuple[str, int]) -> Reembedding:
        """`embedder` is the identity and dimension of what makes them.

        All are made, or those that are missing where it is the stored one. Raises LockedError, CorruptError,
        ValueError.
        """
    def progress(self) -> tuple[int, int]:
        """How many memories have their new vectors, of all that are to get one."""
    def texts(self, limit: int) -> list[str]:
        """The next texts to embed, the same until their vectors are given; none when all are."""
    def give(self, vectors: Any) -> None:
        """Takes the vectors, float32 (N, D), of the texts that were given out last, durably.

        Raises ValueError for another shape, or a vector without a direction; none is taken then.
        """
    def finish(self) -> bool:
        """Makes the new vectors those of the directory: True. Raises ValueError while texts are left."""
    def close(self) -> None:
        """Gives the directory back. Closing twice is no error."""

@final
class DirectoryLock:
    """A directory for this process alone, as `Engram` has its own; gone with the process.

    Raises LockedError where another one has it, OSError.
    """

    def __new__(cls, directory: str | PathLike[str]) -> DirectoryLock: ...
    def release(self) -> None:
        """Gives it back. Releasing twice is no error."""

_Prepared: TypeAlias = tuple[int, int, int, dict[str, int], int, int]
_Found: TypeAlias = tuple[float, float, float | None, float | None, str | None, int, int, int]

FOREVER: int
"""A time that never comes, in milliseconds since 1970."""

def check_scope(scope: _Scope) -> None:
    """Raises ValueError for a name that is none."""

def prepare_memories(
    scope: _Scope, drafts: list[_Draft], vectors: Any | None = None, *, now: int, dimension: int | None = None
) -> list[_Prepared]:
    """Checks drafts as `Engram.remember` does, for memories that are kept elsewhere.

    Tells of each (valid from, valid to, recorded, stems of its words with their counts, traits, bytes of a
    record). `dimension` is that of the vectors there, None where there are none. Raises ValueError.
    """

@final
class Question:
    """A query, for those who find memories themselves: its words, and the rank of what was found."""

    BM25_K1: float
    BM25_B: float
    WINDOW: list[int]
    """What a memory counts in a window by its distance; relative to the first."""
    HAS_VECTOR: int
    """The bit of a memory's traits that says so."""

    def __new__(
        cls,
        *,
        text: str | None = None,
        vector: Any | None = None,
        k: int,
        weights: dict[str, float] | None = None,
        authors: list[str],
        dimension: int | None = None,
    ) -> Question:
        """As `Engram.recall`; `authors` are those of what the scope covers, each once. Raises ValueError."""
    @property
    def words(self) -> dict[str, int]:
        """Stems to look for, and how often each is asked for."""
    @property
    def pool(self) -> int:
        """How many are to be rated of the nearest by window, and of the best by window and words."""
    def rank(self, found: list[_Found]) -> list[tuple[int, float, dict[str, float]]]:
        """Index, score and signals of what was found, the best first; of equal ones the later.

        `found` has of each (BM25, BM25 of its window, cosine, cosine of its window, author, valid from,
        traits, traits of the memory before it in its session), None for cosines that there are not.
        """

def simd_level() -> str:
    """The SIMD level that kernels use: "avx512", "avx2", "neon" or "scalar"."""

def doctor(directory: str | PathLike[str] | None = None) -> dict[str, Any]:
    """What this machine has: `simd, threads, direct_io, io_uring, page_size`."""

def set_num_threads(count: int) -> None:
    """Upper bound of the threads that one attend uses."""

def fp8_encode(values: Any, codes: Any, *, inverse_scale: float = 1.0) -> None:
    """Writes `values * inverse_scale` as FP8 e4m3 codes, rounded as torch casts to float8_e4m3fn.

    `values` is contiguous, of any shape; `codes` is uint8 of the same shape. Saturates to +-448.
    """

def fp8_decode(codes: Any, out: Any, *, scale: float = 1.0) -> None:
    """Writes `codes * scale` into `out`, of the same shape, rounded to nearest, ties to even."""

def encode_rows(rows: Any, scales: Any, codes: Any, residual: Any) -> None:
    """Splits N rows of D elements into planes, as `stratakv.fp8.codecs.encode_rows` does.

    `rows` is (N, D), contiguous. Written, all uint8: `scales` (N), `codes` (N, D), and `residual`
    (N, ceil(D / 2)), for float16 rows (N, D).
    """

def decode_rows(scales: Any, codes: Any, out: Any) -> None:
    """Writes rows from their codes alone into `out` (N, D), rounded to nearest, ties to even."""

def restore_rows(dtype: str, scales: Any, codes: Any, residual: Any, out: Any) -> None:
    """Writes rows of `dtype` ("float32", "bfloat16", "float16") from both planes into `out` (N, D)."""

@final
class RowFile:
    """A file of rows that somebody has mapped.

    Args:
        path: the file.
        row_bytes: of each row.
        part: (offset in bytes, number of rows) of the rows in a file of more than them; None for all of it.

    Raises:
        OSError: it cannot be opened.
        ValueError: its length is no multiple of `row_bytes`, or the part does not fit it.
    """

    def __new__(
        cls, path: str | PathLike[str], row_bytes: int, *, part: tuple[int, int] | None = None
    ) -> RowFile: ...
    @property
    def num_rows(self) -> int:
        """Rows of the file."""

    def prefetch(self, rows: Any) -> int:
        """Asks the system to read rows (int64, any shape), and does not wait; how many ranges that were.

        Raises:
            ValueError: a row that the file does not have; a tensor of another dtype, or one that is not
                contiguous or not on the CPU.
        """

def streams_supported(streams: int, width: int) -> bool:
    """Whether this machine has kernels for hyper-connections of so many streams of that width."""

def streams_read(
    x: Any,
    weight: Any,
    bias: Any,
    scale: Any,
    *,
    sinkhorn_iters: int,
    norm_eps: float,
    eps: float,
    input: Any,
    post: Any,
    comb: Any,
    numbers: Any,
    inverse_rms: Any,
) -> None:
    """Reads the streams `x` (N, S, C) of a hyper-connection; `stratakv.nn.mappings` says what that is.

    With M = (2 + S) S: `weight` is (M, S * C), `bias` (M), `scale` (3), all float32. Written: `input` (N, C)
    of x's dtype and, in float32, `post` (N, S), `comb` (N, S, S), `numbers` (N, M), the projections before
    scale and bias, and `inverse_rms` (N). All contiguous.
    """

def streams_write(x: Any, y: Any, post: Any, comb: Any, out: Any) -> None:
    """Writes `comb^T x` plus `post` times the branch's output `y` (N, C) into `out` (N, S, C)."""

def streams_write_backward(y: Any, post: Any, arriving: Any, to_y: Any, to_post: Any) -> None:
    """Writes the gradients of `y` (N, C) and `post` (N, S), given that of `streams_write`'s output.

    The gradient of the mixed streams, `comb^T x`, is `arriving` (N, S, C) itself.
    """

def streams_read_backward(
    x: Any,
    weight: Any,
    bias: Any,
    scale: Any,
    *,
    sinkhorn_iters: int,
    norm_eps: float,
    eps: float,
    numbers: Any,
    inverse_rms: Any,
    input_grad: Any,
    mixed_grad: Any,
    pre_grad: Any | None,
    post_grad: Any,
    comb_grad: Any | None,
    to_x: Any,
    to_weight: Any,
    to_bias: Any,
    to_scale: Any,
) -> None:
    """Writes the gradients of `streams_read`'s arguments, given those of what it wrote.

    `mixed_grad` (N, S, C) is that of the mixed streams, which takes the place of the gradients that
    `streams_write` has for `x` and `comb`.
    """
