"""Pruning methods by name, one a file. A method decides which weights live; it trains and sends nothing itself.

A method is a `Method`: a few functions, of which only `begin` must be its own.

network the network that is trained, from the one asked for: nearly always the same
begin   the first masks, from a dense pre-trained state; may ask clients
orders  what the clients do in a round on top of plain training; nothing in most rounds
learn   the next state, from the averaged one and from whatever the clients sent beside it
close   the state that is exported, before batch norms are recalibrated
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from fedtiny_train.data import Shard
from fedtiny_train.masks import Array, Mask, kept_total
from fedtiny_train.models import ModelSpec, blocks, build, depthwise, first_convolution, prunable
from fedtiny_train.options import METHODS, Config
from fedtiny_train.server import Answers, Check, State
from fedtiny_train.wire import Message

Masks = dict[str, Mask]


@dataclass(frozen=True, slots=True)
class Setting:
    """The facts that a method works with, all fixed before the first round."""

    config: Config
    spec: ModelSpec
    sizes: Mapping[str, int]
    dense: frozenset[str]
    blocks: tuple[tuple[str, ...], ...]

    @property
    def maskable(self) -> list[str]:
        """Return the weights that may be pruned, from input to output."""
        return [name for name in self.sizes if name not in self.dense]

    @property
    def budget(self) -> int:
        """Return how many of the maskable weights the density keeps; weights left dense count as kept."""
        total = kept_total(self.config.train.density, list(self.sizes.values()))
        return total - sum(self.sizes[name] for name in self.dense)

    @property
    def classifier(self) -> str:
        """Return the name of the last layer's weight."""
        return list(self.sizes)[-1]

    def row_floor(self, name: str) -> int:
        """Return the least number of weights that a row of this layer keeps: the option, in the classifier alone."""
        return self.config.pruning.row_floor if name == self.classifier else 0


@dataclass(frozen=True, slots=True)
class Orders:
    """What a method asks of the clients in one round; `numbers` are read by the habits of `fedtiny_train.habits`.

    top        how many gradients of pruned positions each layer sends
    own_masks  whether a client may move its live weights elsewhere; their number in each layer stays
    may_skip   whether a client sends no weights unless its loss is below that of its last upload
    bits       how many a float32 value takes on its way, either way: 8 or 32
    """

    top: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    own_masks: bool = False
    may_skip: bool = False
    bits: int = 32

    def request(self) -> dict[str, float]:
        """Return the orders as the numbers of a request."""
        skip = {"may_skip": 1.0} if self.may_skip else {}
        return {**self.numbers, **skip, **{f"top/{name}": float(count) for name, count in self.top.items()}}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a round: the state before it, the averaged one under the same masks, and every good update."""

    number: int
    before: State
    state: State
    messages: Mapping[int, Message]
    gradients: Mapping[str, Array]
    orders: Orders


class Ask(Protocol):
    """Send a request to all clients and return the answers that passed the check; `own` is what each noted."""

    def __call__(
        self, request: Message, check: Check, kept: Message | None = None, own: Mapping[int, bytes] | None = None
    ) -> Answers:
        """Ask all clients."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What a method may use before the first round and after the last one.

    tune    trains a masked state on the public data for a few passes
    public  the server's own samples; may be empty
    """

    ask: Ask
    tune: Callable[[State], State]
    public: Shard


def _as_asked(setting: Setting) -> Setting:
    return setting


def _nothing(setting: Setting, state: State, number: int) -> Orders:
    return Orders()


def _averaged(setting: Setting, outcome: Outcome) -> State:
    return outcome.state


def _as_it_is(setting: Setting, state: State, services: Services) -> State:
    return state


@dataclass(frozen=True, slots=True)
class Method:
    """One method; with `prunes_all` no layer is left dense, whatever the options say."""

    begin: Callable[[Setting, State, Services], State]
    orders: Callable[[Setting, State, int], Orders] = _nothing
    learn: Callable[[Setting, Outcome], State] = _averaged
    close: Callable[[Setting, State, Services], State] = _as_it_is
    prunes_all: bool = False
    network: Callable[[Setting], Setting] = _as_asked


def method(name: str) -> Method:
    """Return the method of a name: `METHOD` in the module that `options.METHODS` gives."""
    found = importlib.import_module(f"fedtiny_train.methods.{METHODS[name]}").METHOD
    assert isinstance(found, Method)
    return found


def setting(config: Config, spec: ModelSpec) -> Setting:
    """Collect the facts about a network; refuse a density that leaves a layer without a weight."""
    model = build(spec)
    sizes = {name: weight.numel() for name, weight in prunable(model).items()}
    dense = _left_dense(config, model)
    groups = tuple(tuple(n for n in group if n not in dense) for group in blocks(model))
    found = Setting(config, spec, sizes, dense, tuple(group for group in groups if group))
    if found.budget < len(found.maskable):
        raise _too_sparse(found)
    return method(config.train.method).network(found)


def _left_dense(config: Config, model: nn.Module) -> frozenset[str]:
    """Return the weights that are not pruned: a first convolution, and depthwise ones, whose channels die with them."""
    options = config.train
    if options.density >= 1 or method(options.method).prunes_all:
        return frozenset()
    first = first_convolution(model) if options.first_dense else None
    return frozenset({first} if first else ()) | (depthwise(model) if options.depthwise_dense else frozenset())


def _too_sparse(found: Setting) -> Exception:
    from fedtiny_export.errors import UsageError

    dense = sum(found.sizes[name] for name in found.dense)
    least = (dense + len(found.maskable)) / sum(found.sizes.values())
    remedy = ", --no-first-dense or --no-depthwise-dense" if dense else ""
    return UsageError(
        f"density {found.config.train.density} keeps too few of {sum(found.sizes.values())} weights: the layers left "
        f"dense have {dense} and each of {len(found.maskable)} others needs one; "
        f"use --density {least + 5e-5:.4f} or more{remedy}, or a greater --width"
    )
