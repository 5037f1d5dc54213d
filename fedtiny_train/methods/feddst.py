"""FedDST (Bibikar et al., AAAI 2022): clients move their own weights; the server joins and prunes again.

    begin   ERK shares, the largest pre-trained weights of each layer
    orders  every delta-R rounds until R_stop = R/2: each client, one epoch before its last, drops its a_t smallest
            live weights of each layer and grows as many by the gradient of that epoch's last batch, at zero
            (the habit `local_swap`), and sends its own mask with its weights
    learn   w = sum n_k m_k w_k / sum n_k m_k, 0 where nobody has a weight; of the union of the masks each layer
            keeps its largest weights, as many as it had

With a single local epoch the swap comes after that epoch, so that what grew is still zero when it is sent, and is
kept only where other clients trained the same weight. The authors drop alpha * alpha/2 (1 + cos) of the live
weights, alpha twice; here it is once, as their paper has it. Their first delta-R is 15 rounds; here it is a
thirtieth of all rounds, as for the others. The floor of a classifier's rows is kept as far as the union has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedtiny_train.masks import Array, Mask, erk_counts, top_mask
from fedtiny_train.methods import Method, Orders, Outcome, Services, Setting
from fedtiny_train.methods.moving import is_due, swap_counts, times
from fedtiny_train.server import State
from fedtiny_train.wire import Message, Sparse


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under the largest weights of each layer, with ERK shares."""
    names = setting.maskable
    counts = erk_counts([state.tensors[name].shape for name in names], setting.budget)
    masks = {
        name: top_mask(np.abs(state.tensors[name]), count, setting.row_floor(name))
        for name, count in zip(names, counts, strict=True)
    }
    return services.tune(state.with_masks(state.masks | masks))


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Let the clients swap weights of every layer in the rounds that adjust."""
    every, until = times(setting, 1 / 30, 1 / 2)
    if not is_due(number, every, until):
        return Orders()
    counts = swap_counts(setting, state, setting.maskable, number, until)
    if not counts:
        return Orders()
    moment = max(1, setting.config.train.local_epochs - 1)
    numbers = {f"swap/{name}": float(count) for name, count in counts.items()}
    return Orders(numbers=numbers | {"swap_epoch": float(moment)}, own_masks=True)


def joined(messages: Mapping[int, Message], name: str) -> tuple[Array, Mask]:
    """Average a weight over the clients that have it live, by samples; return it with the union of the masks."""
    parts = []
    for _, message in sorted(messages.items()):
        tensor, samples = message.tensors[name], message.numbers["samples"]
        live = tensor.mask() if isinstance(tensor, Sparse) else np.ones(tensor.shape, dtype=np.bool_)
        parts.append((samples * live, samples * live * message.array(name).astype(np.float64)))
    whole, total = np.asarray(sum(part[0] for part in parts)), np.asarray(sum(part[1] for part in parts))
    union = np.asarray(whole > 0)
    return np.asarray(np.where(union, total / np.where(union, whole, 1), 0), dtype=np.float32), union


def pruned_again(weights: Array, union: Mask, count: int, row_floor: int) -> Mask:
    """Keep the `count` largest weights of a union; a row keeps its floor as far as every row of the union has it."""
    floor = min(row_floor, int(union.reshape(union.shape[0], -1).sum(axis=1).min()))
    return top_mask(np.where(union, np.abs(weights), -1.0), count, floor)


def learn(setting: Setting, outcome: Outcome) -> State:
    """Join what the clients kept, and prune each layer back to its count."""
    state = outcome.state
    if not outcome.orders.own_masks:
        return state
    tensors, masks = dict(state.tensors), dict(state.masks)
    for name in setting.maskable:
        tensors[name], union = joined(outcome.messages, name)
        masks[name] = pruned_again(tensors[name], union, int(state.masks[name].sum()), setting.row_floor(name))
    return replace(state, tensors=tensors).with_masks(masks)


METHOD = Method(begin, orders, learn)
