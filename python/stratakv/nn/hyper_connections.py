"""`HyperConnections`: n residual streams, mixed by matrices that cannot amplify.

    connection = stratakv.nn.HyperConnections(512, num_streams=4, layer_index=0)
    x = stratakv.nn.expand_streams(embedded, 4)      # (B, T, 4, C)
    x = connection(x, lambda u: mlp(norm(u)))        # instead of x + mlp(norm(x))
    h = stratakv.nn.StreamHead(512, num_streams=4)(x)  # (B, T, C)

The mathematics is in `mappings.py`, its fused form in `fused.py`. What is here: parameters, their
initial values, and which of the two computes. The invariant of the constrained forms: a stream
after a connection is a mean of the streams before it (rows and columns of the mixing matrix sum to
1) plus its share of the branch's output, so that no depth amplifies.

B batch, T tokens, S streams, C width, M numbers per token (see `mappings.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stratakv.nn import fused, recompute
from stratakv.nn.mappings import Form, Mappings, gather, mappings_of, project, scatter
from stratakv.nn.mixings import MixingName, mixing_of
from stratakv.nn.recompute import Written

Backend = Literal["auto", "reference", "fused"]
# Of the branch's input at the start, for the connection's own stream. Were all streams read alike, their
# gradients would be alike for ever; see `HyperConnections`.
READ_SHARE = 0.7
# Of a stream that stays where it is, at the start. Closer to 1 the softmax has hardly a gradient.
KEEP_SHARE = 0.9
# The paper's initial alpha.
DYNAMIC_SCALE = 0.01


@dataclass(frozen=True)
class Reading:
    """One connection's streams, read once: the branch's input, and what its output is written with.

    Attributes:
        input: (..., C) for the branch.
        mappings: what was read and will be written with.
        residual: the streams, as `write` needs them and nothing else should.
    """

    input: Tensor
    mappings: Mappings
    residual: Tensor

    def write(self, y_C: Tensor) -> Tensor:
        """The streams after the branch.

        Args:
            y_C: (..., C) the branch's output.

        Returns:
            (..., S, C) in the streams' dtype.
        """
        return scatter(self.residual, y_C, self.mappings.post, self.mappings.comb)


class HyperConnections(nn.Module):
    """The residual connection around one branch (an attention, an MLP), with S streams instead of one.

        x[l+1] = H_res x[l] + H_post^T F(H_pre x[l])

    At the start the network is the ordinary residual one: if all streams are equal (`expand_streams`),
    they stay equal up to rounding and the branch reads what it would without. What breaks the symmetry
    is that each connection reads its own stream (`layer_index` modulo S) most, so that the streams'
    gradients differ from the first step on.

    With one stream it is the ordinary connection with a learnable scale, `x + scale * F(x)`.

    Parameters are float32 and are used in float32 whatever the streams' dtype: bfloat16 mappings have
    row sums that are off by 0.003, which composes over depth. The state matches DeepSeek's modules:
    `weight` is their `fn`, `bias` their `base`, `scale` their `scale`.

    Args:
        dim: C.
        num_streams: S, at least 1.
        layer_index: which connection of the model this is, counted from 0.
        mixing: "sinkhorn" (the paper's), "permutations" (exact, S at most 5), "kronecker" (exact, S a
            power of two), or "unconstrained" (Hyper-Connections as first published, for comparison).
        sinkhorn_iters: sweeps of Sinkhorn's algorithm.
        norm_eps: of the norm over all streams of a token.
        eps: added to H_pre, and inside Sinkhorn's algorithm.
        backend: "reference" is plain PyTorch, "fused" the engine's kernels on the CPU (2 to 4 streams,
            widths that are multiples of 16, "sinkhorn") and Triton's on a GPU (any width), "auto" the
            kernels where they apply. Under `torch.compile` and `torch.func` the reference is used; the
            kernels have first gradients only.

    Attributes:
        weight: (M, S * C) projections, zero at first; None with one stream.
        bias: (M,); None with one stream.
        scale: (3,) factors of the pre, post and mixing projections; (1,) with one stream.

    Raises:
        ValueError: an argument out of range.

    Source: mHC (arXiv 2512.24880), equations 3 to 9. Initial biases are not in the paper: see above.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    scale: nn.Parameter

    def __init__(
        self,
        dim: int,
        *,
        num_streams: int = 4,
        layer_index: int = 0,
        mixing: MixingName = "sinkhorn",
        sinkhorn_iters: int = 20,
        norm_eps: float = 1e-6,
        eps: float = 1e-6,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if dim < 1 or num_streams < 1 or layer_index < 0:
            raise ValueError(
                f"dim={dim} and num_streams={num_streams} must be at least 1, "
                f"layer_index={layer_index} at least 0"
            )
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")
        mixing_of(mixing)
        self.dim, self.num_streams, self.layer_index, self.backend = dim, num_streams, layer_index, backend
        self.observer: Callable[[HyperConnections, Mappings], None] | None = None
        if num_streams == 1:
            self.form = None
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
            self.scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
        else:
            self.form = Form(num_streams, mixing, sinkhorn_iters, norm_eps, eps)
            self._has_kernels = backend != "reference" and fused.is_supported(self.form, dim)
            if backend == "fused" and not self._has_kernels:
                raise ValueError(
                    f"backend='fused' has no kernels for {num_streams} streams of width {dim} with mixing "
                    f"{mixing!r} here: use 'auto'"
                )
            size = sum(self.form.sizes)
            self.weight = nn.Parameter(torch.empty(size, num_streams * dim, dtype=torch.float32))
            self.bias = nn.Parameter(torch.empty(size, dtype=torch.float32))
            self.scale = nn.Parameter(torch.empty(3, dtype=torch.float32))
        self.reset_parameters()

    def initial_values(self) -> dict[str, Tensor]:
        """By name, what parameters make the connection the ordinary residual one; float64."""
        if self.form is None:
            return {"scale": torch.ones(1, dtype=torch.float64)}
        assert self.weight is not None
        return {
            "weight": torch.zeros(self.weight.shape, dtype=torch.float64),
            "bias": _initial_bias(self.form, self.layer_index),
            "scale": torch.full((3,), DYNAMIC_SCALE, dtype=torch.float64),
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Makes the connection the ordinary residual one."""
        for name, value in self.initial_values().items():
            self.get_parameter(name).copy_(value)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        mixing = "" if self.form is None else f", mixing={self.form.mixing}"
        return f"dim={self.dim}, num_streams={self.num_streams}, layer_index={self.layer_index}{mixing}"

    def forward(self, x_SC: Tensor, branch: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The streams after the branch.

        Args:
            x_SC: (..., S, C), any float dtype.
            branch: (..., C) to (..., C), called once with the further arguments.
            *args: passed to the branch.
            **kwargs: passed to the branch.

        Returns:
            (..., S, C) in the streams' dtype.

        Raises:
            ValueError: streams of another shape.
        """
        reading = self.read(x_SC)
        return reading.write(branch(reading.input, *args, **kwargs))

    def read(self, x_SC: Tensor) -> Reading:
        """The first half of `forward`, for branches that are no functions of one tensor.

        Args:
            x_SC: (..., S, C).

        Returns:
            The branch's input, and `write` for its output.

        Raises:
            ValueError: streams of another shape.
        """
        self._check(x_SC)
        reading = self._read(x_SC)
        if self.observer is not None:
            self.observer(self, reading.mappings)
        return reading

    def mappings(self, x_SC: Tensor) -> Mappings:
        """What these streams would be read and written with.

        Args:
            x_SC: (..., S, C).

        Raises:
            ValueError: streams of another shape.
        """
        self._check(x_SC)
        if self.form is None:
            ones = torch.ones_like(x_SC[..., 0])
            return Mappings(ones, ones * self.scale, ones.unsqueeze(-1))
        assert self.weight is not None
        assert self.bias is not None
        numbers_M = project(x_SC, self.weight, self.form.norm_eps)
        return mappings_of(numbers_M, self.scale, self.bias, self.form)

    def _check(self, x_SC: Tensor) -> None:
        expected = (self.num_streams, self.dim)
        if x_SC.dim() < 2 or x_SC.shape[-2:] != expected:
            raise ValueError(
                f"expected streams of shape (..., {expected[0]}, {expected[1]}), not {tuple(x_SC.shape)}"
            )

    def _read(self, x_SC: Tensor) -> Reading:
        if self.form is not None and self._has_kernels:
            assert self.weight is not None
            assert self.bias is not None
            if fused.is_usable(x_SC, self.form, self.weight, self.bias, self.scale):
                return _FusedReading(*fused.read(x_SC, self.weight, self.bias, self.scale, self.form))
        mappings = self.mappings(x_SC)
        if self.form is None:
            return _ScaledResidual(x_SC.squeeze(-2), mappings, x_SC, self.scale)
        if not torch.compiler.is_compiling() and recompute.is_on():
            warnings.warn(
                "streams are kept, not recomputed, by connections that no kernels compute: "
                f"mixing {self.form.mixing!r}, {self.num_streams} streams of {x_SC.dtype} on {x_SC.device}, "
                f"width {self.dim}, backend {self.backend!r}",
                stacklevel=2,
            )
        return Reading(gather(x_SC, mappings.pre), mappings, x_SC)


@dataclass(frozen=True)
class _FusedReading(Reading):
    """Read by kernels: `residual` is (N, S, C) and stands for the mixed streams, see `fused.py`."""

    source: Tensor | Written | None

    def write(self, y_C: Tensor) -> Tensor:
        return fused.write(self.residual, y_C, self.mappings, self.source)


@dataclass(frozen=True)
class _ScaledResidual(Reading):
    """One stream: no sums, and no copies."""

    scale: Tensor

    def write(self, y_C: Tensor) -> Tensor:
        return torch.addcmul(self.residual, y_C.unsqueeze(-2), self.scale.to(y_C.dtype))


class SinglePassHyperConnections(HyperConnections):
    """Hyper-connections whose branch reads with what the previous connection computed.

        x[l+1] = H_res(x[l]) x[l] + H_post(x[l])^T F(H_pre(x[l-1]) x[l])

    The streams need not be read twice, once for the mappings and once with them, where both are one
    kernel. The first connection of a model reads with its own initial weights (`pre=None`).

    Arguments, parameters and initial values are those of `HyperConnections`; at least two streams.

    Source: Single-Pass mHC (arXiv 2609.19969).
    """

    def __init__(self, dim: int, **options: Any) -> None:
        if options.get("num_streams", 4) < 2:
            raise ValueError("the single-pass form needs at least 2 streams")
        super().__init__(dim, **options)

    def initial_values(self) -> dict[str, Tensor]:
        """As in `HyperConnections`; what is computed here is read with by the next connection."""
        assert self.form is not None
        values = super().initial_values()
        values["bias"] = torch.cat(
            [
                _initial_bias(self.form, self.layer_index + 1)[: self.num_streams],
                values["bias"][self.num_streams :],
            ]
        )
        return values

    def forward(  # type: ignore[override]
        self, x_SC: Tensor, branch: Callable[..., Tensor], pre_S: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The streams after the branch, and what the next connection reads with.

        Args:
            x_SC: (..., S, C).
            branch: (..., C) to (..., C), called once with the further arguments.
            pre_S: (..., S) from the previous connection; None for the first.
            **kwargs: passed to the branch.

        Returns:
            (..., S, C) in the streams' dtype, and (..., S).

        Raises:
            ValueError: streams of another shape.
        """
        self._check(x_SC)
        mappings = self.mappings(x_SC)
        if self.observer is not None:
            self.observer(self, mappings)
        if pre_S is None:
            pre_S = self._first_pre(mappings.pre)
        y_C = branch(gather(x_SC, pre_S), **kwargs)
        return scatter(x_SC, y_C, mappings.post, mappings.comb), mappings.pre

    def _first_pre(self, like_S: Tensor) -> Tensor:
        assert self.form is not None
        share = _read_shares(self.num_streams, self.layer_index).to(like_S)
        return share.expand_as(like_S)


class StreamHead(nn.Module):
    """The streams' last weighted sum, before a model's final norm.

    At the start it is their mean.

    Args:
        dim: C.
        num_streams: S, at least 1; with one it takes that stream.
        norm_eps: of the norm over all streams of a token.
        eps: added to the weights.

    Attributes:
        weight: (S, S * C) zero at first, bias: (S,), scale: (1,) float32; none with one stream.

    Source: DeepSeek's published V4 code (its `hc_head`); the paper does not say how streams end.
    """

    def __init__(self, dim: int, *, num_streams: int = 4, norm_eps: float = 1e-6, eps: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.num_streams, self.norm_eps, self.eps = dim, num_streams, norm_eps, eps
        if num_streams > 1:
            self.weight = nn.Parameter(torch.empty(num_streams, num_streams * dim, dtype=torch.float32))
            self.bias = nn.Parameter(torch.empty(num_streams, dtype=torch.float32))
            self.scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
            self.reset_parameters()

    def initial_values(self) -> dict[str, Tensor]:
        """By name, what parameters make it the mean of the streams; float64."""
        if self.num_streams == 1:
            return {}
        share = torch.full((self.num_streams,), 1 / self.num_streams - self.eps, dtype=torch.float64)
        return {
            "weight": torch.zeros(self.weight.shape, dtype=torch.float64),
            "bias": share.logit(),
            "scale": torch.full((1,), DYNAMIC_SCALE, dtype=torch.float64),
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Makes it the mean of the streams."""
        for name, value in self.initial_values().items():
            self.get_parameter(name).copy_(value)

    def forward(self, x_SC: Tensor) -> Tensor:
        """(..., S, C) to (..., C) in the streams' dtype."""
        if self.num_streams == 1:
            return x_SC.squeeze(-2)
        numbers_S = project(x_SC, self.weight, self.norm_eps)
        weights_S = (numbers_S * self.scale.to(numbers_S) + self.bias.to(numbers_S)).sigmoid() + self.eps
        return gather(x_SC, weights_S)


def expand_streams(h_C: Tensor, num_streams: int) -> Tensor:
    """Every stream a copy: (..., C) to (..., S, C), without copying memory.

    Source: DeepSeek's published V4 code; at the network's start all streams are the embedding.
    """
    return h_C.unsqueeze(-2).expand(*h_C.shape[:-1], num_streams, h_C.shape[-1])


def _read_shares(num_streams: int, layer_index: int) -> Tensor:
    """(S,) float64 weights that sum to 1, the connection's own stream the greatest."""
    shares = torch.full((num_streams,), (1 - READ_SHARE) / (num_streams - 1), dtype=torch.float64)
    shares[layer_index % num_streams] = READ_SHARE
    return shares


def _initial_bias(form: Form, layer_index: int) -> Tensor:
    """(M,) float64: H_pre reads the own stream most, H_post is 1, H_res keeps most."""
    streams = form.num_streams
    shares = _read_shares(streams, layer_index)
    mixing = mixing_of(form.mixing).initial(streams, KEEP_SHARE).double()
    if form.mixing == "unconstrained":
        return torch.cat([shares, torch.ones(streams, dtype=torch.float64), mixing])
    # 2 sigmoid(0) is 1.
    return torch.cat([(shares - form.eps).logit(), torch.zeros(streams, dtype=torch.float64), mixing])
