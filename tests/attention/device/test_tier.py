"""A device's own decoding beside the engine's: the same tables, the same blocks, the same attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stratakv.attention.device.plan import parts_of
from stratakv.attention.device.tier import HotTier
from stratakv.attention.device.tiers import HotTiers
from stratakv.cache import PageTable, Store
from stratakv.cache.rotary import Rotary
from stratakv.cache.selection import Selection
from stratakv.testing import assert_close

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_table(
    tokens=700, *, rows=2, heads=2, dim=32, value_dim=None, dtype=torch.float32, page_tokens=32,
    budget=None, trained=1 << 20, dims=None, interleaved=False, slots=1, path=None, ram="64MiB",
):  # fmt: skip
    """A table in planes whose keys cluster, so that masses differ and no choice is close."""
    pairs = (dims or dim) // 2
    rotary = Rotary(tuple(10_000.0 ** (-i / pairs) for i in range(pairs)), interleaved)
    settings = rotary.settings()
    store = Store(path, ram=ram)
    table = PageTable(
        store, num_slots=slots, page_tokens=page_tokens, settings=settings, rotary=rotary,
        planes=True,
    )  # fmt: skip
    table.store = store  # closed with the last that holds it
    table.select(budget or Selection(budget=192, sinks=16, window=32, dense_below=0, unread=1.0), trained)
    for slot in range(slots):
        grow(table, tokens, slot=slot, rows=rows, heads=heads, dim=dim, value_dim=value_dim, dtype=dtype)
    return table


def grow(table, tokens, *, slot=0, rows=2, heads=2, dim=32, value_dim=None, dtype=torch.float32):
    topics = torch.randn(rows, heads, -(-tokens // 16), dim).repeat_interleave(16, dim=2)[:, :, :tokens]
    keys = topics * 2 + torch.randn(rows, heads, tokens, dim) * 0.5
    table.append(slot, keys.to(dtype), torch.randn(rows, heads, tokens, value_dim or dim).to(dtype))


def engine(table, query, scale, slot=0):
    geometry = table.geometry[slot]
    output = query.new_empty(*query.shape[:3], geometry.value_dim)
    table.native.attend(slot, query, output, scale, None, True)
    return output


def queries(table, group=1, num_new=1, slot=0):
    geometry = table.geometry[slot]
    shape = (table.num_rows, geometry.num_heads * group, num_new, geometry.key_dim)
    return torch.randn(shape).to(geometry.dtype)


def assert_same_step(table, tier, group=1, num_new=1, slot=0):
    query = queries(table, group, num_new, slot)
    scale = query.shape[-1] ** -0.5
    found = tier.attend(slot, query, scale)
    (assert_close if num_new <= 32 else assert_near)(found, engine(table, query, scale, slot))
    assert tier.read_blocks(slot) == table.native.read_blocks(slot)
    pairs = (tier.read_shares(slot), table.native.read_shares(slot))
    for found, expected in zip(
        *(itertools.chain(*itertools.chain(*shares)) for shares in pairs), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert tier.selected(slot) == pytest.approx(table.native.selected(slot), rel=1e-4, abs=1e-6)


CASES = {
    "true positions": {},
    "compact positions": {"trained": 128},
    "tail is empty": {"tokens": 704},
    "a tail of one": {"tokens": 705},
    "guarded": {"budget": Selection(budget=192, sinks=16, window=32, dense_below=0, unread=0.02, growth=3.0)},
    "all in FP8": {"budget": Selection(budget=192, dense_below=0, critical_fraction=0.0)},
    "all in 16 bits": {"budget": Selection(budget=192, dense_below=0, critical_fraction=1.0)},
    "everything": {"budget": Selection(budget=1 << 14, dense_below=0)},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16, compact": {"dtype": torch.float16, "trained": 200},
    "partly turned": {"dims": 16},
    "interleaved": {"interleaved": True, "trained": 300},
    "other dims": {"dim": 80, "value_dim": 48, "page_tokens": 48},
    "one row": {"rows": 1, "heads": 3, "page_tokens": 16},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [1, 3])
def test_a_step_is_the_engine_s(case, group):
    table = make_table(**CASES[case])
    tier = HotTier(table, 8 << 20, CPU)
    assert tier.serves(0, 1, CPU)
    assert_same_step(table, tier, group)


@settings(max_examples=25)
@given(
    tokens=st.integers(300, 900),
    rows=st.integers(1, 2),
    heads=st.integers(1, 3),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 40, 64]),
    dtype=st.sampled_from(DTYPES),
    page_blocks=st.integers(1, 4),
    trained=st.sampled_from([100, 250, 1 << 20]),
    num_new=st.integers(1, 4),
)
def test_odd_steps(group, page_blocks, num_new, **shape):
    table = make_table(page_tokens=16 * page_blocks, **shape)
    assert_same_step(table, HotTier(table, 8 << 20, CPU), group, num_new)


@pytest.mark.parametrize("case", ["true positions", "float16, compact", "other dims"])
def test_a_step_of_the_kernels_is_the_engine_s(case):
    table = make_table(**{"rows": 1} | CASES[case])
    tier = HotTier(table, 8 << 20, CPU)
    tier._backend = pytest.importorskip("stratakv.attention.device.kernels")
    assert_same_step(table, tier, group=2)


# Little of what a step reads is what it reads anyway.
FAR = Selection(budget=192, sinks=16, window=32, recent=0.0, dense_below=0, unread=1.0)


def test_a_small_tier_evicts_and_stays_right():
    table = make_table(3000, slots=3, trained=512, budget=FAR)
    tier = HotTier(table, 400 << 10, CPU)
    for step in range(6):
        for slot in range(3):
            assert_same_step(table, tier, 2, slot=slot)
            grow(table, 1 + 20 * (step % 2), slot=slot)
        assert tier.stats()["used_bytes"] <= 400 << 10
    stats = tier.stats()
    assert stats["evictions"] > 0
    assert stats["hits"] > 0
    assert stats["copied_bytes"] > 0
    assert stats["summary_bytes"] > 0
    assert 0 < stats["guesses_read"] < stats["guesses"]


def test_pages_that_moved_are_not_guessed():
    """What a layer read last has other numbers once rows move: none of it is asked for."""
    table = make_table(3000, slots=2, trained=512, budget=FAR)
    tier = table.hot = HotTier(table, 400 << 10, CPU)
    for _ in range(2):
        for slot in (0, 1):
            assert_same_step(table, tier, slot=slot)
    guesses = tier.stats()["guesses"]
    assert guesses > 0
    table.reorder([1, 0])
    assert_same_step(table, tier, slot=0)
    assert tier.stats()["guesses"] == guesses
    table.crop(2000)
    for slot in (0, 1, 0, 1):
        assert_same_step(table, tier, slot=slot)
    assert tier.stats()["guesses"] > guesses


def test_pages_come_from_disk(tmp_path):
    table = make_table(6000, path=tmp_path, ram="1MiB", dtype=torch.bfloat16)
    tier = HotTier(table, 8 << 20, CPU)
    assert_same_step(table, tier)
    assert_same_step(table, tier)


def test_cropped_grown_reordered_and_forked_tables_are_followed():
    table = make_table(900)
    tier = table.hot = HotTier(table, 8 << 20, CPU)
    assert_same_step(table, tier)
    table.crop(650)
    assert_same_step(table, tier)
    grow(table, 200)
    assert_same_step(table, tier)
    table.reorder([1, 0])
    assert_same_step(table, tier)
    table.reorder([0, 0, 1])
    assert_same_step(table, tier)
    fork = table.fork()
    grow(fork, 70, rows=3)
    copied = tier.stats()["copied_bytes"]
    assert_same_step(fork, fork.hot)
    assert_same_step(table, tier)
    assert tier.stats()["copied_bytes"] == fork.hot.stats()["copied_bytes"] > copied
    table.reset()
    grow(table, 500, rows=1, heads=1, dim=64)
    assert_same_step(table, tier)


@pytest.mark.parametrize("since", [None, 49, 55])
@pytest.mark.parametrize("own", [0, 2])
def test_a_focus_is_read_by_all_heads(own, since):
    table = make_table(900, trained=256)
    tier = HotTier(table, 8 << 20, CPU)
    table.focus([[30, 7, 8, 7, 50], [0, 12]], own, since)
    assert_same_step(table, tier, group=2)
    table.reorder([1, 0])
    assert_same_step(table, tier)
    table.crop(640)  # before block 50 of what is row 1 now
    assert_same_step(table, tier)
    grow(table, 300)
    assert_same_step(table, tier)
    table.focus([], 0)
    assert_same_step(table, tier)


def assert_near(found, expected):
    """As `assert_close`, of thousands of sums of large scores: in float32 some are further apart."""
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    else:
        assert_close(found, expected)


def prefilling(**options):
    """A selection of which prefills, too, read a part; all in 16 bits, as a prefill's own tokens are."""
    fixed = {
        "budget": 192,
        "sinks": 16,
        "window": 32,
        "dense_below": 0,
        "dense_prefill_below": 0,
        "unread": 1.0,
    }
    return Selection(**fixed | {"critical_fraction": 1.0} | options)


