"""What a comparison tells: steps to a loss, equal numbers of parameters, runs that are lost."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from stratakv.nn import MemoryConfig, StrataLM, TransformerConfig
from stratakv.train import Step, TrainConfig
from stratakv.train.compare import (
    KINDS,
    Comparison,
    Run,
    as_table,
    count_parameters,
    is_lost,
    mean_curve,
    run_all,
    steps_to_loss,
    summarise,
    widened,
)

MODEL = TransformerConfig(vocab_size=32, hidden_size=32, num_layers=2, num_heads=2)
MEMORY = MemoryConfig(layers=(1,), compressed_size=32, table_sizes=(31,), num_heads=2, ngram_dim=8)
TRAIN = TrainConfig(steps=4, batch=2, length=16, warmup=1, eval_every=2, eval_batches=1)
COMPARISON = Comparison(MODEL, TRAIN, MEMORY, seeds=2)


def steps(losses, every=1):
    return [
        Step(number, loss, 0.1, 1.0, 0.1, loss if number % every == 0 else None)
        for number, loss in enumerate(losses, 1)
    ]


def test_steps_to_a_loss_lie_between_points():
    curve = [(10, 5.0), (20, 4.0), (30, 3.5), (40, 3.6)]
    assert steps_to_loss(curve, 5.5) == 10
    assert steps_to_loss(curve, 4.0) == 20
    assert steps_to_loss(curve, 4.25) == 17.5
    assert steps_to_loss(curve, 3.5) == 30
    assert steps_to_loss(curve, 3.4) == math.inf
    assert mean_curve([steps([3.0, 2.0], 2), steps([9.0, 4.0])]) == [(2, 3.0)]


@pytest.mark.parametrize("memory", [False, True])
def test_all_kinds_have_as_many_parameters(memory):
    counts = {kind: count_parameters(COMPARISON.config_of(Run(kind, memory, 0))) for kind in KINDS}
    bare = count_parameters(dataclasses.replace(MODEL, memory=MEMORY if memory else None))
    per_column = 3 * 32 * 2
    assert counts["mhc"] == bare
    for kind, count in counts.items():
        assert bare <= count < bare + per_column, kind
    config = COMPARISON.config_of(Run("plain", memory, 0))
    assert config.mlp_size > MODEL.mlp_size
    assert count_parameters(config) == sum(p.numel() for p in StrataLM(config).parameters())
    assert widened(config, 0) is config


def test_runs_are_those_of_a_seed_first():
    runs = COMPARISON.runs()
    assert len(runs) == len({run.name for run in runs}) == 15
    assert [run.seed for run in runs[:12]] == [0] * 6 + [1] * 6
    assert [run.is_stressed for run in runs] == [False] * 12 + [True] * 3
    assert COMPARISON.train_of(runs[-1]).lr == 30 * TRAIN.lr
    assert COMPARISON.train_of(runs[7]).seed == 1
    assert len(dataclasses.replace(COMPARISON, memory=None, stress=0).runs()) == 6


def test_what_is_told():
    histories = {
        Run("plain", False, 0): steps([4.0, 3.0, 2.0, 1.0]),
        Run("mhc", False, 0): steps([4.0, 2.0, 1.0, 0.5]),
        Run("unconstrained", False, 0): steps([4.0, 3.0, 7.0]),
        Run("plain", False, 1): steps([4.0, 3.0]),  # under way
        Run("mhc", False, 1): steps([4.0, 3.0, 2.0, 2.0]),
        Run("plain", False, 0, True): steps([4.0, math.nan]),
        Run("mhc", False, 0, True): steps([4.0, 5.0, 5.0, 4.0]),
    }
    summary = summarise(COMPARISON, histories)
    variants = summary["variants"]
    assert variants["plain"]["final_loss"] == [1.0]
    assert variants["plain"]["steps_to_plain_loss"] == [1.0]
    assert variants["mhc"]["final_loss"] == [0.5, 2.0]
    assert variants["mhc"]["mean_final_loss"] == 1.25
    assert variants["mhc"]["steps_to_plain_loss"] == [0.75, None]  # no plain run of seed 1 yet
    assert variants["unconstrained"]["final_loss"] == [None]
    assert summary["stress"]["plain"]["diverged"]
    assert summary["stress"]["plain"]["last_loss"] is None
    assert not summary["stress"]["mhc"]["diverged"]
    _, rows = as_table(summary)
    assert [row[0] for row in rows] == ["plain", "mhc", "unconstrained"]
    assert rows[1][-1] == "75 %, not reached"
    assert rows[2][3] == "diverged"


def test_a_lost_run_ends_and_stays_ended(tmp_path):
    """At a learning rate beyond all measure; a second start trains it no further."""
    config = dataclasses.replace(TRAIN, steps=60, lr=100.0)
    comparison = Comparison(MODEL, config, seeds=1, stress=0)
    tokens = torch.randint(32, (900,), generator=torch.Generator().manual_seed(0))
    seen = []
    first = run_all(comparison, tokens, tmp_path, told=lambda run, step: seen.append(run))
    lost = [run for run, history in first.items() if is_lost(history)]
    assert lost
    assert any(len(first[run]) < 60 for run in lost)
    count = len(seen)
    again = run_all(comparison, tokens, tmp_path, told=lambda run, step: seen.append(run))
    assert len(seen) == count
    assert {run: len(history) for run, history in again.items()} == {
        run: len(history) for run, history in first.items()
    }


def test_what_is_refused():
    for options, message in [
        ({"seeds": 0}, "seeds=0"),
        ({"stress": -1.0}, "stress=-1.0"),
        ({"train": dataclasses.replace(TRAIN, eval_every=0)}, "eval_every=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(COMPARISON, **options)
