"""What a round costs a device: training FLOPs and memory, stated as formulas.

FLOPs count the multiplications and additions of convolutions and linear layers, 2 for each multiply-accumulate.
A backward pass costs twice a forward pass: one product for the gradient of the input, one for that of the
weight. A masked layer costs its live share, as on a device that skips zeros; batch norm, loss and optimiser
are left out. Memory is what must be held between steps: parameters, gradients and FedTiny's top-K buffer; the
activations, which depend on how a device computes, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedtiny_train.masks import Mask
from fedtiny_train.models import Arrays

BYTES_VALUE = 4
BYTES_SPARSE = 8  # a float32 value and a 32-bit position


def forward_flops(macs: Mapping[str, int], masks: Mapping[str, Mask]) -> float:
    """Return the FLOPs of one sample's forward pass: 2 * sum over layers of MACs * live share."""
    return sum(2 * count * _live(masks[name]) for name, count in macs.items())


def train_flops(
    macs: Mapping[str, int], masks: Mapping[str, Mask], samples: int, wanted: Mapping[str, int], batch: int
) -> float:
    """Return the FLOPs of one device in one round that passes `samples` samples (epochs counted in).

    3 * forward * samples, and in the layers of `wanted` the dense weight gradient of one batch on top:
    2 * MACs * (1 - live share) * batch.
    """
    extra = sum(2 * macs[name] * (1 - _live(masks[name])) * min(batch, samples) for name in wanted)
    return 3 * forward_flops(macs, masks) * samples + extra


def memory_bytes(tensors: Arrays, masks: Mapping[str, Mask], wanted: Mapping[str, int]) -> int:
    """Return the bytes one device holds: parameters and their gradients, and 8 bytes a gradient of `wanted`.

    A masked tensor takes 8 bytes a live weight or 4 a weight, whichever is less. Running statistics and the
    input normalisation have no gradient. The authors' published memory agrees with a buffer as large as a
    third sparse copy of the network; here it is what the block in turn really asks for.
    """
    parameters = gradients = 0
    for name, array in tensors.items():
        size = array.size * BYTES_VALUE
        if name in masks:
            size = min(size, int(masks[name].sum()) * BYTES_SPARSE)
        parameters += size
        if "running_" not in name and name not in ("center.mean", "scale.inv_std"):
            gradients += size
    return parameters + gradients + sum(wanted.values()) * BYTES_SPARSE


def _live(mask: Mask) -> float:
    return float(mask.mean())