PREFILLS = {
    "true positions": {},
    "compact positions": {"trained": 128},
    "a chunk at a page's end": {"tokens": 704, "num_new": 128},
    "more than a part": {"tokens": 699, "num_new": 333, "trained": 300},
    "a part that is a step's size": {"tokens": 650, "num_new": 74},
    "guarded": {"budget": prefilling(unread=0.02, growth=3.0)},
    "bfloat16, compact": {"dtype": torch.bfloat16, "trained": 200},
    "float16": {"dtype": torch.float16},
    "interleaved": {"interleaved": True, "trained": 300},
    "other dims": {"dim": 80, "value_dim": 48, "page_tokens": 48},
    "small pages": {"page_tokens": 16, "rows": 1},
    "large pages": {"page_tokens": 128, "trained": 256},
}


@pytest.mark.parametrize("case", PREFILLS)
@pytest.mark.parametrize("group", [1, 3])
def test_a_prefill_is_the_engine_s(case, group):
    options = {"num_new": 100, "budget": prefilling()} | PREFILLS[case]
    num_new = options.pop("num_new")
    table = make_table(**options)
    tier = HotTier(table, 8 << 20, CPU)
    assert tier.serves(0, num_new, CPU)
    assert_same_step(table, tier, group, num_new)


@settings(max_examples=20)
@given(
    tokens=st.integers(300, 900),
    rows=st.integers(1, 2),
    heads=st.integers(1, 3),
    group=st.integers(1, 4),
    dim=st.sampled_from([16, 40]),
    dtype=st.sampled_from(DTYPES),
    page_blocks=st.integers(1, 9),
    trained=st.sampled_from([100, 250, 1 << 20]),
    num_new=st.integers(33, 290),
    dense=st.sampled_from([0, 350, 1 << 20]),
    limit=st.sampled_from([150 << 10, 8 << 20]),
)
@example(tokens=300, rows=1, heads=2, group=1, dim=16, dtype=torch.float32, page_blocks=5, trained=100,
         num_new=237, dense=0, limit=8 << 20)  # fmt: skip
