"""Dilated convolutions as TensorFlow's converter leaves them: SPACE_TO_BATCH_ND, a convolution, BATCH_TO_SPACE_ND.

The first deals every n-th pixel to one of n images, so that the convolution's neighbours lie n pixels apart; the last
puts the images together again. None of them is made: the convolution is held back until its padding is known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Window
from .reader import Operator, TfliteReader


def _sides(reader: TfliteReader, operator: Operator, place: int, count: int) -> tuple[tuple[int, int], ...]:
    """The (before, after) of height and width; a signal is an image of one row."""
    values = reader.constant(operator, place)
    if values.shape != (count, 2) or values.min() < 0:
        raise FedtinyError(f"{operator.called}: {values.tolist()} is no number of rows and columns for {count} sides")
    pairs = tuple((int(before), int(after)) for before, after in values)
    return pairs if count == 2 else ((0, 0), *pairs)


def deal_out(reader: TfliteReader, operator: Operator) -> None:
    """SPACE_TO_BATCH_ND."""
    source, steps = reader.source(operator), [int(step) for step in np.ravel(reader.constant(operator, 1))]
    count = len(reader.tensors[source].shape) - 1
    if count not in (1, 2) or len(steps) != count or min(steps) < 1:
        raise FedtinyError(f"{operator.called}: steps {steps} over {reader.tensors[source].shape}")
    output = operator.outputs[0]
    apart = Window(dilation=(steps[0], steps[1]) if count == 2 else (1, steps[0]))
    (top, bottom), (left, right) = _sides(reader, operator, 2, count)
    reader.apart[output] = replace(apart, pads=(top, left, bottom, right))
    reader.written[output] = source


def view(reader: TfliteReader, operator: Operator) -> bool:
    """Whether a change of shape is of dealt out pixels: between a signal and an image of one row."""
    index, output = reader.index(operator, 0), operator.outputs[0]
    if index in reader.held:
        reader.held[output] = reader.held[index]
    elif index in reader.apart:
        source = reader.written[index]
        reader.apart[output] = reader.apart[index]
        reader.written[output] = reader.image(source)
    return index in reader.held or index in reader.apart


def hold(reader: TfliteReader, operator: Operator, window: Window) -> bool:
    """Whether a convolution is of dealt out pixels, and has to wait."""
    if reader.index(operator, 0) not in reader.apart:
        return False
    if window.stride != (1, 1) or window.dilation != (1, 1) or any(window.pads):
        raise FedtinyError(
            f"{operator.called} between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND strides, dilates or pads"
        )
    reader.held[operator.outputs[0]] = operator
    return True


def gather(reader: TfliteReader, operator: Operator) -> tuple[Operator, Window]:
    """BATCH_TO_SPACE_ND: the convolution that was held back, with its last output, and how it pads and dilates."""
    held = reader.held.get(reader.index(operator, 0))
    if held is None:
        raise FedtinyError(f"{operator.called} is supported behind SPACE_TO_BATCH_ND and one convolution only")
    apart = reader.apart.pop(held.inputs[0])
    steps = [int(step) for step in np.ravel(reader.constant(operator, 1))]
    crops = _sides(reader, operator, 2, len(steps))
    if ([1, *steps] if len(steps) == 1 else steps) != list(apart.dilation):
        raise FedtinyError(f"{operator.called}: steps {steps} are not those that the pixels were dealt out by")
    if reader.activation(held.outputs[0]).quant != reader.activation(operator.outputs[0]).quant:
        raise FedtinyError(f"{operator.called} changes the scale, which the kernel does not do")
    top, left, bottom, right = apart.pads
    pads = (top - crops[0][0], left - crops[1][0], bottom - crops[0][1], right - crops[1][1])
    if min(pads) < 0:
        raise FedtinyError(f"{operator.called} cuts off more than was padded")
    return replace(held, outputs=operator.outputs), replace(apart, pads=pads)
