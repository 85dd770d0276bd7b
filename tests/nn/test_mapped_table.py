"""Tables in files: the same numbers as in RAM, in training and after, and nothing is left behind."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import mmap
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from stratakv._native import RowFile
from stratakv.hf import StrataForCausalLM
from stratakv.nn import MappedTable, MemoryConfig, StrataLM, TransformerConfig, map_tables
from stratakv.nn.mapped_table import MappedRows
from stratakv.train import TrainConfig, Trainer
from stratakv.train.optimizers import RowAdam, clip_gradients

MEMORY = MemoryConfig(layers=(0, 1), compressed_size=32, table_sizes=(97, 211), num_heads=2, ngram_dim=8)
CONFIG = TransformerConfig(
    vocab_size=32, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, memory=MEMORY
)
RUN = TrainConfig(
    steps=9, batch=4, length=24, lr=1e-2, warmup=3, eval_every=3, save_every=3, sparse_tables=True
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is in RAM")


def text():
    return torch.randint(32, (2000,), generator=torch.Generator().manual_seed(5)).int()


def model_of(table_directory=None):
    torch.manual_seed(0)
    return StrataLM(CONFIG, table_directory=table_directory)


def trainer_of(table_directory=None, path=None, config=RUN):
    return Trainer(model_of(table_directory), text(), config, path)


def finish(trainer):
    while not trainer.is_done:
        trainer.advance()
    return trainer


def losses(trainer):
    return [(step.loss, step.grad_norm, step.held_out) for step in trainer.history]


def tables_of(model):
    return [block.memory.table for block in model.model.layers]


def test_starts_as_in_ram(tmp_path):
    in_ram, in_file = model_of(), model_of(tmp_path)
    assert all(isinstance(table, MappedTable) for table in tables_of(in_file))
    for (name, mine), (other_name, other) in zip(
        in_file.named_parameters(), in_ram.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(mine, other)


def test_moving_keeps_values_and_leaves_no_name(tmp_path):
    model = model_of()
    tables_of(model)[0].requires_grad_(False)
    ids = torch.randint(32, (2, 9))
    expected = model(ids)
    map_tables(model, tmp_path)
    moved = tables_of(model)
    map_tables(model, tmp_path)
    assert tables_of(model) == moved
    assert [table.weight.requires_grad for table in moved] == [False, True]
    assert torch.equal(model(ids), expected)
    with torch.no_grad():
        assert torch.equal(model(ids), expected)
    assert not list(tmp_path.iterdir())


@on_linux
def test_the_file_goes_with_its_last_user(tmp_path):
    rows = MappedRows(10, 4, tmp_path)
    weight = rows.planes[0]
    del rows
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del weight
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_trains_to_the_same_losses_as_in_ram(tmp_path, optimizer):
    config = dataclasses.replace(RUN, optimizer=optimizer)
    in_ram, in_file = finish(trainer_of(config=config)), finish(trainer_of(tmp_path, config=config))
    assert losses(in_file) == losses(in_ram)
    for mine, other in zip(tables_of(in_file.model), tables_of(in_ram.model), strict=True):
        assert torch.equal(mine.weight, other.weight)
    assert in_file.history[-1].loss != in_file.history[0].loss


@pytest.mark.parametrize("first", ["ram", "file"])
def test_goes_on_in_the_other_place(tmp_path, first):
    whole = finish(trainer_of())
    (tmp_path / "tables").mkdir()
    path = tmp_path / "checkpoint.safetensors"
    places = {"ram": None, "file": tmp_path / "tables"}
    stopped = trainer_of(places.pop(first), path)
    for _ in range(6):
        stopped.advance()
    trainer = trainer_of(places.popitem()[1], path)
    assert trainer.resume()
    assert losses(finish(trainer)) == losses(whole)


def test_what_the_optimizer_keeps_stays_in_its_file(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    finish(trainer_of(tmp_path, path))
    trainer = trainer_of(tmp_path, path)
    (adam,) = (each for each in trainer.optimizers if isinstance(each, RowAdam))
    table = tables_of(trainer.model)[0]
    before = adam.state[table.weight]["exp_avg"].data_ptr()
    trainer.resume()
    assert adam.state[table.weight]["exp_avg"].data_ptr() == before
    assert adam.state[table.weight]["exp_avg"].any()


def test_a_row_and_what_the_optimizer_keeps_of_it_are_one_read(tmp_path):
    trainer = trainer_of(tmp_path)
    table = tables_of(trainer.model)[1]
    (adam,) = (each for each in trainer.optimizers if isinstance(each, RowAdam))
    state = adam.state[table.weight]
    step = table.weight.shape[1] * 4
    addresses = [each[7].data_ptr() for each in (table.weight, state["exp_avg"], state["exp_avg_sq"])]
    assert [address - addresses[0] for address in addresses] == [0, step, 2 * step]


def test_rows_that_no_batch_looked_up_stay(tmp_path):
    trainer = trainer_of(tmp_path)
    table = tables_of(trainer.model)[0]
    before = table.weight.detach().clone()
    trainer.advance()
    changed = (table.weight != before).any(-1)
    assert 0 < changed.sum() < len(changed)


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize("num_rows", [7, 40_000])
def test_row_adam_is_sparse_adam(tmp_path, num_rows):
    torch.manual_seed(3)
    first = torch.randn(num_rows, 6)
    theirs = torch.nn.Parameter(first.clone())
    plain = torch.nn.Parameter(first.clone())
    table = MappedTable(num_rows, 6, tmp_path, initial=first)
    options = {"lr": 0.03, "betas": (0.8, 0.9)}
    expected = torch.optim.SparseAdam([theirs], **options)
    in_ram, in_file = RowAdam([plain], **options), RowAdam([table.weight], **options)
    in_file.start(table.weight, *table.add_planes(2))
    for _ in range(5):
        rows = torch.randint(num_rows, (num_rows // 2,))
        grad = torch.sparse_coo_tensor(
            rows[None], torch.randn(len(rows), 6), first.shape, check_invariants=True
        )
        for parameter, optimizer in ((theirs, expected), (plain, in_ram), (table.weight, in_file)):
            parameter.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(plain, theirs)
    assert torch.equal(table.weight, plain)


@pytest.mark.parametrize("norm_max", [1e-3, 1e3])
def test_clipping_is_the_same_for_sparse_gradients(norm_max):
    dense, sparse = model_of(), model_of()
    for table in tables_of(sparse):
        table.sparse = True
    ids = torch.randint(32, (3, 12))
    norms = []
    for model in (dense, sparse):
        model.loss(ids).backward()
        norms.append(clip_gradients(model, norm_max))
    torch.testing.assert_close(norms[1], norms[0])
    for mine, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.to_dense() if mine.grad.is_sparse else mine.grad, other.grad)


def test_generates_the_same_from_a_file(tmp_path):
    made = StrataForCausalLM.from_strata_lm(model_of(), eos_token_id=None, pad_token_id=0).eval()
    ids = torch.randint(1, 32, (2, 5))
    expected = made.generate(ids, max_new_tokens=12, do_sample=False)
    map_tables(made, tmp_path)
    assert torch.equal(made.generate(ids, max_new_tokens=12, do_sample=False), expected)


def test_says_what_it_cannot_take(tmp_path):
    with pytest.raises(ValueError, match=r"bfloat16.*call model.cpu\(\).float\(\)"):
        map_tables(model_of().bfloat16(), tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        map_tables(model_of(), tmp_path / "nowhere")
    table = MappedTable(10, 4, tmp_path)
    with pytest.raises(ValueError, match="row 10 of .* has 10 rows"):
        table.prefetch(torch.tensor([3, 10]))
    with pytest.raises(ValueError, match=r"torch.int32.*call .to\(torch.int64\)"):
        table.prefetch(torch.tensor([3], dtype=torch.int32))


def test_dense_updates_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give sparse_tables=True"):
        trainer_of(tmp_path, config=dataclasses.replace(RUN, sparse_tables=False))


def test_a_copy_of_a_model_is_apart(tmp_path):
    model = model_of(tmp_path)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        tables_of(copied)[0].weight.zero_()
    assert tables_of(model)[0].weight.any()
    copied(torch.randint(32, (1, 4)))


def resident(mapped):
    """Which pages of a mapping are in RAM."""
    return resident_at(ctypes.addressof(ctypes.c_char.from_buffer(mapped)), len(mapped))


def resident_at(address, size):
    """Which pages of that memory, from the one with its first byte, are in RAM."""
    inside = address % mmap.PAGESIZE
    pages = (ctypes.c_ubyte * -(-(inside + size) // mmap.PAGESIZE))()
    first, length = ctypes.c_void_p(address - inside), ctypes.c_size_t(inside + size)
    assert ctypes.CDLL(None, use_errno=True).mincore(first, length, pages) == 0
    return [page & 1 for page in pages]


@on_linux
@pytest.mark.parametrize("num_rows", [3, 300])
def test_prefetched_rows_come_into_ram_and_others_do_not(tmp_path, num_rows):
    path, count = tmp_path / "table", 4096
    path.write_bytes(os.urandom(count * mmap.PAGESIZE))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0)
        mapped.madvise(mmap.MADV_RANDOM)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if any(resident(mapped)):
            pytest.skip("the system keeps the file in RAM")
        rows = torch.arange(num_rows) * 13
        assert RowFile(path, mmap.PAGESIZE).prefetch(rows) == num_rows
        wanted = [int(page % 13 == 0 and page < 13 * num_rows) for page in range(count)]
        stop = time.monotonic() + 30
        while (found := resident(mapped)) != wanted and time.monotonic() < stop:
            time.sleep(0.01)
        assert found == wanted


def forget(mapped, path):
    """Has the system drop what it holds of a tensor's file in RAM, where nothing was changed."""
    inside = mapped.data_ptr() % mmap.PAGESIZE
    first, length = ctypes.c_void_p(mapped.data_ptr() - inside), ctypes.c_size_t(inside + mapped.nbytes)
    assert ctypes.CDLL(None, use_errno=True).madvise(first, length, mmap.MADV_DONTNEED) == 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Rows of 2 KiB, so that a page has two.
