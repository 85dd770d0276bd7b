"""Layer states as bytes: exact, and safe against bytes of any kind."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionLayer

from stratakv.hf.layer_state import decode_layers, encode_layers
from stratakv.hf.tensor_file import decode, encode

pytestmark = pytest.mark.hf

TENSORS = {
    "f32": torch.randn(2, 3),
    "bf16": torch.randn(5).bfloat16(),
    "f16": torch.randn(1, 1, 2).half(),
    "i64": torch.arange(4),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.empty(2, 0, 3),
    "view": torch.arange(12.0).reshape(3, 4).t(),
}


def _cpu(_):
    return torch.device("cpu")


def test_round_trip():
    tensors, text = decode(encode(TENSORS, {"a": "b"}))
    assert text == {"a": "b"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_safetensors_reads_it():
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load(encode(TENSORS, {}))
    assert torch.equal(tensors["view"], TENSORS["view"])


def test_every_truncation_is_refused():
    data = encode({"x": torch.arange(6.0)}, {})
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            decode(data[:length])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"."):
        decode(data)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_no_shape(place, byte):
    data = bytearray(encode({"x": torch.arange(6.0)}, {}))
    data[place % len(data)] = byte
    try:
        tensors, _ = decode(bytes(data))
    except ValueError:
        return
    assert all(tensor.numel() <= 24 for tensor in tensors.values())


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        [],
        None,
    ],
    ids=str,
)
def test_headers_that_lie(entry):
    header = json.dumps({"x": entry}).encode()
    with pytest.raises(ValueError, match=r"."):
        decode(len(header).to_bytes(8, "little") + header + bytes(4))


def test_layers_round_trip():
    window, linear = DynamicSlidingWindowLayer(sliding_window=4), LinearAttentionLayer(number_of_states=2)
    window.update(torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8))
    linear.update_conv_state(torch.randn(1, 6, 3), state_idx=1)
    linear.update_recurrent_state(torch.randn(1, 2, 4, 4), state_idx=1)
    data = encode_layers({0: window, 2: linear}, {"note": [1, None]})
    fresh = {0: DynamicSlidingWindowLayer(sliding_window=4), 2: LinearAttentionLayer(number_of_states=2)}
    assert decode_layers(data, fresh, _cpu) == {"note": [1, None]}
    assert torch.equal(fresh[0].keys, window.keys)
    assert fresh[0].get_seq_length() == 9
    assert fresh[2].conv_states[0] is None
    assert torch.equal(fresh[2].conv_states[1], linear.conv_states[1])
    assert torch.equal(fresh[2].recurrent_states[1], linear.recurrent_states[1])
    assert fresh[2].has_previous_state == {0: False, 1: True}


def test_other_layers_are_refused():
    data = encode_layers({0: DynamicSlidingWindowLayer(sliding_window=4)}, {})
    with pytest.raises(ValueError, match="the model has LinearAttentionLayer"):
        decode_layers(data, {0: LinearAttentionLayer()}, _cpu)
    with pytest.raises(ValueError, match="the model needs"):
        decode_layers(data, {1: DynamicSlidingWindowLayer(sliding_window=4)}, _cpu)


def test_what_has_no_encoding_is_named():
    layer = DynamicSlidingWindowLayer(sliding_window=4)
    layer.secret = object()
    with pytest.raises(ValueError, match=r"layer 3 \(DynamicSlidingWindowLayer\).*3\.secret is a object"):
        encode_layers({3: layer}, {})
