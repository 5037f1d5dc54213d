"""What a round costs a device: training FLOPs and memory, stated as formulas. docs/costs.md has the reasons.

FLOPs count the multiplications and additions of convolutions and linear layers, 2 for each multiply-accumulate.
A backward pass costs twice a forward pass: one product for the gradient of the input, one for that of the
weight. A masked layer costs its live share, as on a device that skips zeros; batch norm, loss and optimiser
are left out. Where a method wants gradients of pruned positions, those of the wanted layers are dense: for one
batch, or with `squares` for all of them.

Memory is what a device holds at the height of a training step. Nothing here is measured or fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedtiny_train import storage
from fedtiny_train.activations import Held, forward_bytes, training_bytes
from fedtiny_train.masks import Mask
from fedtiny_train.methods import Orders
from fedtiny_train.models import Arrays
from fedtiny_train.storage import Extent
from fedtiny_train.wire import Message, Sparse, Tensor

VALUE = 4
PAIR = 8  # a float32 value and a 32-bit position: what a list that changes with every batch is made of
FIXED = ("center.mean", "scale.inv_std")


@dataclass(frozen=True, slots=True)
class Network:
    """What the formulas need of a network: multiply-accumulates of each weight, and the values that it holds."""

    macs: Mapping[str, int]
    held: Held


@dataclass(frozen=True, slots=True)
class Training:
    """How devices train: samples a step, epochs a round, with momentum or not, share of activations forgotten."""

    batch: int
    epochs: int
    momentum: bool = False
    dropped: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on a device by what they are for."""

    parameters: int = 0
    gradients: int = 0
    momentum: int = 0
    buffer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """Return all of them together."""
        return self.parameters + self.gradients + self.momentum + self.buffer + self.activations


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What the most burdened device spends: FLOPs, memory, and memory in the terms of FedTiny's paper."""

    flops: float = 0.0
    memory: Memory = Memory()
    paper: int = 0


def worst(costs: Iterable[DeviceCost]) -> DeviceCost:
    """Return the greatest of each figure; the parts of the memory are those of the greatest total."""
    found = [DeviceCost(), *costs]
    memory = max((one.memory for one in found), key=lambda m: m.total)
    return DeviceCost(max(one.flops for one in found), memory, max(one.paper for one in found))


def forward_flops(macs: Mapping[str, int], masks: Mapping[str, Mask]) -> float:
    """Return the FLOPs of one sample's forward pass: 2 * sum over layers of MACs * live share."""
    return sum(2 * count * _live(masks[name]) for name, count in macs.items())


def dense_flops(macs: Mapping[str, int], masks: Mapping[str, Mask], wanted: Iterable[str]) -> float:
    """Return what one sample's weight gradients of `wanted` cost beyond the live ones: 2 * MACs * (1 - live share)."""
    return sum(2 * macs[name] * (1 - _live(masks[name])) for name in wanted)


def largest_batch(samples: int, batch: int) -> int:
    """Return the samples of the largest step: the batch, and one more where a last one of its own would be left."""
    return batch + 1 if samples > batch and samples % batch == 1 else min(samples, batch)


def round_cost(
    network: Network,
    tensors: Arrays,
    masks: Mapping[str, Mask],
    orders: Orders,
    training: Training,
    samples: Sequence[int],
) -> DeviceCost:
    """Return the cost of one round of training for the worst of the devices, which hold so many samples each."""
    return worst(_device(network, tensors, masks, orders, training, count) for count in sorted(set(samples)))


