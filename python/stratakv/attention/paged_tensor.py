"""A tensor that stands for one layer's keys or values in pages.

A model gets a pair of them from the cache and treats them as the (B, H, S, D) tensors that any
cache returns. `scaled_dot_product_attention` is served from the pages; repeating heads for
grouped-query attention stays lazy, as `repeat_kv` of transformers does it; every other
operation copies the real tensor out and goes on with that. It is never written to: pages are
immutable, so an in-place operation is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import _pytree as pytree

from stratakv.attention.paged import paged_attention
from stratakv.cache.page_table import Snapshot

_FULL = slice(None)


class PagedTensor(Tensor):
    """Keys or values of one layer: (B, H * num_repeats, S, D), or its unsqueezed form while repeating.

    Attributes:
        snapshot: the pages.
        part: "keys" or "values".
        num_repeats: how often each head is repeated, in place (h0 h0 h1 h1).
        pending: None, or the size of the axis after the heads while heads are being repeated.
    """

    snapshot: Snapshot
    part: str
    num_repeats: int
    pending: int | None

    @staticmethod
    def __new__(
        cls: type[PagedTensor],
        snapshot: Snapshot,
        part: str,
        num_repeats: int = 1,
        pending: int | None = None,
    ) -> PagedTensor:
        """A tensor without storage; see the class."""
        geometry = snapshot.geometry
        dim = geometry.key_dim if part == "keys" else geometry.value_dim
        shape: tuple[int, ...] = (snapshot.num_rows, geometry.num_heads * num_repeats, snapshot.length, dim)
        if pending is not None:
            shape = (*shape[:2], pending, *shape[2:])
        self: PagedTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=geometry.dtype, device=snapshot.device
        )
        self.snapshot, self.part, self.num_repeats, self.pending = snapshot, part, num_repeats, pending
        return self

    def materialise(self) -> Tensor:
        """The real tensor, freshly copied out of the pages.

        Raises:
            RuntimeError: the cache was cropped, reordered, reset or closed since, or these are keys without
                positions.
        """
        self._refuse_without_positions()
        tensor = self.snapshot.part(self.part)
        if self.num_repeats > 1:
            tensor = tensor.repeat_interleave(self.num_repeats, dim=1)
        if self.pending is not None:
            tensor = tensor[:, :, None].expand(-1, -1, self.pending, -1, -1)
        return tensor

    def _refuse_without_positions(self) -> None:
        if self.part == "keys" and self.snapshot.table.rotary is not None:
            raise RuntimeError(
                "the keys of a cache that was opened for an attached model have no positions: only that "
                "model's attention reads them, inside `with stratakv.attach(model):`"
            )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch leaves it unnamed
        """Shape and dtype; no pages are read."""
        return (
            f"PagedTensor({self.part}, shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"
        )

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Serves attention, head repeats and metadata; hands everything else the real tensor."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        _refuse_in_place(func, args, kwargs)
        args, kwargs = _materialise_all((args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # typed as a plain function where it is disabled
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The same below Python, for operations that reach PyTorch's dispatcher directly."""
        args, kwargs = _materialise_all((args, kwargs or {}))
        return func(*args, **kwargs)


def _materialise_all(tree: Any) -> Any:
    return pytree.tree_map_only(PagedTensor, PagedTensor.materialise, tree)


def _refuse_in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    if (in_place and args and isinstance(args[0], PagedTensor)) or isinstance(kwargs.get("out"), PagedTensor):
        raise RuntimeError(
            f"{name}: keys and values in pages cannot be changed in place; work on a copy (tensor.clone())"
        )


def _attention(  # noqa: PLR0917  # torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention` over pages, or NotImplemented."""
    if not (isinstance(key, PagedTensor) and isinstance(value, PagedTensor)) or isinstance(
        query, PagedTensor
    ):
        return NotImplemented
    key._refuse_without_positions()
    same_pages = key.snapshot is value.snapshot and (key.part, value.part) == ("keys", "values")
    if (
        not same_pages
        or key.pending is not None
        or value.pending is not None
        or key.num_repeats != value.num_repeats
    ):
        return NotImplemented
    num_heads = key.snapshot.geometry.num_heads * key.num_repeats
    heads_match = query.dim() == 4 and (
        query.shape[1] == num_heads or (enable_gqa and query.shape[1] % num_heads == 0)
    )
    # `is_causal` counts from the first key, which a decoder with a past never means; PyTorch decides.
    if dropout_p > 0.0 or is_causal or not heads_match:
        return NotImplemented
    output = paged_attention(query, key.snapshot, mask=attn_mask, scale=scale)
    return NotImplemented if output is None else output


def _getitem(tensor: Any, index: Any) -> Any:
    """`x[:, :, None, :, :]` and full slices stay lazy."""
    if not isinstance(tensor, PagedTensor) or tensor.pending is not None or not isinstance(index, tuple):
        return NotImplemented
    if len(index) == 5 and index[2] is None and all(i == _FULL for i in (*index[:2], *index[3:])):
        return PagedTensor(tensor.snapshot, tensor.part, tensor.num_repeats, pending=1)
    return NotImplemented


def _expand(tensor: Any, *sizes: Any) -> Any:
    """`x.expand(B, H, n, S, D)` of an unsqueezed tensor stays lazy."""
    wanted = _sizes(sizes)
    if not isinstance(tensor, PagedTensor) or tensor.pending != 1 or len(wanted) != 5:
        return NotImplemented
    shape = tuple(tensor.shape)
    if any(
        want not in (-1, have)
        for axis, (want, have) in enumerate(zip(wanted, shape, strict=True))
        if axis != 2
    ):
        return NotImplemented
    count = 1 if wanted[2] == -1 else wanted[2]
    return PagedTensor(tensor.snapshot, tensor.part, tensor.num_repeats, pending=count)


def _reshape(tensor: Any, *shape: Any) -> Any:
    """`x.reshape(B, H * n, S, D)` of an expanded tensor becomes a repeat count."""
    if not isinstance(tensor, PagedTensor) or tensor.pending is None:
        return NotImplemented
    rows, heads, count, tokens, dim = tensor.shape
    if _sizes(shape) != (rows, heads * count, tokens, dim):
        return NotImplemented
    return PagedTensor(tensor.snapshot, tensor.part, tensor.num_repeats * count)


def _detach(tensor: Any) -> Any:
    return tensor


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one or as one sequence."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else tuple(sizes)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    scaled_dot_product_attention: _attention,
    Tensor.__getitem__: _getitem,
    Tensor.expand: _expand,
    Tensor.reshape: _reshape,
    torch.reshape: _reshape,
    Tensor.detach: _detach,
}

# What can be told of a tensor without its values.
_METADATA_PROPERTIES = (
    "shape dtype device layout ndim requires_grad is_leaf grad_fn is_cpu is_cuda "
    "is_meta is_mps is_xpu is_nested is_quantized is_sparse is_sparse_csr itemsize "
    "nbytes _version "
)
_METADATA_METHODS = (
    "dim size stride numel is_contiguous is_floating_point is_complex element_size "
    "storage_offset __len__ get_device is_inference nelement ndimension is_signed "
)

_METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in _METADATA_PROPERTIES.split()),
        *(getattr(Tensor, name) for name in _METADATA_METHODS.split()),
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
        torch.is_tensor,
    ]
)

_IN_PLACE_NAMES = (
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ "
    "__ipow__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__ "
)

_IN_PLACE = frozenset(_IN_PLACE_NAMES.split())