LARGE = dataclasses.replace(MEMORY, layers=(1,), table_sizes=(1009, 1013), num_heads=2, ngram_dim=1024)


@on_linux
def test_a_loaded_models_tables_are_read_ahead(tmp_path):
    """Mapped by `from_pretrained` from the checkpoint, at whatever place of it the table is."""
    config = dataclasses.replace(CONFIG, memory=LARGE)
    StrataForCausalLM.from_strata_lm(StrataLM(config), pad_token_id=0).save_pretrained(tmp_path)
    model = StrataForCausalLM.from_pretrained(tmp_path)
    memory = model.model.layers[1].memory
    weight, row_bytes = memory.table.weight, memory.table.embedding_dim * 4
    assert memory._read_ahead.file(weight).num_rows == len(weight)
    forget(weight, tmp_path / "model.safetensors")
    # Ends of the table lie in pages of what is beside it.
    if any(resident_at(weight.data_ptr(), weight.nbytes)[2:-2]):
        pytest.skip("the system keeps the file in RAM")
    ids = torch.randint(32, (1, 5))
    model.model.prefetch(ids)
    wanted = {int(row) for row in memory.rows(ids).flatten()}
    stop = time.monotonic() + 30
    while time.monotonic() < stop:
        found = {row for row in wanted if all(resident_at(weight.data_ptr() + row * row_bytes, row_bytes))}
        if found == wanted:
            break
        time.sleep(0.01)
    assert found == wanted
    assert sum(resident_at(weight.data_ptr(), weight.nbytes)) <= 2 * len(wanted) + 4
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_tables_in_plain_ram_have_no_file():
    memory = model_of().model.layers[0].memory
    assert memory._read_ahead.file(memory.table.weight) is None
    memory.prefetch(torch.randint(32, (1, 4)))


def test_the_transformers_model_shares_the_memory_of_the_parameters(tmp_path):
    model = model_of(tmp_path)
    made = StrataForCausalLM.from_strata_lm(model, pad_token_id=0)
    theirs = dict(model.named_parameters())
    assert {name: one.data_ptr() for name, one in made.named_parameters()} == {
        name: one.data_ptr() for name, one in theirs.items()
    }
    assert not any(one.is_meta for one in (*made.parameters(), *made.buffers()))
    assert made.lm_head.weight is made.model.embed_tokens.weight
    ids = torch.randint(32, (1, 6))
    torch.testing.assert_close(made(ids).logits, model(ids))
