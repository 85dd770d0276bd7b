"""Checkpoints: model, optimizers and progress in one safetensors file, replaced atomically.

Nothing executable is read. The file's metadata holds one entry, `stratakv`, of JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stratakv.nn.mapped_table import MappedRows
from stratakv.train.files import FILE_MODE, create_private, replace_durably
from stratakv.train.group import Group, split_like, whole

VERSION = 2


def save(
    path: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    progress: dict[str, Any],
    group: Group | None = None,
) -> None:
    """Writes a checkpoint beside the old one and renames it over it; durable when this returns.

    Every process of a run must call this; the first one writes. The file is its owner's alone.
    """
    tensors = {f"model.{name}": whole(value) for name, value in _parameters(model).items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{number}.{key}": whole(value) for key, value in state.items()}
    if group is not None and not group.is_first:
        return
    beside = path.with_suffix(".tmp")
    text = json.dumps({"version": VERSION, **progress})
    create_private(beside)
    save_file(
        {name: _in_one_piece(value.detach(), path.parent) for name, value in tensors.items()},
        beside,
        metadata={"stratakv": text},
    )
    beside.chmod(FILE_MODE)  # where the library made a file of its own
    replace_durably(beside, path)


def load(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Puts a checkpoint's values into model and optimizers.

    Raises:
        ValueError: a file of something else, or of another model.
    """
    with safe_open(path, framework="pt") as file:
        _progress(path, file.metadata())
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = _parameters(model)
    found = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    }
    if {name: value.shape for name, value in found.items()} != {n: v.shape for n, v in expected.items()}:
        raise ValueError(f"{path} is a checkpoint of another model: give the options that it was made with")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(split_like(found[name].to(parameter.dtype), parameter))
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{index}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                number, key = name.removeprefix(prefix).split(".")
                state.setdefault(int(number), {})[key] = value
        owners = [parameter for each in optimizer.param_groups for parameter in each["params"]]
        for place, values in state.items():
            for key, value in values.items():
                # Counts of steps are no parts of a parameter.
                if value.shape == owners[place].shape:
                    values[key] = split_like(value, owners[place])
                # What lies in a file stays there.
                held = optimizer.state.get(owners[place], {}).get(key)
                if held is not None:
                    values[key] = held.copy_(values[key])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def read_progress(path: Path) -> dict[str, Any]:
    """A checkpoint's progress alone.

    Raises:
        ValueError: a file of something else.
    """
    with safe_open(path, framework="pt") as file:
        return _progress(path, file.metadata())


def _progress(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads((metadata or {}).get("stratakv", "{}"))
    if progress.get("version") != VERSION:
        raise ValueError(f"{path} is no checkpoint of `stratakv train`, or one of another version")
    return progress


def _in_one_piece(tensor: Tensor, directory: Path) -> Tensor:
    """As safetensors wants it. What is not lies in a file beside other things, and may be larger than RAM."""
    if tensor.is_contiguous() or tensor.dim() != 2 or tensor.dtype != torch.float32:
        return tensor.contiguous()
    num_rows, dim = tensor.shape
    return MappedRows(num_rows, dim, directory).planes[0].copy_(tensor)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once: of tied ones, the first name."""
    return dict(model.named_parameters())
