"""What one device does: it is asked, and it answers, in bytes.

`answer` is a pure function of the order (the request, and what the device kept for itself), of its private shard
and of the run's local settings. It runs in any process with the same result. It never sees another client's
data, and it sends no sample: only weights, statistics, gradients and losses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import torch.utils.deterministic
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fedtiny_train import calibrate, models, qat, wire
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order, Reply
from fedtiny_train.habits import Habit, Lesson, habits
from fedtiny_train.masks import Mask
from fedtiny_train.models import Arrays, ModelSpec
from fedtiny_train.models.place import here, moved
from fedtiny_train.seeds import rng
from fedtiny_train.wire import Message, Sparse, WireError

DEV_SHARE = 0.1
OWN, UPLOADED = "own/", "uploaded loss"
EVERYONE = -1  # in a request that may be meant for one client alone


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """What every device knows from the start: the network and how it is trained."""

    model: ModelSpec
    seed: int
    batch: int
    local_epochs: int
    momentum: float
    weight_decay: float
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Device:
    """What one client has: its data, the settings, and messages it kept: an earlier request, and its own notes."""

    shard: Shard
    local: LocalSpec
    kept: Message | None = None
    own: Message | None = None


def prepare_torch() -> None:
    """Make torch compute the same bytes every time: one thread, deterministic kernels."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # It would fill every fresh tensor, against kernels that read what nobody wrote: 7 % of the time, and none here do.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=2)
def received(data: bytes) -> Message:
    """Read a request; one process answers the same one for many clients, so it reads it once."""
    return wire.decode(data)


