"""Pruning methods by name, one a file. A method decides which weights live; it trains and sends nothing itself.

begin   the first masks, from a dense pre-trained state; may ask clients
wants   how many gradients of pruned positions each layer needs this round; empty in most rounds
adjust  the new masks, from the aggregated state and gradients
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedtiny_train.config import Config
from fedtiny_train.masks import Array, kept_total
from fedtiny_train.models import ModelSpec, blocks, build, first_convolution, prunable
from fedtiny_train.server import Answers, Check, State
from fedtiny_train.wire import Message


@dataclass(frozen=True, slots=True)
class Setting:
    """The facts that a method works with, all fixed before the first round."""

    config: Config
    spec: ModelSpec
    sizes: Mapping[str, int]
    dense_first: str | None
    blocks: tuple[tuple[str, ...], ...]

    @property
    def maskable(self) -> list[str]:
        """Return the weights that may be pruned, from input to output."""
        return [name for name in self.sizes if name != self.dense_first]

    @property
    def budget(self) -> int:
        """Return how many of the maskable weights the density keeps; a dense first layer counts as kept."""
        total = kept_total(self.config.train.density, list(self.sizes.values()))
        return total - (self.sizes[self.dense_first] if self.dense_first else 0)


def setting(config: Config, spec: ModelSpec) -> Setting:
    """Collect the facts about a network; refuse a density that leaves a layer without a weight."""
    model = build(spec)
    sizes = {name: weight.numel() for name, weight in prunable(model).items()}
    dense = config.train.method != "fedavg" and config.train.first_dense
    first = first_convolution(model) if dense else None
    groups = tuple(tuple(n for n in group if n != first) for group in blocks(model))
    found = Setting(config, spec, sizes, first, tuple(group for group in groups if group))
    if found.budget < len(found.maskable):
        raise _too_sparse(found)
    return found


def _too_sparse(found: Setting) -> Exception:
    from fedtiny_export.errors import UsageError

    first = found.sizes[found.dense_first] if found.dense_first else 0
    least = (first + len(found.maskable)) / sum(found.sizes.values())
    remedy = ", --no-first-dense" if first else ""
    return UsageError(
        f"density {found.config.train.density} keeps too few of {sum(found.sizes.values())} weights: the dense "
        f"first layer has {first} and each of {len(found.maskable)} others needs one; "
        f"use --density {least + 5e-5:.4f} or more{remedy}, or a greater --width"
    )


class Ask(Protocol):
    """Send a request to all clients and return the answers that passed the check."""

    def __call__(self, request: Message, check: Check, kept: Message | None = None) -> Answers:
        """Ask all clients."""
        ...


Tune = Callable[[State], State]


class Method(Protocol):
    """What every method answers."""

    def begin(self, setting: Setting, state: State, ask: Ask, tune: Tune) -> State:
        """Return the state that round 1 starts from; `tune` trains a masked state on the public data."""
        ...

    def wants(self, setting: Setting, state: State, round_number: int) -> dict[str, int]:
        """Return how many gradients of pruned positions each layer needs after this round."""
        ...

    def adjust(
        self, setting: Setting, state: State, gradients: Mapping[str, Array], counts: Mapping[str, int]
    ) -> State:
        """Return the state under new masks."""
        ...


def method(name: str) -> Method:
    """Return the method of a name."""
    from fedtiny_train.methods.fedavg import FedAvg
    from fedtiny_train.methods.fedtiny import FedTiny
    from fedtiny_train.methods.random_mask import RandomMask

    known: dict[str, Callable[[], Method]] = {"fedtiny": FedTiny, "random": RandomMask, "fedavg": FedAvg}
    return known[name]()
