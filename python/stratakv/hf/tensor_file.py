"""Tensors and a JSON header as bytes, in the layout of safetensors; nothing executable.

Layout: 8 bytes little-endian length of the header, the header (JSON, UTF-8), then the
tensors' bytes, row-major little-endian, at the offsets that the header gives.
Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_BYTES_MAX = 100 << 20


def encode(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Packs tensors of any device and some text.

    Raises:
        ValueError: a dtype without a name here.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    chunks: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}: accepted are {', '.join(map(str, _NAMES))}")
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def decode(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Unpacks what `encode` packed; every length and offset is checked.

    Raises:
        ValueError: not in this layout, or cut short.
    """
    try:
        return _decode(data)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a tensor file: {error}") from error


def _decode(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(len(data) - 8, _HEADER_BYTES_MAX):
        raise ValueError(f"not a tensor file: {len(data)} bytes cannot hold a header of {header_bytes}")
    header = json.loads(data[8 : 8 + header_bytes].decode())
    body = memoryview(data)[8 + header_bytes :]
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()):
        raise ValueError("not a tensor file: its metadata is not text")
    return {name: _tensor(name, entry, body) for name, entry in header.items()}, metadata


def _tensor(name: str, entry: dict[str, Any], body: memoryview) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    start, stop = entry["data_offsets"]
    numel = 1
    for size in shape:
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"tensor {name!r} has the shape {shape}")
        numel *= size
    if not 0 <= start <= stop <= len(body) or stop - start != numel * dtype.itemsize:
        raise ValueError(f"tensor {name!r} of {numel} {dtype} does not lie at bytes {start} to {stop}")
    if numel == 0:
        return torch.empty(shape, dtype=dtype)
    # A copy: PyTorch does not honour read-only buffers.
    flat = torch.frombuffer(bytearray(body[start:stop]), dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)
