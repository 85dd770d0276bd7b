"""`stratakv train`, from text files to a model that `ask` uses."""

from __future__ import annotations

import json
import signal

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


def test_a_file_of_options_and_flags_before_it(tmp_path, book, capsys):
    file = tmp_path / "run.toml"
    file.write_text(
        f'text = "{book}"\nout = "{tmp_path / "run"}"\nsteps = 9\nresidual = "plain"\noptimizer = "muon"\n'
    )
    assert main(["train", "--config", str(file), *FLAGS, "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["num_streams"], config["learnable_scale"]) == (1, False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("speed = 3", "speed is no option"),
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
