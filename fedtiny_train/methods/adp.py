"""Adaptive dynamic pruning (ADP, arXiv 2106.06921): each sample is computed with the channels that its gates choose.

    network  a gate behind the batch norm of every convolution that has one: s = sigmoid(mean of the input),
             g = ReLU(W s + b), all but the round(ratio * C) largest g of a sample are zero, y = ReLU(BN(conv(x)) g);
             ratio = sqrt(density), since a convolution is computed with its share of inputs and of outputs
    learn    gates are averaged like all weights (the authors' code), or stay with each client
    close    a device that skips weights needs to know which: the gates are frozen. Clients tell how often each
             channel wins and how strong its gate is; the most often winning ones stay, their mean strength goes into
             the batch norm's scale and bias, and every weight that then does nothing is pruned

Frozen, the network no longer adapts to the sample; what that costs is in the summary (`accuracy_before_freezing`).
The density comes out above ratio^2 where channels live on without a gate: those of the input, of a shortcut that is
a convolution of its own, and of an addition, which is dead only where both operands are.

With a `threshold` it is the second version, FedDP, instead: no gates; after every local epoch the weights of
convolutions up to the threshold become zero (the habit `thinning`). What the averaged network has above it at the
end is the mask; the density is what comes out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from fedtiny_export.errors import FedtinyError, UsageError
from torch import nn

from fedtiny_train import models, wire
from fedtiny_train.client import EVERYONE, read_notes
from fedtiny_train.liveness import by_source, spread
from fedtiny_train.masks import Array, Mask
from fedtiny_train.methods import Masks, Method, Orders, Outcome, Services, Setting
from fedtiny_train.models import Arrays
from fedtiny_train.models.gating import norm_of, winners
from fedtiny_train.server import Check, State, need, need_shapes
from fedtiny_train.trace import INPUT, norm_behind, steps
from fedtiny_train.wire import Message

CLIENT = "gate_client"


@dataclass(frozen=True, slots=True)
class GateUse:
    """What clients found at one gate: the mean strength of each channel, losses counted as 0, and its share of wins."""

    mean: Array
    wins: Array


def network(setting: Setting) -> Setting:
    """Return the setting with gates in its network; refuse a network that has no place for one."""
    options = setting.config.adp
    if options.threshold:
        return setting
    ratio = math.sqrt(setting.config.train.density)
    spec = dataclasses.replace(setting.spec, gates=ratio, personal=options.gates == "personal")
    if not models.gates(models.shared(spec)):
        raise UsageError(
            f"adp gates convolutions with a batch norm behind them, and model {spec.name} has none; use --model resnet8"
        )
    return dataclasses.replace(setting, spec=spec)


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the dense state; with personal gates those of every client begin alike."""
    if not setting.spec.personal:
        return state
    answers = services.ask(Message("describe"), _described)
    sizes = {client: message.numbers["count"] for client, message in answers.messages.items()}
    chosen = setting.config.adp.gate_client
    if chosen < 0:
        chosen = max(sorted(sizes), key=lambda client: sizes[client])
    if chosen not in sizes:
        raise UsageError(f"gate_client is {chosen}, but the clients are {min(sizes)} to {max(sizes)}")
    own = models.gate_state(models.shared(setting.spec), setting.config.run.seed)
    return dataclasses.replace(state, tensors=state.tensors | own, memory={**state.memory, CLIENT: chosen})


