"""Checkpoints: model, optimizers and progress in one safetensors file, replaced atomically.

Nothing executable is read. The file's metadata holds one entry, `stratakv`, of JSON.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

VERSION = 1


def save(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], progress: dict[str, Any]
) -> None:
    """Writes a checkpoint beside the old one and renames it over it; durable when this returns."""
    tensors = {f"model.{name}": value for name, value in _parameters(model).items()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{number}.{key}": value for key, value in state.items()}
    beside = path.with_suffix(".tmp")
    text = json.dumps({"version": VERSION, **progress})
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, beside, metadata={"stratakv": text}
    )
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


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
            parameter.copy_(found[name])
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{index}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                number, key = name.removeprefix(prefix).split(".")
                state.setdefault(int(number), {})[key] = value
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


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once: of tied ones, the first name."""
    return dict(model.named_parameters())