@functools.lru_cache(maxsize=1)
def unpack(message: Message) -> tuple[Arrays, dict[str, Mask]]:
    """Split the tensors of a message into the state of a network and its masks; nobody changes either of them."""
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
    numbers: Mapping[str, float] | None = None,
    ranges: calibrate.Doubles | None = None,
) -> tuple[float, Lesson, list[Habit]]:
    """Train in place with SGD over a schedule of batches; masked weights are zero after every step.

    With a single sample a batch norm keeps its statistics, which a batch of one cannot renew. Given ranges of
    the activations, all numbers are rounded as int8 would round them. Returns the mean loss, the lesson with its
    masks as they are at the end, and the habits that `numbers` asked for.
    """
    if model.training != (training := renews(model, shard)):  # to walk all modules takes its time
        model.train(training)
    models.set_masks(model, masks)
    weights = models.prunable(model)
    live = {name: torch.from_numpy(mask.copy()) for name, mask in masks.items()}
    epochs = max(1, local.local_epochs)
    lesson = Lesson(model, weights, live, numbers or {}, len(schedule), len(schedule) // epochs)
    added = habits(lesson)
    parameters = list(model.parameters())
    velocity: list[Tensor | None] = [None] * len(parameters)
    x, y = models.layout(torch.from_numpy(shard.x)), moved(torch.from_numpy(shard.y))
    compute = model if ranges is None else qat.network(model, ranges)
    losses = []
    for index, batch in enumerate(schedule):
        chosen = torch.from_numpy(batch)
        for parameter in parameters:
            parameter.grad = None
        with precision(local):
            loss = F.cross_entropy(compute(x[chosen]).float(), y[chosen])
        extra = [p for habit in added if (p := habit.penalty(index)) is not None]
        sum(extra, start=loss).backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        for habit in added:
            habit.after_backward(index)
        with torch.no_grad():
            rate = functools.reduce(lambda rate, habit: habit.rate(index, rate), added, lr)
            descend(parameters, velocity, rate, local)
            for habit in added:
                habit.after_step(index)
            for name, mask in live.items():
                weights[name].mul_(moved(mask))
    return math.fsum(losses) / max(1, len(losses)), lesson, added


def descend(parameters: list[nn.Parameter], velocity: list[Tensor | None], lr: float, local: LocalSpec) -> None:
    """Take a step of SGD as torch.optim.SGD does, without what its class costs a small network."""
    used = [i for i, parameter in enumerate(parameters) if parameter.grad is not None]
    before = [velocity[i] for i in used]
    sgd(
        [parameters[i] for i in used],
        [g for i in used if (g := parameters[i].grad) is not None],
        before,
        fused=True,
        lr=lr,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
    for i, speed in zip(used, before, strict=True):
        velocity[i] = speed


def precision(local: LocalSpec) -> AbstractContextManager[object]:
    """Return the arithmetic of forward and backward passes; weights and their updates are always float32."""
    return torch.autocast(here().type, dtype=torch.bfloat16) if local.precision == "bf16" else nullcontext()


def renews(model: nn.Module, shard: Shard) -> bool:
    """Return whether training on a shard can renew the statistics of the network's batch norms."""
    return len(shard.y) > 1 or not models.needs_two_samples(model)


def seed_dropout(generator: np.random.Generator) -> None:
    """Key torch's one generator, which only dropout draws from, by a generator that is keyed already."""
    # torch.manual_seed would also note for every kind of accelerator where it was called from: 0.2 ms a client.
    seed = int(generator.integers(2**63))
    torch.default_generator.manual_seed(seed)
    if here().type == "cuda":
        torch.cuda.manual_seed(seed)


def train(request: Message, device: Device) -> Message:
    """Train for a round; send the new state, and what the request's habits found, in as many bits as were asked in.

    Where the request allows to skip, a device whose loss is not below that of its last upload sends no weights.
    """
    shard, local = device.shard, device.local
    state, masks = unpack(request)
    model = models.shared(local.model)
    models.load(model, {n: a for n, a in state.items() if n != qat.RANGES} | own_part(device), masks)
    generator = rng(local.seed, "batches", int(request.numbers["round"]), shard.client)
    schedule = [b for _ in range(local.local_epochs) for b in batches(len(shard.y), local.batch, generator)]
    seed_dropout(generator)
    ranges = qat.asked(state)
    loss, lesson, added = fit(model, shard, masks, schedule, request.numbers["lr"], local, request.numbers, ranges)
    numbers = {"samples": len(shard.y), "loss": loss}
    may_skip = bool(request.numbers.get("may_skip"))
    if may_skip and not loss < _last_upload(device):
        return Message("skipped", numbers)
    after = models.read(model)
    live = {name: mask.numpy() for name, mask in lesson.masks.items()}
    fixed = {"center.mean", "scale.inv_std"} | (set() if renews(model, shard) else running(model))
    tensors = {_kept_here(n): wire.masked(a, live.get(n)) for n, a in after.items() if n not in fixed}
    for habit in added:
        tensors |= habit.results()
    if may_skip:
        tensors[OWN + UPLOADED] = np.array(loss)
    return Message("update", numbers, tensors, request.bits)


def _kept_here(name: str) -> str:
    """Return the name of a tensor in an answer: what is the device's own becomes a note."""
    return f"{OWN}{name}" if name.startswith(models.OWN) else name


def own_part(device: Device) -> Arrays:
    """Return what of the network never travels: as the device noted it, or as every device begins."""
    if not device.local.model.personal:
        return {}
    begun = models.gate_state(models.shared(device.local.model), device.local.seed)
    return begun if device.own is None else begun | read_notes(device.own, begun, device.shard.client)


def read_notes(notes: Message, begun: Arrays, client: int) -> Arrays:
    """Return what a device noted of its own part; notes may come from a file, and must be as what it began with."""
    found = {name: notes.array(name) for name in begun if name in notes.tensors}
    for name, array in found.items():
        if array.shape != begun[name].shape or array.dtype != np.float32 or not np.isfinite(array).all():
            raise WireError(f"what client {client} noted as {name} is of no use; start a new run")
    return found


def _last_upload(device: Device) -> float:
    """Return the loss that the device last uploaded with; before the first upload every loss is below it."""
    if device.own is None or UPLOADED not in device.own.tensors:
        return math.inf
    noted = device.own.array(UPLOADED)
    if noted.shape or not np.isfinite(noted):
        raise WireError(f"what client {device.shard.client} noted of its last upload is no loss; start a new run")
    return float(noted)


def saliency(request: Message, device: Device) -> Message:
    """Send the dense gradient of every prunable weight over the development split: what SNIP scores with."""
    x, y = development(device.shard, device.local.seed)
    model = models.shared(device.local.model)
    models.load(model, *unpack(request))
    return Message("saliency", {"samples": len(y)}, dict(dense_gradients(model, x, y)))


def dense_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Arrays:
    """Return the mean gradient of each prunable weight over some samples, batch norm as it is."""
    model.eval()
    model.zero_grad()
    F.cross_entropy(model(models.layout(x)), moved(y)).backward()  # type: ignore[no-untyped-call]
    return {n: w.grad.cpu().numpy().copy() for n, w in models.prunable(model).items() if w.grad is not None}


def running(model: nn.Module) -> set[str]:
    """Return the names of all batch-norm statistics."""
    return {f"{name}.{part}" for name in models.norms(model) for part in ("running_mean", "running_var")}


def development_count(samples: int) -> int:
    """Return the size of a development split: a tenth of the samples, at least one."""
    return max(1, math.ceil(DEV_SHARE * samples))


def development(shard: Shard, seed: int) -> tuple[Tensor, Tensor]:
    """Return the client's development split: a tenth of its data, at least one sample, always the same."""
    count = development_count(len(shard.y))
    chosen = np.sort(rng(seed, "development", shard.client).permutation(len(shard.y))[:count])
    return moved(torch.from_numpy(shard.x[chosen])), moved(torch.from_numpy(shard.y[chosen]))


def candidate(message: Message, index: int) -> Message:
    """Return one candidate of a pool: the tensors named `index/...`."""
    prefix = f"{index}/"
    own = {n.removeprefix(prefix): t for n, t in message.tensors.items() if n.startswith(prefix)}
    return Message(message.kind, message.numbers, own)


def adapt(request: Message, device: Device) -> Message:
    """Renew the batch-norm statistics of every candidate by forward passes over the development split.

    A single sample has no variance, so a client with one sends no statistics.
    """
    shard, local = device.shard, device.local
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


def score(request: Message, device: Device) -> Message:
    """Send the loss of every kept candidate, with the statistics just received, on the development split."""
    kept = device.kept
    assert kept is not None
    x, y = development(device.shard, device.local.seed)
    model = models.shared(device.local.model)
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


def describe(request: Message, device: Device) -> Message:
    """Send what the input normalisation needs: count, sum, sum of squares, least and greatest value."""
    x = device.shard.x.astype(np.float64)
    numbers = {"count": x.size, "sum": x.sum(), "squares": (x**2).sum(), "min": x.min(), "max": x.max()}
    return Message("described", {name: float(value) for name, value in numbers.items()})


def gates(request: Message, device: Device) -> Message:
    """Send how strong each gate is and how often each channel wins, if it is this client that is meant, or all."""
    model = models.shared(device.local.model)
    meant = int(request.numbers["client"]) in (EVERYONE, device.shard.client)
    state, masks = unpack(request)
    models.load(model, state | own_part(device), masks)
    found = calibrate.gate_moments(model, device.shard.x) if meant else {}
    return Message("gates", {"samples": len(device.shard.y)}, dict(found))


def moments(request: Message, device: Device) -> Message:
    """Send mean and variance of what reaches each batch norm, all of them applied with the global statistics."""
    model = models.shared(models.exported(device.local.model))
    models.load(model, *unpack(request))
    found, loss = calibrate.norm_moments(model, device.shard.x, device.shard.y)
    return Message("moments", {"samples": len(device.shard.y), "loss": loss}, dict(found))


def ranges(request: Message, device: Device) -> Message:
    """Send the least and the greatest value of every tensor of the network."""
    model = models.shared(models.exported(device.local.model))
    models.load(model, *unpack(request))
    return Message("ranges", {}, {"ranges": calibrate.tensor_ranges(model, device.shard.x)})


def histograms(request: Message, device: Device) -> Message:
    """Send a histogram of every tensor over the edges that the server set."""
    assert device.kept is not None
    model = models.shared(models.exported(device.local.model))
    models.load(model, *unpack(device.kept))
    counts = calibrate.tensor_histograms(model, device.shard.x, request.array("ranges"))
    return Message("histograms", {}, {"counts": counts})


Duty = Callable[[Message, Device], Message]
DUTIES: Mapping[str, Duty] = {
    "train": train,
    "saliency": saliency,
    "adapt": adapt,
    "score": score,
    "describe": describe,
    "gates": gates,
    "moments": moments,
    "ranges": ranges,
    "histograms": histograms,
}


def answer(order: Order, shard: Shard, local: LocalSpec) -> Reply:
    """Answer one order. Tensors named `own/...` are the device's notes for its next order: they stay with it."""
    message = received(order.request)
    kept = received(order.kept) if order.kept else None
    own = wire.decode(order.own) if order.own else None
    found = DUTIES[message.kind](message, Device(shard, local, kept, own))
    sent = {name: t for name, t in found.tensors.items() if not name.startswith(OWN)}
    notes = {name.removeprefix(OWN): t for name, t in found.tensors.items() if name.startswith(OWN)}
    body = wire.encode(replace(found, tensors=sent))
    return Reply(body, wire.encode(Message("own", {}, notes)) if notes else order.own)
