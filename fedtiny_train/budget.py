"""Width and density from bytes: what `--flash-budget` and `--target` decide before anything is trained.

    bytes    the budget, or what a board's flash leaves for a model beside runtime, SDK and self-test
    density  as near to 0.15 as a whole width allows, and then the greatest at which the model fits
    width    the one that goes with it; on a board never more than twice the network's own, and never so much that
             the arena exceeds what the board's RAM leaves

A width or a density that is given stays; the other one follows. For fedavg the network is dense, and so it is where
the flash holds all of it. Bytes are those of `packing`, for ERK shares; which weights live decides on a few more or
less, so that two percent of the budget stay free.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fedtiny_export.errors import UsageError
from fedtiny_export.ftm.fitting import Need, need_of

from fedtiny_train.config import read_bytes
from fedtiny_train.models import ModelSpec
from fedtiny_train.options import WIDTHS, Config
from fedtiny_train.packing import density_for, drawn_masks, model_bytes, shapes_of, untrained, width_for

log = logging.getLogger(__name__)
WISHED = 0.15  # on speech commands at 4 and 8 kB, 0.1 to 0.2 did best: docs/benchmarks.md


def within(config: Config, spec: ModelSpec) -> tuple[Config, ModelSpec]:
    """Return configuration and network with the width and density that a budget leaves; without one, as they are."""
    options = config.train
    if options.target:
        spec, density = _on_board(config, spec)
    elif options.flash_budget:
        spec, density = _filling(config, spec, read_bytes(options.flash_budget))
    else:
        return config, spec
    log.info("%s: width %d, density %.3g, %d bytes", spec.name, spec.width, density, model_bytes(spec, density))
    return replace(config, train=replace(options, density=density)), spec


def _filling(config: Config, spec: ModelSpec, bytes_given: int) -> tuple[ModelSpec, float]:
    dense = config.train.method == "fedavg"
    budget = bytes_given if dense else bytes_given - bytes_given // 50
    if not (config.model.width or ":" in spec.name):
        spec = replace(spec, width=width_for(spec, budget, 1.0 if dense else config.train.density or WISHED))
    density = density_for(spec, budget)
    if not density or (dense and density < 1):
        which = "dense" if dense else "at any density"
        raise UsageError(f"{spec.name} of width {spec.width} does not fit into {bytes_given:,} bytes {which}")
    return spec, min(density, config.train.density or 1.0)


def _on_board(config: Config, spec: ModelSpec) -> tuple[ModelSpec, float]:
    """Fill the flash; where RAM is short, take the greatest width whose arena fits."""
    board, free = config.train.target, not config.model.width and ":" not in spec.name
    need = _need(replace(spec, width=1) if free else spec, 1.0, board)
    room = need.model_room
    if room <= 0 or need.arena > need.arena_room:
        what = f"{need.arena:,} bytes of arena; {board} leaves {max(0, need.arena_room):,}"
        raise UsageError(
            f"{board} has no flash left for a model beside the runtime; choose another --target"
            if room <= 0
            else f"{spec.name} of width {1 if free else spec.width} needs {what}: choose another --target or --model"
        )
    widest, density = _filling(config, spec, room)
    if not free:
        return widest, density

    def fitted(width: int) -> tuple[ModelSpec, float]:
        return _filling(replace(config, model=replace(config.model, width=width)), replace(spec, width=width), room)

    low, high = 1, min(widest.width, 2 * WIDTHS[spec.name])
    while low < high:  # the arena grows with the width
        middle = (low + high + 1) // 2
        need = _need(*fitted(middle), board)
        low, high = (middle, high) if need.arena <= need.arena_room else (low, middle - 1)
    return fitted(low)


def _need(spec: ModelSpec, density: float, board: str) -> Need:
    """Ask the exporter what a network with weights drawn at random takes."""
    return need_of(untrained(spec, drawn_masks(shapes_of(spec), density, 0)), board)
