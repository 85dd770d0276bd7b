"""`stratakv train`, from text files to a model that `ask` uses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stratakv.cli import main

SIZES = {"vocab-size": 300, "hidden-size": 32, "num-layers": 2, "num-heads": 2, "num-kv-heads": 1, "batch": 2}
FLAGS = [word for name, value in (SIZES | {"length": 32}).items() for word in (f"--{name}", str(value))]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("It was a dark and stormy night; the rain fell in torrents. " * 120)
    return path


def test_trains_goes_on_and_answers(tmp_path, book, capsys):
    run = tmp_path / "run"
    arguments = ["train", "--text", str(book), "--out", str(run), *FLAGS, "--json", "--eval-every", "3"]
    assert main([*arguments, "--steps", "4"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--steps", "6"]) == 0
    said = capsys.readouterr()
    assert "going on after update 4" in said.err
    last = json.loads(said.out)
    assert (first["step"], last["step"]) == (4, 6)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[3]["loss"] == first["loss"]
    assert main([*arguments, "--steps", "5"]) == 0  # fewer than were done
    assert json.loads(capsys.readouterr().out)["held_out"] == last["held_out"]
    assert (run / "loss.svg").read_text().startswith("<svg")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    ids = tokenizer("the rain fell", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == "the rain fell"
    assert torch.isfinite(model(ids).logits).all()

    answer = ["ask", str(book), "What fell?", "--model", str(run), "--max-new-tokens", "3"]
    assert main([*answer, "--directory", str(tmp_path / "sessions"), "--budget", "256", "--json"]) == 0


def test_tables_in_files_train_as_in_ram(tmp_path, book, capsys):
    (tmp_path / "tables").mkdir()
    arguments = [
        "train",
        "--text",
        str(book),
        *FLAGS,
        "--memory-layers",
        "1",
        "--memory-rows",
        "500",
        "--json",
    ]
    in_ram, in_files = tmp_path / "ram", tmp_path / "files"
    assert main([*arguments, "--out", str(in_ram), "--sparse-tables", "--steps", "6"]) == 0
    expected = json.loads(capsys.readouterr().out)["loss"]
    assert main([*arguments, "--out", str(in_files), "--sparse-tables", "--steps", "3"]) == 0
    capsys.readouterr()
    tables = ["--memory-tables", str(tmp_path / "tables")]
    assert main([*arguments, "--out", str(in_files), *tables, "--steps", "6"]) == 0
    said = capsys.readouterr()
    assert "going on after update 3" in said.err
    assert json.loads(said.out)["loss"] == expected
    assert not list((tmp_path / "tables").iterdir())

    from safetensors.torch import load_file

    mine, theirs = load_file(in_files / "model.safetensors"), load_file(in_ram / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a small disk that refuses at once")
def test_a_full_disk_says_what_to_do_about_tables(tmp_path, book, capsys):
    whole = os.statvfs("/dev/shm")
    # Two orders of eight heads, rows of 64 float32.
    rows = 2 * whole.f_blocks * whole.f_frsize // (2 * 8 * 256)
    arguments = ["train", "--text", str(book), "--out", str(tmp_path / "run"), *FLAGS, "--memory-layers", "1"]
    assert main([*arguments, "--memory-tables", "/dev/shm", "--memory-rows", str(rows)]) == 1
    said = capsys.readouterr().err
    assert "/dev/shm: No space left on device for a table of" in said
    assert "--memory-rows" in said
    assert "sessions" not in said


def test_a_file_of_options_and_flags_before_it(tmp_path, book, capsys):
    file = tmp_path / "run.toml"
    file.write_text(
        f'text = "{book}"\nout = "{tmp_path / "run"}"\nsteps = 9\nresidual = "plain"\noptimizer = "muon"\n'
    )
    assert main(["train", "--config", str(file), *FLAGS, "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["num_streams"], config["learnable_scale"]) == (1, False)


def test_only_the_owner_reads_a_run(tmp_path, book):
    run = tmp_path / "deeper" / "run"
    before = os.umask(0)
    try:
        arguments = ["train", "--text", str(book), "--out", str(run), *FLAGS, "--steps", "2", "--tensorboard"]
        assert main(arguments) == 0
        assert os.umask(0) == 0  # as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    files = [path for path in run.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"checkpoint.safetensors", "log.jsonl", "loss.svg", "model.safetensors", "tokenizer.json"} <= names
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        path.name: "0o600" for path in files
    }


def test_event_files_have_what_the_log_has(tmp_path, book):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    arguments = [
        "train",
        "--text",
        str(book),
        "--out",
        str(run),
        *FLAGS,
        "--tensorboard",
        "--eval-every",
        "2",
    ]
    assert main([*arguments, "--steps", "3"]) == 0
    assert main([*arguments, "--steps", "5"]) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    events = accumulators.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for tag, key in {"loss/batch": "loss", "lr": "lr", "loss/held_out": "held_out"}.items():
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(line["step"], line[key]) for line in log if key in line]
        assert [step for step, _ in written] == [step for step, _ in expected]
        assert [value for _, value in written] == pytest.approx([value for _, value in expected])


def test_defaults_are_the_configs_own():
    from stratakv.cli.train import DEFAULTS
    from stratakv.train import TrainConfig

    for name, value in dataclasses.asdict(TrainConfig()).items():
        if name in DEFAULTS:
            assert DEFAULTS[name] == value, name
    assert {"steps", "lr", "precision", "optimizer"} <= set(DEFAULTS)
    code = "import sys, stratakv.cli.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_in_chosen_blocks(tmp_path, book):
    run = tmp_path / "run"
    arguments = ["train", "--text", str(book), "--out", str(run), *FLAGS, "--steps", "1"]
    assert main([*arguments, "--memory-layers", "0"]) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["memory"]["layers"] == [0]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    vocabulary = model.model.layers[0].memory.vocabulary
    first, second = tokenizer.convert_tokens_to_ids(["t", "T"])
    assert vocabulary[first] == vocabulary[second]  # one word in the memory, whatever its case


def test_comparison_stops_goes_on_and_tells(tmp_path, book, capsys, monkeypatch):
    from stratakv.train import Trainer

    out = tmp_path / "compare"
    arguments = ["train", "compare", "--text", str(book), "--out", str(out), *FLAGS, "--json"]
    arguments += ["--steps", "6", "--warmup", "1", "--eval-every", "2", "--seeds", "2", "--stress", "300"]
    advance, done = Trainer.advance, []

    def counted(self):
        done.append(self.config.seed)
        if len(done) == 9:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", counted)
    assert main(arguments) == 130
    assert "stopped in run 2 of 15" in capsys.readouterr().err
    assert main(arguments) == 0
    # None twice: twelve runs and those that a high learning rate did not end before their time.
    assert 12 * 6 < len(done) <= 15 * 6
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["variants"]) == [
        kind + memory for memory in ("", " + memory") for kind in ("plain", "unconstrained", "mhc")
    ]
    for name, entry in summary["variants"].items():
        assert entry["seeds"] == [0, 1]
        assert all(math.isfinite(loss) for loss in entry["final_loss"])
        if name.startswith("plain"):
            assert entry["steps_to_plain_loss"] == [1.0, 1.0]
    assert set(summary["stress"]) == {"plain", "unconstrained", "mhc"}
    assert (out / "compare.svg").read_text().count("<polyline") == 6
    assert (out / "compare.md").read_text().count("\n") == 8
    before = len(done)
    assert main(arguments) == 0  # all there
    assert len(done) == before
    assert json.loads(capsys.readouterr().out) == summary
    assert main([*arguments, "--lr", "0.5"]) == 2
    assert "of another run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "recompute"), [("adamw", "blocks"), ("muon", "streams")])
def test_two_processes_compute_what_one_does(tmp_path, book, optimizer, recompute):
    """FSDP2 over gloo: the same losses and model, and either goes on with the other's checkpoint."""
    options = ["--text", str(book), *FLAGS, "--optimizer", optimizer, "--json", "--eval-every", "2"]

    def two(run, steps):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "stratakv", "train", *options, "--out", str(run), "--steps", str(steps)]
        command += ["--recompute", recompute]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip())

    def losses(run):
        return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]

    alone, shared, mixed = tmp_path / "alone", tmp_path / "shared", tmp_path / "mixed"
    assert main(["train", *options, "--out", str(alone), "--steps", "6"]) == 0
    last = two(shared, 3)
    assert last["step"] == 3
    two(shared, 6)
    assert losses(shared) == pytest.approx(losses(alone), rel=2e-3)
    shutil.copytree(shared, mixed)
    assert main(["train", *options, "--out", str(mixed), "--steps", "8"]) == 0
    assert main(["train", *options, "--out", str(alone), "--steps", "8"]) == 0
    assert losses(mixed) == pytest.approx(losses(alone), rel=2e-3)

    from safetensors.torch import load_file

    mine, theirs = load_file(mixed / "model.safetensors"), load_file(alone / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (mine[name] - value).norm() <= 0.05 * value.norm() + 1e-2, name


def test_a_batch_that_processes_cannot_share():
    from stratakv.nn import StrataLM, TransformerConfig
    from stratakv.train import Group, TrainConfig, Trainer

    model = StrataLM(TransformerConfig(vocab_size=32, hidden_size=32, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        Trainer(model, torch.zeros(9999), TrainConfig(batch=4), group=Group(0, 3))
    with pytest.raises(ValueError, match="sparse_tables: such tables cannot be split"):
        Trainer(model, torch.zeros(9999), TrainConfig(batch=3, sparse_tables=True), group=Group(0, 3))


@pytest.mark.filterwarnings("ignore:no FP8 products here")
def test_scales_of_fp8_and_what_is_computed_again(tmp_path, book, capsys):
    """From the file and from flags; the checkpoint keeps both, and what changes results stays as it was."""
    run, file = tmp_path / "run", tmp_path / "run.toml"
    file.write_text('precision = "fp8"\nfp8_scales = "tiles"\nrecompute = "blocks"\n')
    arguments = ["train", "--text", str(book), "--out", str(run), *FLAGS, "--json"]
    assert main([*arguments, "--config", str(file), "--recompute", "streams", "--steps", "2"]) == 0

    from stratakv.train.checkpoint import read_progress

    kept = read_progress(run / "checkpoint.safetensors")["train"]
    assert (kept["precision"], kept["fp8_scales"], kept["recompute"]) == ("fp8", "tiles", "streams")
    capsys.readouterr()
    assert main([*arguments, "--precision", "fp8", "--steps", "3"]) == 2
    assert "fp8_scales=tiles there, rows here" in capsys.readouterr().err
    assert main([*arguments, "--precision", "fp8", "--fp8-scales", "tiles", "--steps", "3"]) == 0
    assert "going on after update 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("speed = 3", "speed is no option"),
        ('precision = "int8"', "precision='int8': there are full, bf16, fp8"),
        ('fp8_scales = "blocks"', "fp8_scales='blocks': there are rows, tiles"),
        ('fp8_scales = "tiles"', "fp8_scales='tiles' is of precision='fp8', and precision is 'full'"),
        ("recompute = true", "recompute=True: there are nothing, streams, blocks"),
        ('tensorboard = "yes"', "tensorboard='yes': accepted are true and false"),
        ('sparse_tables = "yes"', "sparse_tables='yes': accepted are true and false"),
        ('memory_tables = "nowhere"', "memory_tables='nowhere' is no directory"),
        ("memory_rows = 1.5", "memory_rows=1.5 is not a whole number"),
        ('residual = "none"', "there are mhc"),
        ("steps = ", "run.toml"),
        ("lr = -1.0", "lr=-1.0 must be positive"),
        ('lr = "fast"', "lr='fast' is not a number"),
        ("steps = 1.5", "steps=1.5 is not a whole number"),
        ("num_heads = 3", "must be a multiple of"),
        ("length = 100000", "give more text"),
    ],
)
def test_wrong_options_exit_with_2(tmp_path, book, capsys, line, said):
    file = tmp_path / "run.toml"
    file.write_text(f'text = "{book}"\nout = "{tmp_path / "run"}"\nvocab_size = 300\n{line}\n')
    assert main(["train", "--config", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_missing_text_and_another_model(tmp_path, book, capsys):
    assert main(["train", "--out", str(tmp_path)]) == 2
    assert "--text is missing" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "--text and --out are missing" in capsys.readouterr().err
    arguments = ["train", "--text", str(book), "--out", str(tmp_path / "run"), *FLAGS, "--steps", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--residual", "plain"]) == 2
    assert "other sizes" in capsys.readouterr().err


def test_stopping_keeps_what_was_done(tmp_path, book, capsys, monkeypatch):
    from stratakv.train import Trainer

    advance = Trainer.advance

    def interrupted(self):
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C in the middle of the second update
        return advance(self)

    arguments = ["train", "--text", str(book), "--out", str(tmp_path / "run"), *FLAGS, "--steps", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        assert main(arguments) == 130
    assert "stopped after update 2" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "going on after update 2" in capsys.readouterr().err
