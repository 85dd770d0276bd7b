"""State of the layers that are not paged (sliding windows, convolutions, recurrences), to bytes and back.

A layer's state is its instance attributes: tensors, numbers, text, dtypes, devices and
containers of them. Whatever else a model's own layer class keeps cannot be saved, and saving
says so. On restoring, the class and the names must be those of a fresh layer of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stratakv.hf import tensor_file


def encode_layers(layers: dict[int, Any], header: dict[str, Any]) -> bytes:
    """Packs layers by index, with a JSON-serialisable header beside them.

    Raises:
        ValueError: an attribute that has no encoding.
    """
    tensors: dict[str, Tensor] = {}
    states = {}
    for index, layer in layers.items():
        attributes = {}
        for name, value in vars(layer).items():
            try:
                attributes[name] = _pack(value, f"{index}.{name}", tensors)
            except ValueError as error:
                raise ValueError(
                    f"layer {index} ({type(layer).__name__}) cannot be saved: {error}"
                ) from error
        states[str(index)] = {"class": type(layer).__name__, "attributes": attributes}
    return tensor_file.encode(tensors, {"header": json.dumps(header), "layers": json.dumps(states)})


def decode_layers(
    data: bytes, layers: dict[int, Any], device_of: Callable[[int], torch.device]
) -> dict[str, Any]:
    """Puts saved state into fresh layers, each on its device; gives the header back.

    Raises:
        ValueError: damaged bytes, or state of other layers than these.
    """
    tensors, metadata = tensor_file.decode(data)
    try:
        states = json.loads(metadata["layers"])
        header: dict[str, Any] = json.loads(metadata["header"])
    except KeyError as error:
        raise ValueError(f"the session's layer state has no {error}") from error
    if sorted(map(int, states)) != sorted(layers):
        raise ValueError(
            f"the session has state of layers {sorted(states)}, the model needs {sorted(layers)}"
        )
    for index, layer in layers.items():
        state = states[str(index)]
        if state["class"] != type(layer).__name__:
            raise ValueError(
                f"layer {index} was saved as {state['class']}, the model has {type(layer).__name__}"
            )
        unknown = set(state["attributes"]) - set(vars(layer)) - {"dtype", "device"}
        if unknown:
            raise ValueError(
                f"layer {index} was saved with {sorted(unknown)}, which this transformers does not know"
            )
        for name, packed in state["attributes"].items():
            setattr(layer, name, _unpack(packed, tensors, device_of(index)))
    return header


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, dict) and all(isinstance(key, int | str) for key in value):
        return {"dict": [[key, _pack(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{path}.{place}", tensors) for place, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise ValueError(f"{path} is a {type(value).__name__}")


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Any:
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content].to(device)
    if kind == "value":
        return content
    if kind == "dtype":
        return _dtype(content)
    if kind == "device":
        return device
    if kind == "dict":
        return {key: _unpack(item, tensors, device) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_unpack(item, tensors, device) for item in content]
        return items if kind == "list" else tuple(items)
    raise ValueError(f"unknown kind of state: {kind}")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype: {name}")  # noqa: TRY004
    return dtype
