"""What one device does: it is asked, and it answers, in bytes.

`answer` is a pure function of the request, of what the device kept from an earlier request, of its private
shard and of the run's local settings. It runs in any process with the same result. It never sees another
client's data, and it sends no sample: only weights, statistics, gradients and losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedtiny_train import calibrate, models, wire
from fedtiny_train.data import Shard
from fedtiny_train.masks import Mask, top_gradients
from fedtiny_train.models import Arrays, ModelSpec
from fedtiny_train.seeds import rng
from fedtiny_train.trace import norm_behind
from fedtiny_train.wire import Message, Sparse

DEV_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """What every device knows from the start: the network and how it is trained."""

    model: ModelSpec
    seed: int
    batch: int
    local_epochs: int
    momentum: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of some epochs of training."""

    loss: float
    gradients: Arrays


def prepare_torch() -> None:
    """Make torch compute the same bytes every time: one thread, deterministic kernels."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def unpack(message: Message) -> tuple[Arrays, dict[str, Mask]]:
    """Split the tensors of a message into the state of a network and its masks."""
    state = {name: message.array(name) for name in message.tensors}
    masks = {name: t.mask() for name, t in message.tensors.items() if isinstance(t, Sparse)}
    return state, masks


def batches(count: int, size: int, generator: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Shuffle `count` samples into batches; a last batch of one joins the one before, unless all are of one."""
    order = generator.permutation(count)
    cut = [order[i : i + size] for i in range(0, count, size)]
    if len(cut) > 1 and len(cut[-1]) == 1 < size:
        cut[-2:] = [np.concatenate(cut[-2:])]
    return cut


