"""Training: the loss falls, a run goes on as if it had not stopped, optimizers have what they should."""

from __future__ import annotations

import dataclasses
import os
import stat
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch

from stratakv import fp8
from stratakv.nn import HyperConnections, MemoryConfig, StrataLM, StreamHead, TransformerConfig
from stratakv.train import Muon, TrainConfig, Trainer, draw_batch, make_optimizers
from stratakv.train.optimizers import EachAlone, orthogonalize
from stratakv.train.plot import loss_plot

SIZES = {"vocab_size": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
RUN = TrainConfig(steps=12, batch=4, length=24, lr=1e-2, warmup=3, eval_every=5, eval_batches=2, save_every=4)


def text():
    """Tokens with a rule: each is the one before, times 5 plus 3; now and then a random one."""
    generator = torch.Generator().manual_seed(0)
    tokens = [1]
    for jump in torch.rand(4000, generator=generator).tolist():
        tokens.append(int(jump * 320) % 32 if jump < 0.1 else (tokens[-1] * 5 + 3) % 32)
    return torch.tensor(tokens, dtype=torch.int32)


def trainer_of(path=None, config=RUN, **sizes):
    torch.manual_seed(config.seed)
    return Trainer(StrataLM(TransformerConfig(**(SIZES | sizes))), text(), config, path)


def finish(trainer):
    while not trainer.is_done:
        trainer.advance()
    return trainer


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(optimizer):
    trainer = finish(trainer_of(config=dataclasses.replace(RUN, steps=60, optimizer=optimizer)))
    first, last = trainer.history[0], trainer.history[-1]
    assert abs(first.loss - 3.47) < 0.3  # log 32
    assert last.held_out < 0.6 * first.loss
    assert [step.step for step in trainer.history if step.held_out is not None] == [*range(5, 61, 5)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_goes_on_to_the_same_losses(tmp_path, optimizer):
    config = dataclasses.replace(RUN, optimizer=optimizer)
    whole = finish(trainer_of(config=config))
    path = tmp_path / "checkpoint.safetensors"
    stopped = trainer_of(path, config)
    for _ in range(9):
        stopped.advance()
    # As after a crash: what was written after update 8 is all there is.
    again = trainer_of(path, config)
    assert again.resume()
    assert again.step == 8
    finish(again)
    assert [step.loss for step in again.history] == [step.loss for step in whole.history]
    assert again.history[-1].held_out == whole.history[-1].held_out
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not list(tmp_path.glob("*.tmp"))


def test_bf16_learns_as_full_precision_does_and_goes_on(tmp_path):
    full = finish(trainer_of(config=dataclasses.replace(RUN, steps=40)))
    config = dataclasses.replace(RUN, steps=40, precision="bf16")
    whole = finish(trainer_of(config=config))
    assert whole.history[0].loss != full.history[0].loss
    assert whole.history[0].loss == pytest.approx(full.history[0].loss, rel=2e-2)
    assert whole.history[-1].held_out == pytest.approx(full.history[-1].held_out, rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in whole.model.parameters())
    path = tmp_path / "checkpoint.safetensors"
    stopped = trainer_of(path, config)
    for _ in range(5):
        stopped.advance()
    again = trainer_of(path, config)
    assert again.resume()
    assert [step.loss for step in finish(again).history] == [step.loss for step in whole.history]


def test_fp8_is_bf16_where_the_hardware_has_none():
    config = dataclasses.replace(RUN, steps=3, precision="fp8")
    with pytest.warns(UserWarning, match="no FP8 products here"):
        trainer = trainer_of(config=config)
    same = finish(trainer_of(config=dataclasses.replace(config, precision="bf16")))
    assert [step.loss for step in finish(trainer).history] == [step.loss for step in same.history]


@pytest.mark.parametrize("weight_gradient", ["high", "fp8"])
def test_fp8_learns_as_full_precision_does(monkeypatch, weight_gradient):
    convert = partial(
        fp8.convert_for_training, backend="emulate", min_features=16, weight_gradient=weight_gradient
    )
    monkeypatch.setattr("stratakv.train.loop.convert_for_training", convert)
    full = finish(trainer_of(config=dataclasses.replace(RUN, steps=40)))
    found = finish(trainer_of(config=dataclasses.replace(RUN, steps=40, precision="fp8")))
    assert sum(isinstance(module, fp8.Fp8TrainingLinear) for module in found.model.modules()) > 5
    assert found.history[0].loss == pytest.approx(full.history[0].loss, rel=2e-2)
    assert found.history[-1].held_out == pytest.approx(full.history[-1].held_out, rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in found.model.parameters())


def test_fp8_by_tiles_is_kept_and_goes_on(tmp_path, monkeypatch):
    convert = partial(fp8.convert_for_training, backend="emulate", min_features=16)
    monkeypatch.setattr("stratakv.train.loop.convert_for_training", convert)
    rows = dataclasses.replace(RUN, precision="fp8")
    tiles = dataclasses.replace(rows, fp8_scales="tiles")
    whole = finish(trainer_of(config=tiles))
    layers = [module for module in whole.model.modules() if isinstance(module, fp8.Fp8TrainingLinear)]
    assert {layer.scales for layer in layers} == {"tiles"}
    first = trainer_of(config=rows).advance().loss
    assert first != whole.history[0].loss
    assert first == pytest.approx(whole.history[0].loss, rel=2e-2)
    path = tmp_path / "checkpoint.safetensors"
    stopped = trainer_of(path, tiles)
    for _ in range(5):
        stopped.advance()
    with pytest.raises(ValueError, match="fp8_scales=tiles there, rows here"):
        trainer_of(path, rows).resume()
    again = trainer_of(path, tiles)
    assert again.resume()
    assert [step.loss for step in finish(again).history] == [step.loss for step in whole.history]


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("recompute", ["streams", "blocks"])
def test_what_is_computed_again_changes_nothing_and_may_change(tmp_path, monkeypatch, recompute, precision):
    config = dataclasses.replace(RUN, precision=precision)
    whole = finish(trainer_of(config=config))
    path = tmp_path / "checkpoint.safetensors"
    asked, loss = [], StrataLM.loss

    def told(self, ids_BT, *, recompute):
        asked.append(recompute)
        return loss(self, ids_BT, recompute=recompute)

    monkeypatch.setattr(StrataLM, "loss", told)
    stopped = trainer_of(path, dataclasses.replace(config, recompute=recompute))
    for _ in range(5):
        stopped.advance()
    assert set(asked) == {recompute}
    again = trainer_of(path, config)
    assert again.resume()
    assert [step.loss for step in finish(again).history] == [step.loss for step in whole.history]
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_streams_of_a_model_that_has_one_are_not_computed_again():
    config = dataclasses.replace(RUN, recompute="streams")
    with pytest.warns(UserWarning, match="recompute='streams': one stream is kept"):
        trainer_of(config=config, num_streams=1)


def test_choices_are_those_of_what_they_are_given_to():
    from stratakv.fp8.quantize import Scales
    from stratakv.nn.transformer import Recompute
    from stratakv.train.config import CHOICES

    assert CHOICES["fp8_scales"] == get_args(Scales)
    assert CHOICES["recompute"] == get_args(Recompute)


@pytest.mark.parametrize("mixing", ["sinkhorn", "permutations", "kronecker", "unconstrained"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_leaves_connections_in_full_precision(mixing, backend):
    connection = HyperConnections(32, mixing=mixing, backend=backend)
    head = StreamHead(32)
    with torch.no_grad():
        for parameter in (*connection.parameters(), *head.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(2, 5, 4, 32)
    expected = head(connection(x, lambda h: h.sin()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(connection(x, lambda h: h.sin())), expected)
        assert (torch.eye(4) @ torch.eye(4)).dtype == torch.bfloat16  # it is on


def test_checkpoints_are_private_and_durable(tmp_path, monkeypatch):
    """Nobody else reads them, whatever the umask; file synced before the rename, directory after."""
    path = tmp_path / "checkpoint.safetensors"
    trainer = trainer_of(path)
    events = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        events.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(self, target):
        events.append("rename")
        assert stat.S_IMODE(self.stat().st_mode) == 0o600
        return replace(self, target)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    before = os.umask(0)
    try:
        trainer.save()
    finally:
        os.umask(before)
    assert events == ["file", "rename", "directory"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_checkpoint_from_before_a_field_was_added_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    trainer = trainer_of(path)

    def without_precision(config):
        values = dataclasses.asdict(config)
        values.pop("precision", None)
        return values

    with monkeypatch.context() as patch:
        patch.setattr("stratakv.train.loop.asdict", without_precision)
        trainer.save()
    assert trainer_of(path).resume()
    with pytest.raises(ValueError, match="precision=full there, bf16 here"):
        trainer_of(path, dataclasses.replace(RUN, precision="bf16")).resume()


def test_another_runs_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    trainer = trainer_of(path)
    assert not trainer.resume()
    trainer.save()
    with pytest.raises(ValueError, match=r"lr=0\.01 there, 0\.5 here"):
        trainer_of(path, dataclasses.replace(RUN, lr=0.5)).resume()
    with pytest.raises(ValueError, match="another model"):
        trainer_of(path, num_layers=3).resume()
    longer = trainer_of(path, dataclasses.replace(RUN, steps=20))
    assert longer.resume()
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no checkpoint"):
        trainer_of(path).resume()


def test_a_failed_write_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    trainer = trainer_of(path)
    trainer.save()
    before = path.read_bytes()
    trainer.advance()

    def fail(*args, **kwargs):
        raise OSError(28, "no space left")

    monkeypatch.setattr("stratakv.train.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        trainer.save()
    assert path.read_bytes() == before


def test_schedule():
    config = TrainConfig(steps=100, warmup=10, lr=2.0, final_share=0.1)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert config.lr_at(100) == pytest.approx(0.2)


def test_clipping():
    trainer = trainer_of(config=dataclasses.replace(RUN, clip=1e-3))
    seen = []
    trainer.optimizers[0].register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm())
    )
    assert trainer.advance().grad_norm > 1e-2
    assert float(seen[0]) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_updated_once(optimizer):
    model = StrataLM(TransformerConfig(**SIZES))
    optimizers = make_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.3))
    decay = {p: g["weight_decay"] for o in optimizers for g in o.param_groups for p in g["params"]}
    total = sum(len(g["params"]) for o in optimizers for g in o.param_groups)
    assert total == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_matrix = "proj" in name
        assert decay[parameter] == (0.3 if is_matrix else 0.0), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_tables_of_memories_learn_faster_and_do_not_decay(optimizer, tmp_path):
    memory = MemoryConfig(layers=(1,), compressed_size=32, table_sizes=(31,), num_heads=2, ngram_dim=8)
    config = dataclasses.replace(RUN, optimizer=optimizer)
    whole = finish(trainer_of(config=config, memory=memory))
    table = whole.model.model.layers[1].memory.table.weight
    groups = {p: g for o in whole.optimizers for g in o.param_groups for p in g["params"]}
    assert len(groups) == len(list(whole.model.parameters()))
    assert groups[table]["weight_decay"] == 0
    assert groups[table]["lr"] == pytest.approx(5 * whole.history[-1].lr)
    assert groups[whole.model.model.embed_tokens.weight]["lr"] == whole.history[-1].lr
    stopped = trainer_of(tmp_path / "checkpoint.safetensors", config, memory=memory)
    for _ in range(5):
        stopped.advance()
    again = trainer_of(tmp_path / "checkpoint.safetensors", config, memory=memory)
    assert again.resume()
    assert [step.loss for step in finish(again).history] == [step.loss for step in whole.history]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_projections_of_connections_learn_faster(optimizer):
    model = StrataLM(TransformerConfig(**SIZES))
    groups = [g for o in make_optimizers(model, TrainConfig(optimizer=optimizer)) for g in o.param_groups]
    scale = {p: g.get("lr_scale", 1.0) for g in groups for p in g["params"]}
    faster = {name for name, parameter in model.named_parameters() if scale[parameter] == 30}
    modules = model.named_modules()
    own = {f"{name}.weight" for name, one in modules if isinstance(one, HyperConnections | StreamHead)}
    assert faster == own
    assert len(own) > 2


def test_an_optimizer_that_updates_each_parameter_says_how():
    with pytest.raises(TypeError, match="update"):
        EachAlone([torch.zeros(3)], {"lr": 1.0})


def test_orthogonalize():
    for shape in [(8, 8), (4, 16), (16, 4)]:
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.max() < 1.3
        assert values.min() > 0.3
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.zeros(3)], lr=1.0)


def test_batches():
    tokens = torch.arange(50, dtype=torch.int32)
    batch = draw_batch(tokens, batch=64, length=9, seed=1, step=2)
    assert batch.shape == (64, 10)
    assert batch.dtype == torch.int64
    assert (batch.diff(dim=-1) == 1).all()
    assert {0, 49} <= set(draw_batch(tokens, batch=900, length=9, seed=1, step=2).flatten().tolist())
    assert torch.equal(batch, draw_batch(tokens, batch=64, length=9, seed=1, step=2))
    assert not torch.equal(batch, draw_batch(tokens, batch=64, length=9, seed=1, step=3))
    with pytest.raises(ValueError, match="too short"):
        draw_batch(tokens, batch=1, length=50, seed=0, step=0)
    with pytest.raises(ValueError, match="give more text"):
        Trainer(StrataLM(TransformerConfig(**SIZES)), tokens[:40], RUN)


def test_what_is_refused():
    for options, message in [
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"optimizer": "sgd"}, "adamw"),
        ({"precision": "int8"}, "'full', 'bf16', 'fp8'"),
        ({"fp8_scales": "blocks"}, "'rows', 'tiles'"),
        ({"fp8_scales": "tiles", "precision": "bf16"}, "is of precision='fp8'"),
        ({"recompute": "all"}, "'nothing', 'streams', 'blocks'"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**options)
    with pytest.raises(ValueError, match="at least one point"):
        loss_plot({})


def test_plot_is_well_formed():
    from xml.etree import ElementTree

    root = ElementTree.fromstring(loss_plot({"a < b": [(1, 3.0), (2, 2.5)], "c": [(2, 2.0)]}, "Loss & more"))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert "a < b" in "".join(root.itertext())
    ElementTree.fromstring(loss_plot({"one": [(1, 1.0)]}))
