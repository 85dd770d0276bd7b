"""The binding: what it accepts, what it says when it does not, and that it never holds anybody up."""

from __future__ import annotations

import copy
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest
import torch

from stratakv import _native
from stratakv.cache.rotary import Rotary

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding of the result, and float32 sums in another order.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture
def store():
    return _native.Store(ram_bytes=64 << 20)


def make(store, *, layers=1, page_tokens=16, identity=b"model"):
    return _native.KvCache(store, num_layers=layers, page_tokens=page_tokens, identity=identity)


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


def filled(store, tokens=50, *, rows=2, heads=2, dim=8, dtype=torch.float32, **options):
    cache = make(store, **options)
    keys, values = (
        random(rows, heads, tokens, dim, dtype=dtype),
        random(rows, heads, tokens, dim, dtype=dtype),
    )
    cache.append(0, keys, values)
    return cache, keys, values


def gathered(cache, like, start=0, stop=None, layer=0):
    stop = cache.length(layer) if stop is None else stop
    keys = torch.full(
        (like.shape[0], like.shape[1], stop - start, like.shape[3]), float("nan"), dtype=like.dtype
    )
    values = keys.clone()
    cache.gather(layer, start, stop, keys, values)
    return keys, values


def oracle(query, keys, values, scale, mask=None):
    """(B, Q, T, D) attention in float64; mask is added to the scores."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = query.double() @ keys.transpose(2, 3) * scale
    if mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1) @ values


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_goes_in_comes_out_and_is_attended_to(store, dtype):
    cache, keys, values = filled(store, dtype=dtype)
    assert all(map(torch.equal, gathered(cache, keys), (keys, values)))
    assert torch.equal(gathered(cache, keys, 13, 37)[1], values[:, :, 13:37])
    query = random(2, 6, 3, 8, dtype=dtype)
    out = torch.full_like(query, float("nan"))
    cache.attend(0, query, out, 0.3, causal=True)
    mask = torch.zeros(3, 50).masked_fill(~torch.ones(3, 50).tril(47).bool(), float("-inf"))
    torch.testing.assert_close(
        out.double(), oracle(query, keys, values, 0.3, mask), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("shape", [(1, 1, 50), (2, 1, 50), (1, 3, 50), (2, 3, 50)])
def test_bias_broadcasts(store, shape):
    cache, keys, values = filled(store)
    bias = random(*shape)
    bias[..., 7] = float("-inf")
    query = random(2, 2, 3, 8)
    out = torch.empty_like(query)
    cache.attend(0, query, out, 1.0, bias)
    torch.testing.assert_close(
        out.double(), oracle(query, keys, values, 1.0, bias[:, None]), atol=2e-6, rtol=2e-6
    )
    # An expanded bias, a slice of a longer one and a transposed one are views like any other.
    expected = out.clone()
    cache.attend(0, query, out, 1.0, bias.expand(2, 3, 50))
    assert torch.equal(out, expected)
    cache.attend(0, query, out, 1.0, torch.cat([bias, bias], 2)[..., :50])
    assert torch.equal(out, expected)
    cache.attend(0, query, out, 1.0, bias.transpose(0, 1).contiguous().transpose(0, 1))
    assert torch.equal(out, expected)


def test_a_query_that_sees_nothing_gives_zeros(store):
    cache, _, _ = filled(store)
    out = torch.full((2, 2, 1, 8), float("nan"))
    cache.attend(0, random(2, 2, 1, 8), out, 1.0, torch.full((1, 1, 50), float("-inf")))
    assert torch.equal(out, torch.zeros_like(out))


def test_strided_tensors_are_read_and_written_in_place(store):
    cache = make(store)
    # As projections give them: (B, T, H, D), seen as (B, H, T, D).
    keys, values = random(2, 40, 3, 8).transpose(1, 2), random(2, 40, 3, 16)[..., 4:12].transpose(1, 2)
    cache.append(0, keys, values)
    out_keys, out_values = (torch.zeros(2, 40, 3, 8).transpose(1, 2) for _ in range(2))
    cache.gather(0, 0, 40, out_keys, out_values)
    assert torch.equal(out_keys, keys)
    assert torch.equal(out_values, values)
    query, packed = random(2, 1, 3, 8).transpose(1, 2), torch.empty(2, 3, 1, 8)
    strided = torch.empty(2, 1, 3, 8).transpose(1, 2)
    cache.attend(0, query, packed, 1.0)
    cache.attend(0, query.contiguous(), strided, 1.0)
    assert torch.equal(packed, strided)
    # One buffer for both, interleaved.
    both = torch.empty(2, 3, 40, 2, 8)
    cache.gather(0, 0, 40, both[..., 0, :], both[..., 1, :])
    assert torch.equal(both[..., 0, :], keys)
    assert torch.equal(both[..., 1, :], values)
    # Expanded sources are fine, and so is a last dimension of one element.
    other = make(store)
    other.append(0, random(1, 1, 1, 1).expand(2, 3, 20, 1), random(2, 3, 1, 20).transpose(2, 3))
    assert other.length(0) == 20


def test_threads_and_pages_change_no_bit(store):
    cache, _, _ = filled(store, 3000, dim=64, page_tokens=64)
    query = random(2, 4, 1, 64)
    outs = []
    for count in (1, 2, 3):
        _native.set_num_threads(count)
        outs.append(torch.empty_like(query))
        cache.attend(0, query, outs[-1], 0.125)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


ONE = torch.zeros(1, 2, 1, 8)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ([[1.0]], TypeError, r"keys is a list, expected a torch.Tensor \(B, H, T, D\)"),
        (ONE.numpy(), TypeError, "keys is a ndarray"),
        (ONE[0], ValueError, r"keys has 3 dimensions, expected \(B, H, T, D\)"),
        (ONE.double(), ValueError, "keys is torch.float64, expected torch.float32, bfloat16 or float16"),
        (ONE.long(), ValueError, "keys is torch.int64"),
        (torch.zeros(1, 2, 8, 1).expand(1, 2, 8, 8), ValueError, "stride 0 .*contiguous"),
        (ONE.to("meta"), ValueError, "keys is on meta, expected a CPU tensor"),
        (torch.zeros(1, 3, 1, 8), ValueError, r"values is \(1, 2, 1, 8\) float32, expected \(1, 3, 1, 8\)"),
        (ONE.half(), ValueError, r"values is \(1, 2, 1, 8\) float32, expected \(1, 2, 1, 8\) float16"),
    ],
)
def test_messages_name_the_argument_and_what_is_accepted(store, keys, error, message):
    with pytest.raises(error, match=message):
        make(store).append(0, keys, ONE)


def test_destinations_must_not_overlap_themselves(store):
    cache, keys, _ = filled(store)
    with pytest.raises(ValueError, match="values: elements share memory"):
        cache.gather(0, 0, 50, torch.empty_like(keys), torch.zeros(1, 2, 50, 8).expand(2, 2, 50, 8))
    with pytest.raises(ValueError, match="bias is torch.float64|bias is bfloat16"):
        cache.attend(0, keys[:, :, :1], keys[:, :, :1].clone(), 1.0, torch.zeros(1, 1, 50).bfloat16())
    with pytest.raises(ValueError, match=r"bias is \(1, 1, 49\), expected \(2 or 1, 1 or 1, 50\)"):
        cache.attend(0, keys[:, :, :1], keys[:, :, :1].clone(), 1.0, torch.zeros(1, 1, 49))


def test_arguments_out_of_range(store):
    cache, keys, _ = filled(store)
    with pytest.raises(ValueError, match="layer 3 of 1"):
        cache.length(3)
    with pytest.raises(ValueError, match=r"tokens \[10, 60\) of 50"):
        gathered(cache, keys, 10, 60)
    with pytest.raises(ValueError, match="row 2 of 2"):
        cache.reorder([0, 2])
    with pytest.raises(OverflowError):
        cache.crop(-1)
    with pytest.raises(ValueError, match="page_tokens is 0"):
        make(store, page_tokens=0)
    with pytest.raises(ValueError, match="salt|salts"):
        cache.note_tokens([[1], [2]], [b"one"])
    with pytest.raises(TypeError, match="salt is a"):
        cache.note_tokens([[1], [2]], 7)


def test_rows_move_and_forks_part(store):
    cache, keys, values = filled(store, 20)
    cache.reorder([1, 1, 0])
    order = torch.tensor([1, 1, 0])
    fork, deep = cache.fork(), copy.deepcopy(cache)
    more = random(3, 2, 5, 8)
    fork.append(0, more, more)
    cache.crop(18)
    cache.append(0, more[:, :, :1], more[:, :, :1])
    keys, values = keys[order], values[order]
    assert torch.equal(gathered(deep, keys)[0], keys)
    assert torch.equal(gathered(fork, keys)[1], torch.cat([values, more], 2))
    assert torch.equal(gathered(cache, keys)[0], torch.cat([keys[:, :, :18], more[:, :, :1]], 2))
    assert (cache.num_rows, fork.length(0), deep.length(0)) == (3, 25, 20)


def test_a_step_tells_which_blocks_it_read(store):
    rotary = Rotary((1.0, 0.1, 0.01, 0.001))
    cache = _native.KvCache(store, num_layers=2, page_tokens=32, rotary=(list(rotary.inv_freq), False))
    keys, values, query = random(2, 3, 1010, 8), random(2, 3, 1010, 8), random(2, 3, 1, 8)
    for layer in range(2):
        cache.append(layer, keys, values)
    cache.select(
        blocks=6,
        sinks=1,
        window=2,
        recent=0,
        unread=1.0,
        growth=1.0,
        critical=1.0,
        dense_below=0,
        dense_prefill_below=4096,
        trained_tokens=4096,
        sketches=True,
    )
    out = torch.empty_like(query)
    cache.attend(1, query, out, 0.3)
    assert cache.read_blocks(0) is None
    rows = cache.read_blocks(1)
    assert [len(heads) for heads in rows] == [3, 3]
    shares = cache.read_shares(1)
    hidden = torch.full((2, 3, 1, 1010), -torch.inf)
    for row, heads in enumerate(rows):
        for head, blocks in enumerate(heads):
            # The sink, the best, and for a window the 18 tokens after the last whole page.
            assert len(blocks) == 6
            assert blocks == sorted(set(blocks))
            assert {0, 62, 63} < set(blocks)
            assert len(shares[row][head]) == 6
            assert 0 < sum(shares[row][head][:-2]) <= 1
            assert shares[row][head][-2:] == [0, 0]
            for block in blocks:
                hidden[row, head, :, 16 * block : 16 * block + 16] = 0.0
    query, keys = rotary.rotate(query, torch.tensor([1009])), rotary.rotate(keys, torch.arange(1010))
    assert torch.allclose(out.double(), oracle(query, keys, values, 0.3, hidden), atol=1e-5)
    cache.select_all()
    assert cache.read_blocks(1) is None


def test_token_ids_and_salts(store):
    first, keys, values = make(store), random(2, 1, 32, 8), random(2, 1, 32, 8)
    first.note_tokens([list(range(32)), [2**32 - 1] * 32], [b"a", b"b"])
    first.append(0, keys, values)
    assert first.token_ids() == list(range(32))
    assert first.token_ids(1) == [2**32 - 1] * 32
    again = make(store)
    assert again.match_prefix(list(range(40)), b"a") == 32
    assert again.match_prefix.__name__ == "match_prefix"
    assert make(store).match_prefix(list(range(40)), b"b") == 0
    assert make(store, identity=b"other").match_prefix(list(range(40)), b"a") == 0
    assert make(store, identity=None).match_prefix(list(range(40)), b"a") == 0
    again.append(0, keys[:1, :, :1], values[:1, :, :1])
    assert torch.equal(gathered(again, keys[:1])[0][:, :, :32], keys[:1])
    assert again.token_ids() is None


def test_sessions_come_back(tmp_path):
    store = _native.Store(str(tmp_path), ram_bytes=8 << 20)
    cache, ids = make(store, layers=2), list(range(100))
    keys, values = random(1, 2, 100, 8), random(1, 2, 100, 8)
    cache.note_tokens([ids])
    for layer in range(2):
        cache.append(layer, keys, values)
    cache.save("a tale", model="tiny", extra=b"more")
    store.fork_session("a tale", "another")
    assert [entry["name"] for entry in store.sessions()].count("another") == 1
    assert store.session("another")["token_ids"] == [ids]
    assert store.session("another")["missing_pages"] == 0
    (entry,) = (entry for entry in store.sessions() if entry["name"] == "another")
    head = store.session_head("another")
    assert head.items() <= entry.items()
    assert head.keys() == {"name", "rows", "tokens", "created", "model", "settings"}
    with pytest.raises(_native.SessionNotFoundError, match="there is .*another"):
        store.session_head("nobody")
    cache.close()
    store.close()
    store = _native.Store(str(tmp_path), ram_bytes=8 << 20)
    cache = make(store, layers=2)
    assert cache.load("another") == b"more"
    assert torch.equal(gathered(cache, keys, layer=1)[1], values)
    with pytest.raises(_native.SessionNotFoundError, match="nobody") as caught:
        make(store).load("nobody")
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith("'")
    with pytest.raises(_native.SettingsMismatchError, match="model identity.*num_layers"):
        make(store, identity=b"else").load("another")
    assert store.verify()["corrupt"] == 0
    store.remove_session("a tale")
    store.remove_session("another")
    cache.close()
    assert store.gc()["freed_pages"] == 12


def test_unnoted_tokens_cannot_be_saved(store):
    cache, _, _ = filled(store)
    with pytest.raises(ValueError, match="row 0: token ids were noted for 0 of 50"):
        cache.save("s", model="tiny")


def test_a_full_ram_limit_is_an_error_and_changes_nothing():
    cache, keys, _ = filled(_native.Store(ram_bytes=1 << 20), page_tokens=1)
    with pytest.raises(_native.RamFullError, match="RAM limit of 1048576 bytes") as caught:
        cache.append(0, *(torch.zeros(1, 1, 1, 8).expand(2, 2, 1000, 8),) * 2)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, _native.StrataError)
    assert torch.equal(gathered(cache, keys)[0], keys)


def test_errors_of_the_system_keep_their_number(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file") as caught:
        _native.Store(str(tmp_path / "file" / "below"), ram_bytes=1 << 20)
    assert caught.value.errno
    _store = _native.Store(str(tmp_path), ram_bytes=1 << 20)
    with pytest.raises(_native.LockedError) as caught:
        _native.Store(str(tmp_path), ram_bytes=1 << 20)
    assert isinstance(caught.value, OSError)


def test_use_after_close(store):
    cache, keys, _ = filled(store)
    cache.close()
    cache.close()
    for call in (lambda: cache.length(0), lambda: cache.append(0, keys, keys), cache.fork, cache.reset):
        with pytest.raises(ValueError, match="the cache is closed"):
            call()
    store.close()
    store.close()
    with pytest.raises(ValueError, match="the store is closed"):
        filled(store)


def test_a_long_call_lets_other_threads_run():
    cache = make(_native.Store(ram_bytes=256 << 20), page_tokens=1)
    endless = torch.zeros(1, 1, 1, 8).expand(1, 1, 10**8, 8)
    failures = []

    def work():
        try:
            cache.append(0, endless, endless)
        except _native.RamFullError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert failures
    assert ticks > 5


def test_calls_from_many_threads_take_turns(store):
    cache, keys, values = filled(store, 500, rows=1)
    query = random(1, 2, 1, 8)
    expected = torch.empty_like(query)
    cache.attend(0, query, expected, 1.0)
    wrong = []

    def work(seed):
        out = torch.empty_like(query)
        for step in range(50):
            cache.attend(0, query, out, 1.0)
            fork = cache.fork()
            fork.append(0, keys[:, :, : seed + 1], values[:, :, : seed + 1])
            if not torch.equal(out, expected) or fork.length(0) != 501 + seed:
                wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


def test_ctrl_c_ends_a_long_call(tmp_path):
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
    script = textwrap.dedent(f"""
        import signal
        import torch
        from stratakv import _native
        signal.signal(signal.SIGINT, signal.default_int_handler)
        store = _native.Store({str(tmp_path)!r}, ram_bytes=4 << 20)
        cache = _native.KvCache(store, num_layers=1, page_tokens=64)
        one = torch.ones(1, 1, 1, 8)
        cache.append(0, one, one)
        endless = one.expand(1, 1, 10**9, 8)
        print("ready", flush=True)
        try:
            cache.append(0, endless, endless)
        except KeyboardInterrupt:
            print("interrupted", cache.length(0), flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        asked = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted 1\n"
        assert time.monotonic() - asked < 5
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.stdout.close()


def test_nothing_leaks(store):
    keys, values, query = random(1, 2, 100, 64), random(1, 2, 100, 64), random(1, 2, 1, 64)
    out = torch.empty_like(query)

    def step():
        cache = make(store, identity=None)
        cache.append(0, keys, values)
        cache.attend(0, query, out, 1.0)
        cache.fork().append(0, keys, values)
        with pytest.raises(ValueError, match="dimensions"):
            cache.append(0, keys[0], values)
        gathered(cache, keys)

    for _ in range(20):
        step()
    gc.collect()
    before = psutil.Process().memory_info().rss
    references = [sys.getrefcount(tensor) for tensor in (keys, values, query, out)]
    for _ in range(300):
        step()
    gc.collect()
    assert [sys.getrefcount(tensor) for tensor in (keys, values, query, out)] == references
    # 300 forgotten caches would be 30 MB of pages, 300 forgotten tensors 15 MB.
    assert psutil.Process().memory_info().rss - before < 8 << 20
    assert store.stats()["ram"]["used_bytes"] == 0


def test_doctor_and_version(tmp_path):
    found = _native.doctor(str(tmp_path))
    assert found.keys() == {"simd", "threads", "direct_io", "io_uring", "page_size"}
    assert found["simd"] == _native.simd_level()
    assert found["simd"] in {"avx512", "avx2", "neon", "scalar"}
    assert not list(tmp_path.iterdir())
    assert _native.doctor(str(tmp_path / "missing"))["direct_io"] is False