def _device(
    network: Network, tensors: Arrays, masks: Mapping[str, Mask], orders: Orders, training: Training, samples: int
) -> DeviceCost:
    step, swaps = largest_batch(samples, training.batch), _counts(orders, "swap/")
    seen = samples * training.epochs
    flops = 3 * forward_flops(network.macs, masks) * seen
    flops += dense_flops(network.macs, masks, orders.top) * (seen if orders.numbers.get("squares") else step)
    flops += dense_flops(network.macs, masks, swaps) * step
    parameters, gradients = copies(tensors, masks, storage.cheapest)
    memory = Memory(
        parameters,
        gradients,
        gradients if training.momentum else 0,
        buffer_bytes(masks, orders),
        training_bytes(network.held, step, training.dropped),
    )
    return DeviceCost(flops, memory, sum(copies(tensors, masks, storage.pairs_or_dense)) + memory.buffer)


def copies(tensors: Arrays, masks: Mapping[str, Mask], form: Callable[[Extent], int]) -> tuple[int, int]:
    """Return the bytes of the parameters and of their gradients, masked tensors stored in a form of `storage`.

    Running statistics and the input normalisation have no gradient.
    """
    parameters = gradients = 0
    for name, array in tensors.items():
        size = form(storage.extent(masks[name])) if name in masks else array.size * VALUE
        parameters += size
        gradients += 0 if "running_" in name or name in FIXED else size
    return parameters, gradients


def buffer_bytes(masks: Mapping[str, Mask], orders: Orders) -> int:
    """Return what a device keeps for the orders of a round.

    A pair for each of the K greatest gradients, which are found while a layer's gradient is computed; with
    `squares` a dense sum of each wanted layer, since any position may win in the end. FedDST's swap keeps pairs
    as well; FedMef's extrusion the positions that it presses towards zero.
    """
    squares = orders.numbers.get("squares")
    asked = sum(masks[name].size * VALUE if squares else count * PAIR for name, count in orders.top.items())
    return asked + sum(_counts(orders, "swap/").values()) * PAIR + sum(_counts(orders, "extrude/").values()) * VALUE


def _counts(orders: Orders, prefix: str) -> dict[str, int]:
    return {n.removeprefix(prefix): int(v) for n, v in orders.numbers.items() if n.startswith(prefix)}


def _live(mask: Mask) -> float:
    return float(mask.mean())


def request_cost(
    network: Network, request: Message, kept: Message | None, batch: int, development: Sequence[int]
) -> DeviceCost:
    """Return what a request of a method's set-up costs the worst device, by the size of its development split.

    The candidates of a pool stay on the device until they are scored, since they are sent once: all of them are
    parameters. They run forward only. A saliency is one dense weight gradient over the whole split.
    """
    most = max(development)
    pool = kept or request
    if request.kind in ("adapt", "score"):
        passes = pool.numbers["passes"] if request.kind == "adapt" else 1
        one = sum(_forward_of(network.macs, pool, f"{index}/") for index in range(int(pool.numbers["pool"])))
        activations = forward_bytes(network.held, min(batch, most))
        return DeviceCost(passes * most * one, Memory(parameters=_stored(pool), activations=activations))
    if request.kind == "saliency":
        shares = sum(2 * count for count in network.macs.values())
        gradients = sum(math.prod(request.tensors[name].shape) * VALUE for name in network.macs)
        activations = training_bytes(network.held, most)
        memory = Memory(parameters=_stored(request), gradients=gradients, activations=activations)
        return DeviceCost((2 * _forward_of(network.macs, request, "") + shares) * most, memory)
    return DeviceCost()


def _forward_of(macs: Mapping[str, int], message: Message, prefix: str) -> float:
    """Return the FLOPs of one sample's forward pass through a network in a message."""
    found = 0.0
    for name, count in macs.items():
        of = _extent(message.tensors[prefix + name])
        found += 2 * count * of.live / of.size
    return found


def _stored(message: Message) -> int:
    """Return the bytes of all tensors of a message, each in its cheapest form."""
    return sum(storage.cheapest(_extent(tensor)) for tensor in message.tensors.values())


def _extent(tensor: Tensor) -> Extent:
    size = math.prod(tensor.shape)
    live = len(tensor.indices) if isinstance(tensor, Sparse) else size
    return Extent(size, tensor.shape[0] if tensor.shape else 1, live)