@example(tokens=300, rows=1, heads=1, group=2, dim=16, dtype=torch.float32, page_blocks=9, trained=100,
         num_new=290, dense=0, limit=8 << 20)  # fmt: skip
def test_odd_prefills(group, page_blocks, num_new, dense, limit, **shape):
    table = make_table(page_tokens=16 * page_blocks, budget=prefilling(dense_prefill_below=dense), **shape)
    tier = HotTier(table, limit, CPU)
    query = queries(table, group, num_new)
    try:
        found = tier.attend(0, query, 0.2)
    except ValueError as error:
        assert "raise hot=" in str(error)
        assert limit < 1 << 20
        return
    assert_near(found, engine(table, query, 0.2))
    assert tier.attended(0) == (table.length(0) > dense)
    if tier.attended(0):
        assert tier.read_blocks(0) == table.native.read_blocks(0)


def test_a_prefill_s_far_tokens_are_read_in_fp8():
    """As the engine's, whose own tokens are in FP8 too."""
    table = make_table(900, budget=prefilling(critical_fraction=0.05))
    tier = HotTier(table, 8 << 20, CPU)
    query = queries(table, 2, 100)
    found, expected = tier.attend(0, query, 0.2), engine(table, query, 0.2)
    assert tier.read_blocks(0) == table.native.read_blocks(0)
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.03
    # Nothing but that differs.
    table.select(prefilling(critical_fraction=1.0), 1 << 20)
    assert (tier.attend(0, query, 0.2) - found).norm() / found.norm() > 1e-4
    assert tier.stats()["misses"] > 0


def test_what_a_prefill_reads_whole_passes_through_a_small_tier():
    table = make_table(3000, budget=prefilling(dense_prefill_below=1 << 20, critical_fraction=0.1), slots=2)
    tier = HotTier(table, 200 << 10, CPU)
    for slot in (0, 1, 0):
        query = queries(table, 2, 300, slot)
        assert_near(tier.attend(slot, query, 0.2), engine(table, query, 0.2, slot))
        assert tier.stats()["used_bytes"] <= 200 << 10
    assert tier.stats()["evictions"] > 0


def test_a_prefill_of_the_kernels_is_the_engine_s():
    table = make_table(
        390, rows=1, heads=1, dim=16, trained=300, budget=prefilling(budget=80, dense_prefill_below=330)
    )
    tier = HotTier(table, 8 << 20, CPU)
    tier._backend = pytest.importorskip("stratakv.attention.device.kernels")
    query = queries(table, 2, 90)  # from token 300 on: the first read everything, the others select
    assert_near(tier.attend(0, query, 0.2), engine(table, query, 0.2))