def fit(
    model: nn.Module,
    shard: Shard,
    masks: Mapping[str, Mask],
    schedule: list[npt.NDArray[np.int64]],
    lr: float,
    local: LocalSpec,
    keep_gradients: bool = False,
) -> Trained:
    """Train in place with SGD over a schedule of batches; masked weights are zero after every step.

    With a single sample a batch norm keeps its statistics, which a batch of one cannot renew. The gradients
    of the prunable weights in the last batch are kept if asked for: dense ones, the pruned positions included.
    """
    model.train(renews(model, shard))
    models.set_masks(model, masks)
    weights = models.prunable(model)
    frozen = [(weights[name], torch.from_numpy(mask)) for name, mask in masks.items()]
    step = torch.optim.SGD(model.parameters(), lr, local.momentum, weight_decay=local.weight_decay)
    x, y = torch.from_numpy(shard.x), torch.from_numpy(shard.y)
    losses, kept = [], {}
    for index, batch in enumerate(schedule):
        chosen = torch.from_numpy(batch)
        step.zero_grad()
        loss = F.cross_entropy(model(models.lay_out(x[chosen])), y[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        if keep_gradients and index == len(schedule) - 1:
            kept = {name: w.grad.numpy().copy() for name, w in weights.items() if w.grad is not None}
        step.step()
        with torch.no_grad():
            for weight, mask in frozen:
                weight.mul_(mask)
    return Trained(math.fsum(losses) / max(1, len(losses)), kept)


def renews(model: nn.Module, shard: Shard) -> bool:
    """Return whether training on a shard can renew the statistics of the network's batch norms."""
    return len(shard.y) > 1 or not models.needs_two_samples(model)


def seed_dropout(generator: np.random.Generator) -> None:
    """Key torch's one generator, which only dropout draws from, by a generator that is keyed already."""
    torch.manual_seed(int(generator.integers(2**63)))


def train(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Train for a round; send the new state and, where asked, the top-K gradients of pruned positions."""
    state, masks = unpack(request)
    model = models.shared(local.model)
    models.load(model, state, masks)
    generator = rng(local.seed, "batches", int(request.numbers["round"]), shard.client)
    schedule = [b for _ in range(local.local_epochs) for b in batches(len(shard.y), local.batch, generator)]
    seed_dropout(generator)
    wanted = {n.removeprefix("top/"): int(k) for n, k in request.numbers.items() if n.startswith("top/")}
    done = fit(model, shard, masks, schedule, request.numbers["lr"], local, bool(wanted))
    after = models.read(model)
    fixed = {"center.mean", "scale.inv_std"} | (set() if renews(model, shard) else running(model))
    tensors = {name: wire.masked(a, masks.get(name)) for name, a in after.items() if name not in fixed}
    scales = deviations(model) if request.numbers.get("scale_by_norm") else {}
    for name, count in wanted.items():
        gradient = done.gradients[name]
        if name in scales:
            gradient = gradient * scales[name].reshape(-1, *[1] * (gradient.ndim - 1))
        indices, values = top_gradients(gradient, masks[name], count)
        tensors[f"top/{name}"] = Sparse(gradient.shape, indices, values)
    return Message("update", {"samples": len(shard.y), "loss": done.loss}, tensors)


def running(model: nn.Module) -> set[str]:
    """Return the names of all batch-norm statistics."""
    return {f"{name}.{part}" for name in models.norms(model) for part in ("running_mean", "running_var")}


def deviations(model: nn.Module) -> Arrays:
    """Return the batch-norm deviation of each filter of the weights that a batch norm follows."""
    layers = models.norms(model)
    found = {}
    for weight, norm in norm_behind(model).items():
        variance = layers[norm].running_var
        assert variance is not None
        found[weight] = np.sqrt(variance.numpy() + np.float32(layers[norm].eps))
    return found


def development(shard: Shard, seed: int) -> tuple[Tensor, Tensor]:
    """Return the client's development split: a tenth of its data, at least one sample, always the same."""
    count = max(1, math.ceil(DEV_SHARE * len(shard.y)))
    chosen = np.sort(rng(seed, "development", shard.client).permutation(len(shard.y))[:count])
    return torch.from_numpy(shard.x[chosen]), torch.from_numpy(shard.y[chosen])


def candidate(message: Message, index: int) -> Message:
    """Return one candidate of a pool: the tensors named `index/...`."""
    prefix = f"{index}/"
    own = {n.removeprefix(prefix): t for n, t in message.tensors.items() if n.startswith(prefix)}
    return Message(message.kind, message.numbers, own)


def adapt(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Renew the batch-norm statistics of every candidate by forward passes over the development split.

    A single sample has no variance, so a client with one sends no statistics.
    """
    x, y = development(shard, local.seed)
    model = models.shared(local.model)
    tensors: dict[str, wire.Tensor] = {}
    for index in range(int(request.numbers["pool"]) if len(y) > 1 else 0):
        models.load(model, *unpack(candidate(request, index)))
        model.train()
        generator = rng(local.seed, "adapt", shard.client)
        schedule = batches(len(y), local.batch, generator)
        seed_dropout(generator)
        with torch.no_grad():
            for _ in range(int(request.numbers["passes"])):
                for batch in schedule:
                    model(x[torch.from_numpy(batch)])
        state = models.read(model)
        tensors |= {f"{index}/{name}": state[name] for name in sorted(running(model))}
    return Message("adapted", {"samples": len(y)}, tensors)


def score(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Send the loss of every kept candidate, with the statistics just received, on the development split."""
    assert kept is not None
    x, y = development(shard, local.seed)
    model = models.shared(local.model)
    sums = np.zeros((3, int(kept.numbers["pool"])))
    for index in range(sums.shape[1]):
        models.load(model, *unpack(candidate(kept, index)))
        models.load(model, unpack(candidate(request, index))[0])
        model.eval()
        with torch.no_grad():
            output = model(x)
            losses = F.cross_entropy(output, y, reduction="none").double()
        sums[:, index] = float(losses.sum()), float((losses**2).sum()), float((output.argmax(1) == y).sum())
    names = ("loss", "loss_squared", "correct")
    return Message("scored", {"samples": len(y)}, dict(zip(names, sums, strict=True)))


def describe(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Send what the input normalisation needs: count, sum, sum of squares, least and greatest value."""
    x = shard.x.astype(np.float64)
    numbers = {"count": x.size, "sum": x.sum(), "squares": (x**2).sum(), "min": x.min(), "max": x.max()}
    return Message("described", {name: float(value) for name, value in numbers.items()})


def moments(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Send mean and variance of what reaches each batch norm, all of them applied with the global statistics."""
    model = models.shared(local.model)
    models.load(model, *unpack(request))
    return Message("moments", {"samples": len(shard.y)}, dict(calibrate.norm_moments(model, shard.x)))


def ranges(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Send the least and the greatest value of every tensor of the network."""
    model = models.shared(local.model)
    models.load(model, *unpack(request))
    return Message("ranges", {}, {"ranges": calibrate.tensor_ranges(model, shard.x)})


def histograms(request: Message, kept: Message | None, shard: Shard, local: LocalSpec) -> Message:
    """Send a histogram of every tensor over the edges that the server set."""
    assert kept is not None
    model = models.shared(local.model)
    models.load(model, *unpack(kept))
    counts = calibrate.tensor_histograms(model, shard.x, request.array("ranges"))
    return Message("histograms", {}, {"counts": counts})


Duty = Callable[[Message, Message | None, Shard, LocalSpec], Message]
DUTIES: Mapping[str, Duty] = {
    "train": train,
    "adapt": adapt,
    "score": score,
    "describe": describe,
    "moments": moments,
    "ranges": ranges,
    "histograms": histograms,
}


def answer(request: bytes, kept: bytes, shard: Shard, local: LocalSpec) -> bytes:
    """Answer one request; `kept` is an earlier request that the device still has, or nothing."""
    message = wire.decode(request)
    earlier = wire.decode(kept) if kept else None
    return wire.encode(DUTIES[message.kind](message, earlier, shard, local))
