"""Layers that normalise their weights, forget small inputs, or both; and what a network keeps for backward.

A convolution needs its input again for the gradient of its weights, and inputs are most of what training holds.
With activation pruning a layer keeps only the largest share of them (FedMef's scaled activation pruning): the
output and the gradient of the input are exact, that of the weights is not. One class does both, since a layer
that replaced only plain convolutions would leave the normalised ones out.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedtiny_train.models.layers import Pads, pads
from fedtiny_train.models.norms import normalised

BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    same: Pads


def _flat(x: Tensor) -> Tensor:
    """Return the values in the order they lie in memory, if that is one of torch's two layouts of images."""
    lies_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return (x.permute(0, 2, 3, 1) if lies_last else x).reshape(-1)


def _folded(values: Tensor, shape: torch.Size, lies_last: bool) -> Tensor:
    if not lies_last:
        return values.reshape(shape)
    samples, channels, height, width = shape
    return values.reshape(samples, height, width, channels).permute(0, 3, 1, 2)


def _lies_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def largest(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return (values, flat positions) of the largest share of |x|, at least one of them."""
    flat = _flat(x)
    count = min(flat.numel(), max(1, math.ceil(share * flat.numel() - 1e-9)))
    places = flat.abs().topk(count, sorted=False).indices
    narrow = torch.int16 if flat.numel() <= 1 << 15 else torch.int32 if flat.numel() <= 1 << 31 else torch.int64
    return flat[places], places.to(narrow)


class _KeepLargest(torch.autograd.Function):
    """A convolution, or with no window a linear layer, that keeps the largest inputs for its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, share: float, window: Window | None
    ) -> Tensor:
        values, places = largest(x, share)
        ctx.save_for_backward(weight, values, places)
        ctx.shape, ctx.lies_last, ctx.window, ctx.has_bias = x.shape, _lies_last(x), window, bias is not None
        if window is None:
            return F.linear(x, weight, bias)
        return F.conv2d(F.pad(x, window.same), weight, bias, window.stride, 0, window.dilation, window.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        weight, values, places = ctx.saved_tensors
        # In bf16 the forward pass was computed in it; the gradient comes in it, and goes on in it.
        weight, values = weight.to(gradient.dtype), values.to(gradient.dtype)
        flat = values.new_zeros(math.prod(ctx.shape))
        flat[places.long()] = values
        x = _folded(flat, ctx.shape, ctx.lies_last)
        if ctx.window is None:
            of_bias = gradient.sum(0) if ctx.has_bias else None
            return gradient @ weight, gradient.T @ x, of_bias, None, None
        return *_convolution_backward(gradient, x, weight, ctx.window, ctx.has_bias), None, None


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, window: Window, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    left, right, top, bottom = window.same
    wide = F.pad(x, window.same)
    of_wide, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient,
        wide,
        weight,
        [len(weight)] if has_bias else None,
        window.stride,
        (0, 0),
        window.dilation,
        False,
        (0, 0),
        window.groups,
        (True, True, has_bias),
    )
    height, width = wide.shape[2:]
    return of_wide[:, :, top : height - bottom, left : width - right], of_weight, of_bias


class SparseConv2d(nn.Conv2d):
    """A convolution made from another one; `scaled` normalises its weights, `drop` is the share it forgets."""

    mask: Tensor

    def __init__(self, conv: nn.Conv2d, scaled: bool, drop: float) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            (conv.stride[0], conv.stride[1]),
            dilation=(conv.dilation[0], conv.dilation[1]),
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.same, self.share = pads(conv), 1 - drop
        _begin(self, scaled)

    def forward(self, input: Tensor) -> Tensor:
        """Pad with zeros, then convolve with the weights as they count."""
        weight = effective(self)
        if self.share < 1 and torch.is_grad_enabled():
            window = Window(self.stride, self.dilation, self.groups, self.same)
            return _apply(input, weight, self.bias, self.share, window)
        wide = F.pad(input, self.same)
        return F.conv2d(wide, weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SparseLinear(nn.Linear):
    """A linear layer made from another one, in the same way."""

    mask: Tensor

    def __init__(self, linear: nn.Linear, scaled: bool, drop: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.share = 1 - drop
        _begin(self, scaled)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the weights as they count."""
        if self.share < 1 and torch.is_grad_enabled():
            return _apply(input, effective(self), self.bias, self.share, None)
        return F.linear(input, effective(self), self.bias)


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None, share: float, window: Window | None) -> Tensor:
    found: Tensor = _KeepLargest.apply(x, weight, bias, share, window)  # type: ignore[no-untyped-call]
    return found


def _begin(layer: SparseConv2d | SparseLinear, scaled: bool) -> None:
    layer.register_parameter("gain", nn.Parameter(torch.ones(len(layer.weight))) if scaled else None)
    # Which positions live is told by `set_masks`; it travels with the weights, not beside them.
    layer.register_buffer("mask", torch.ones_like(layer.weight, dtype=torch.bool), persistent=False)


def effective(layer: SparseConv2d | SparseLinear) -> Tensor:
    """Return the weights that the layer really computes with."""
    gain = layer.gain
    if gain is None:
        return layer.weight
    assert isinstance(gain, Tensor)
    return normalised(layer.weight, layer.mask, gain)


class _KeepSigns(torch.autograd.Function):
    """A rectifier that keeps one bit a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: float) -> Tensor:
        open_ = _flat((x > 0) & (x < most))
        bits = F.pad(open_, (0, -len(open_) % 8)).reshape(-1, 8)
        ctx.save_for_backward((bits * BITS.to(bits.device)).sum(1, dtype=torch.uint8))
        ctx.shape, ctx.lies_last = x.shape, _lies_last(x)
        return x.clamp(0, most)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors[0]
        bits = (kept[:, None] & BITS.to(kept.device)).ne(0).reshape(-1)[: math.prod(ctx.shape)]
        return gradients[0] * _folded(bits, ctx.shape, ctx.lies_last), None


class SignReLU(nn.ReLU):
    """A ReLU that keeps one bit a value for backward; torch's keeps its output, which pruning is to forget."""

    def forward(self, input: Tensor) -> Tensor:
        """Return max(x, 0)."""
        found: Tensor = _KeepSigns.apply(input, math.inf)  # type: ignore[no-untyped-call]
        return found


class SignReLU6(nn.ReLU6):
    """The same for a ReLU that ends at 6."""

    def forward(self, input: Tensor) -> Tensor:
        """Return min(max(x, 0), 6)."""
        found: Tensor = _KeepSigns.apply(input, 6.0)  # type: ignore[no-untyped-call]
        return found


def saved_bytes(model: nn.Module, batch: Tensor) -> int:
    """Return the bytes that a forward pass in training keeps for its backward pass, beside the state itself.

    Tensors that share memory count once, whole. The model is left as it is.
    """
    model = copy.deepcopy(model).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(batch)
        # What was kept lives as long as the graph behind the output.
        assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
