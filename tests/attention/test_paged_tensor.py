"""A PagedTensor behaves as the tensor that it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stratakv.attention import PagedTensor
from stratakv.testing import assert_close

OPERATIONS = {
    "add": lambda x: x + 1,
    "radd": lambda x: 1 + x,
    "neg": lambda x: -x,
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "torch_matmul": lambda x: torch.matmul(x, x.mT),
    "einsum": lambda x: torch.einsum("bhsd,bhsd->bhs", x, x),
    "cat": lambda x: torch.cat([x, torch.zeros(2, 2, 1, 16)], dim=2),
    "stack": lambda x: torch.stack([x, x]),
    "slice": lambda x: x[:, :, 3:9],
    "last": lambda x: x[..., -1, :],
    "none_at_front": lambda x: x[None],
    "unsqueezed": lambda x: x[:, :, None, :, :],
    "index": lambda x: x[torch.tensor([1, 0])],
    "view": lambda x: x.view(2, -1),
    "reshape": lambda x: x.reshape(4, -1),
    "expand": lambda x: x.expand(2, 2, 37, 16),
    "permute": lambda x: x.permute(0, 2, 1, 3),
    "contiguous": lambda x: x.contiguous(),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach() * 1,
    "deepcopy": copy.deepcopy,
    "to_same": lambda x: x.to(torch.float32),
    "to_other": lambda x: x.to(torch.bfloat16),
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "softmax": lambda x: x.softmax(-1),
    "sum": lambda x: x.sum(),
    "linear": lambda x: torch.nn.functional.linear(x, torch.ones(3, 16)),
    "chunk": lambda x: x.chunk(2, dim=2),
    "split": lambda x: torch.split(x, 10, dim=2),
    "unbind": lambda x: torch.unbind(x),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "flip": lambda x: x.flip(2),
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "list": lambda x: torch.tensor(x.tolist()),
    "comparison": lambda x: x > 0,
    "zeros_like": lambda x: torch.zeros_like(x),
    "new_zeros": lambda x: x.new_zeros(3),
    "iteration": list,
    "where": lambda x: torch.where(x > 0, x, 0.0),
}


@pytest.fixture
def pair(make_pages):
    """Paged keys and values, and the same as plain tensors."""
    snapshot, keys, values = make_pages()
    return PagedTensor(snapshot, "keys"), PagedTensor(snapshot, "values"), keys, values


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_materialised(pair, name):
    _, paged, _, plain = pair
    actual, expected = OPERATIONS[name](paged), OPERATIONS[name](plain)
    if isinstance(expected, torch.Tensor):
        actual, expected = (actual,), (expected,)
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(torch.as_tensor(mine * 1), theirs * 1)
        assert mine.dtype == theirs.dtype


def test_metadata_reads_no_pages(pair, monkeypatch):
    keys, _, plain, _ = pair
    monkeypatch.setattr(PagedTensor, "materialise", lambda self: pytest.fail("pages were read"))
    assert keys.shape == plain.shape
    assert keys.size() == plain.size()
    assert (keys.size(1), keys.dim(), keys.ndim, len(keys), keys.numel()) == (2, 4, 4, 2, plain.numel())
    assert (keys.dtype, keys.device, keys.requires_grad) == (plain.dtype, plain.device, False)
    assert keys.is_floating_point()
    assert not keys.is_cuda
    assert "PagedTensor(keys" in repr(keys)


def _repeat_kv(x, count):
    """As transformers writes it."""
    rows, heads, tokens, dim = x.shape
    x = x[:, :, None, :, :].expand(rows, heads, count, tokens, dim)
    return x.reshape(rows, heads * count, tokens, dim)


def test_repeat_kv_stays_lazy(pair):
    keys, _, plain, _ = pair
    repeated = _repeat_kv(keys, 3)
    assert isinstance(repeated, PagedTensor)
    assert repeated.shape == (2, 6, 37, 16)
    assert torch.equal(repeated.clone(), _repeat_kv(plain, 3))
    assert torch.equal(_repeat_kv(repeated, 2).clone(), _repeat_kv(_repeat_kv(plain, 3), 2))


def test_half_way_through_a_repeat(pair):
    keys, _, plain, _ = pair
    unsqueezed, expected = keys[:, :, None, :, :], plain[:, :, None, :, :]
    assert torch.equal(unsqueezed + 0, expected)
    assert unsqueezed.shape == expected.shape
    sizes = (2, 2, 5, 37, 16)
    assert torch.equal(unsqueezed.expand(sizes) + 0, expected.expand(sizes))
    assert torch.equal(unsqueezed.expand(*sizes).reshape(2, -1) + 0, expected.expand(sizes).reshape(2, -1))
    assert torch.equal(unsqueezed.expand(3, *sizes) + 0, expected.expand(3, *sizes))


@pytest.mark.parametrize("style", ["plain", "repeated", "gqa", "repeated_gqa"])
@pytest.mark.parametrize("num_new", [1, 5, 40])
def test_attention_is_served_from_pages(pair, monkeypatch, style, num_new):
    keys, values, plain_keys, plain_values = pair
    count = {"plain": 1, "repeated": 3, "gqa": 1, "repeated_gqa": 3}[style]
    num_queries = {"plain": 2, "repeated": 6, "gqa": 4, "repeated_gqa": 12}[style]
    query = torch.randn(2, num_queries, num_new, 16)
    options = {"enable_gqa": style.endswith("gqa")}
    expected = scaled_dot_product_attention(
        query, _repeat_kv(plain_keys, count), _repeat_kv(plain_values, count), **options
    )
    monkeypatch.setattr(PagedTensor, "materialise", lambda self: pytest.fail("pages were copied"))
    actual = scaled_dot_product_attention(
        query, _repeat_kv(keys, count), _repeat_kv(values, count), **options
    )
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"dropout_p": 1e-9}, {"attn_mask": torch.ones(2, 37, dtype=torch.bool)}],
    ids=["causal", "dropout", "mask"],
)
def test_other_attention_is_pytorchs(pair, options):
    keys, values, plain_keys, plain_values = pair
    query = torch.randn(2, 2, 2, 16)
    expected = scaled_dot_product_attention(query, plain_keys, plain_values, **options)
    assert_close(scaled_dot_product_attention(query, keys, values, **options), expected)


def test_swapped_or_mixed_parts(pair):
    keys, values, plain_keys, plain_values = pair
    query = torch.randn(2, 2, 2, 16)
    for mine, theirs in [
        ((values, keys), (plain_values, plain_keys)),
        ((keys, plain_values), (plain_keys, plain_values)),
        ((keys, keys), (plain_keys, plain_keys)),
    ]:
        expected = scaled_dot_product_attention(query, *theirs)
        assert_close(scaled_dot_product_attention(query, *mine), expected)
    assert_close(
        scaled_dot_product_attention(keys, keys, values),
        scaled_dot_product_attention(plain_keys, plain_keys, plain_values),
    )


def test_operations_below_python_materialise(pair):
    """What reaches PyTorch's dispatcher without passing Python."""
    keys, _, plain, _ = pair
    with torch._C.DisableTorchFunctionSubclass():
        assert torch.equal(torch.ops.aten.mul.Tensor(keys, 2), plain * 2)


@pytest.mark.parametrize(
    "change", [lambda x: x.add_(1), lambda x: x.__setitem__(0, 0), lambda x: torch.neg(x.clone(), out=x)]
)
def test_pages_are_immutable(pair, change):
    with pytest.raises(RuntimeError, match="in place"):
        change(pair[0])


def test_stale_after_a_crop(pair):
    keys, values, _, _ = pair
    keys.snapshot.table.crop(5)
    for use in (
        lambda: keys + 1,
        lambda: scaled_dot_product_attention(torch.randn(2, 2, 1, 16), keys, values),
    ):
        with pytest.raises(RuntimeError, match="since been cropped"):
            use()


def test_still_good_after_an_append(pair):
    keys, _, plain, _ = pair
    keys.snapshot.table.append(0, torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16))
    assert torch.equal(keys + 0, plain)


def test_pages_are_read_once_for_both_halves(pair, monkeypatch):
    keys, values, plain_keys, plain_values = pair
    calls = []
    gather = type(keys.snapshot).gather
    monkeypatch.setattr(type(keys.snapshot), "gather", lambda *args: calls.append(1) or gather(*args))
    assert torch.equal(keys + 0, plain_keys)
    assert torch.equal(values + 0, plain_values)
    assert len(calls) == 1