@given(start=st.integers(0, 700), num_new=st.integers(1, 700), dense_below=st.integers(0, 1500))
def test_parts_of_a_prefill(start, num_new, dense_below):
    length = start + num_new
    parts = list(parts_of(start, length, dense_below))
    assert [part[0] for part in parts] == [start, *(end for _, end, _ in parts[:-1])]
    assert parts[-1][1] == length
    for first, end, is_dense in parts:
        assert 0 < end - first <= (256 if is_dense else 64)
        # The engine's own cut says of each token whether it selects.
        for token in range(first, end):
            assert is_dense == (min((token // 64 + 1) * 64, length) <= dense_below)
        assert end == length or end % 64 == 0


META = torch.device("meta")  # computes nothing: a place that is not the CPU


def test_each_device_has_a_tier_of_its_own():
    table = make_table(slots=2)
    table.hot = HotTiers(table, 8 << 20, [CPU, META])
    assert all(table.hot.serves(0, 1, device) for device in (CPU, META))
    assert not table.hot.serves(0, 1, torch.device("cuda"))
    assert_same_step(table, table.hot, slot=1)
    assert [table.hot.attended(slot) for slot in (0, 1)] == [False, True]
    on_cpu, elsewhere = table.hot.stats()["devices"]
    assert (on_cpu["device"], elsewhere["device"]) == ("cpu", "meta")
    assert on_cpu["misses"] > 0
    assert elsewhere["pages"] == 0
    assert table.hot.stats()["misses"] == on_cpu["misses"]
    assert table.hot.stats()["limit_bytes"] == 16 << 20
    fork = table.fork()
    assert_same_step(fork, fork.hot, slot=1)
    assert fork.hot.stats()["misses"] == table.hot.stats()["misses"]
    table.hot.forget(1)
    assert table.hot.read_blocks(1) is table.hot.read_shares(1) is table.hot.selected(1) is None
    assert fork.hot.attended(1)
    one = HotTiers(table, 8 << 20, [CPU])
    assert_same_step(table, one)
    assert "devices" not in one.stats()


def test_a_device_s_slots_are_for_its_own_layers():
    table = make_table(tokens=700, slots=1)
    other = PageTable(table.store, num_slots=2, page_tokens=32, settings=table.rotary.settings(),
                      rotary=table.rotary, planes=True)  # fmt: skip
    other.select(table.selection, 1 << 20)
    for slot, heads in enumerate((2, 4)):
        grow(other, 700, slot=slot, heads=heads)
    num_slots = {}
    for name, devices in {"both here": [CPU, CPU], "not known": [None, None], "apart": [CPU, META]}.items():
        other.devices = devices
        tier = HotTier(other, 1 << 20, CPU)
        assert_same_step(other, tier)
        num_slots[name] = len(tier._pools._pair(other, 0).planes.codes)
    assert num_slots["both here"] == num_slots["not known"]
    assert num_slots["apart"] > 2.5 * num_slots["both here"]
    # Its queries come here all the same: slots are made for both.
    assert_same_step(other, tier, slot=1)
    assert_same_step(other, tier)
    assert len(tier._pools._pair(other, 0).planes.codes) == num_slots["both here"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_on_two_gpus():
    table = make_table(slots=2)
    devices = [torch.device("cuda", number) for number in range(2)]
    tiers = HotTiers(table, 8 << 20, devices)
    for slot, device in enumerate(devices):
        query = queries(table, slot=slot)
        found = tiers.attend(slot, query.to(device), 0.2)
        assert found.device == device
        assert_close(found.cpu(), engine(table, query, 0.2, slot))
    assert all(stats["misses"] > 0 for stats in tiers.stats()["devices"])


def test_what_was_read_is_forgotten_with_another_attention():
    table = make_table()
    tier = HotTier(table, 8 << 20, CPU)
    assert tier.selected(0) is None
    tier.attend(0, queries(table), 1.0)
    assert tier.selected(0) is not None
    tier.forget(0)
    assert not tier.attended(0)
    assert tier.selected(0) is tier.read_blocks(0) is tier.read_shares(0) is None


def test_what_it_does_not_serve():
    table = make_table()
    tier = HotTier(table, 8 << 20, CPU)
    for num_new in (1, 32, 33):
        assert tier.serves(0, num_new, CPU)
        assert not tier.serves(0, num_new, META)
    table.select(Selection(budget=512), 1 << 20)  # whole up to 1024 tokens
    assert not tier.serves(0, 1, CPU)
    assert not tier.serves(0, 33, CPU)
    table.select(None, 1 << 20)
    assert not tier.serves(0, 1, CPU)
    assert not tier.serves(0, 33, CPU)


def test_what_can_not_be_is_refused():
    table = make_table()
    with pytest.raises(ValueError, match="raise hot="):
        HotTier(table, 20 << 10, CPU).attend(0, queries(table), 1.0)
    with pytest.raises(ValueError, match="holds no page"):
        HotTier(table, 1 << 10, CPU).attend(0, queries(table), 1.0)
    plain = PageTable(Store(None), num_slots=1, page_tokens=16)
    with pytest.raises(ValueError, match="mixed"):
        HotTier(plain, 1 << 20, CPU)