def _described(message: Message) -> None:
    need(message, "described", ("count",))


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Let clients thin out their weights if there is a threshold."""
    threshold = setting.config.adp.threshold
    return Orders(numbers={"threshold": threshold} if threshold else {})


def learn(setting: Setting, outcome: Outcome) -> State:
    """Return the averaged state.

    With personal gates it is measured with those of the client whose gates will be exported. That is a look into
    the simulation: a server is not sent them before the end, and does not train with them.
    """
    state = outcome.state
    client = state.memory.get(CLIENT, EVERYONE)
    if client not in state.own:
        return state
    begun = {name: array for name, array in state.tensors.items() if name.startswith(models.OWN)}
    own = read_notes(wire.decode(state.own[client]), begun, client)
    return dataclasses.replace(state, tensors=state.tensors | own)


def close(setting: Setting, state: State, services: Services) -> State:
    """Return the plain network: with frozen gates, or with the mask that a threshold leaves."""
    if threshold := setting.config.adp.threshold:
        return thresholded(state, threshold)
    found = _ask_for_gates(setting, state, services)
    return freeze(setting, state, found)


def thresholded(state: State, threshold: float) -> State:
    """Return the state with what is above the threshold as masks of its convolutions, other weights whole."""
    masks = {
        name: np.abs(state.tensors[name]) > threshold if mask.ndim == 4 else mask for name, mask in state.masks.items()
    }
    for name, mask in masks.items():
        if not mask.any():
            raise FedtinyError(f"threshold {threshold} leaves {name} without a weight; use a lower --threshold")
    return state.with_masks(masks)


def _ask_for_gates(setting: Setting, state: State, services: Services) -> dict[str, GateUse]:
    """Return what all clients find at each gate, by samples, or with personal gates what the chosen one finds."""
    personal = setting.spec.personal
    client = state.memory[CLIENT] if personal else EVERYONE
    shapes = {
        f"{name}.{part}": gate.bias.shape
        for name, gate in models.gates(models.shared(setting.spec)).items()
        for part in ("mean", "wins")
    }
    request = state.message("gates", {"client": client})
    answers = services.ask(request, _gates_check(shapes, personal), own=state.own).messages
    parts = [message for _, message in sorted(answers.items()) if message.tensors]
    if not parts:
        raise FedtinyError(f"client {client}, whose gates are to be exported, sent none; name another --gate-client")
    whole = sum(part.numbers["samples"] for part in parts)
    pooled = {n: np.asarray(sum(p.numbers["samples"] * p.array(n) for p in parts) / whole) for n in shapes}
    names = [name.removesuffix(".mean") for name in shapes if name.endswith(".mean")]
    return {norm_of(name): GateUse(pooled[f"{name}.mean"], pooled[f"{name}.wins"]) for name in names}


def _gates_check(shapes: Mapping[str, tuple[int, ...]], personal: bool) -> Check:
    def check(message: Message) -> None:
        need(message, "gates", ("samples",))
        need_shapes(message, shapes, list(shapes) if personal and not message.tensors else [])
        for name in message.tensors:
            values = message.array(name)
            if (values < 0).any() or (name.endswith(".wins") and (values > 1 + 1e-9).any()):
                raise FedtinyError(f"{name} is no strength of a gate, or no share of samples")

    return check


def freeze(setting: Setting, state: State, found: Mapping[str, GateUse]) -> State:
    """Return the state of the network without gates: what each gate does on the average, always."""
    plain = models.exported(setting.spec)
    model = models.shared(plain)
    tensors = {name: state.tensors[name] for name in models.read(model)}
    won = every = 0.0
    for norm, use in found.items():
        keep = winners(len(use.wins), setting.spec.gates)
        order = np.lexsort((-use.mean, -use.wins))[:keep]
        factor = np.zeros(len(use.wins))
        # A channel that never won anywhere is as dead as one that is dropped, whatever its place in the order.
        factor[order] = use.mean[order]
        for part in ("weight", "bias"):
            tensors[f"{norm}.{part}"] = np.asarray(tensors[f"{norm}.{part}"] * factor, dtype=np.float32)
        won, every = won + use.wins[order].sum(), every + use.wins.sum()
    client = state.memory.get(CLIENT)
    frozen = {"client": client, "wins_kept": float(won / every) if every else 0.0}
    memory = {**state.memory, "frozen": frozen}
    masks = state.masks | {n: m & state.masks[n] for n, m in useful(model, plain.shape[0], tensors).items()}
    return dataclasses.replace(state, tensors=tensors, memory=memory).with_masks(masks)


def useful(model: nn.Module, channels: int, tensors: Arrays) -> Masks:
    """Return which weights of a network do anything, as far as its batch norms say.

    A channel is dead behind a batch norm that has neither scale nor bias for it, and stays dead until something
    is added to it. Weights that make or read a dead channel do nothing.
    """
    live: dict[str, Mask] = {INPUT: np.ones(channels, dtype=np.bool_)}
    masks: Masks = {}
    makers = {norm: weight for weight, norm in norm_behind(model).items()}
    for step in steps(model):
        given = live[step.inputs[0]]
        if isinstance(step.module, nn.Conv2d | nn.Linear):
            whole = np.ones(tuple(step.module.weight.shape), dtype=np.bool_)
            masks[f"{step.path}.weight"] = whole & by_source(step.module, spread(given, whole, step.module), whole)
            given = np.ones(len(whole), dtype=np.bool_)
        elif isinstance(step.module, nn.BatchNorm1d | nn.BatchNorm2d):
            given = (tensors[f"{step.path}.weight"] != 0) | (tensors[f"{step.path}.bias"] != 0)
            if weight := makers.get(step.path):
                masks[weight][~given] = False
        for other in step.inputs[1:]:
            given = given | live[other]
        live[step.output] = given
    return masks


METHOD = Method(begin, orders, learn, close, prunes_all=True, network=network)
