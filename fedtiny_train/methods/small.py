"""A small dense network of no more bytes: what a sparse one has to beat.

    network  the same network at the largest width whose dense model takes no more bytes of flash than that of the
             network asked for, pruned to the density asked for with ERK shares
    begin    dense; plain federated averaging from there

The bytes are those of `packing`; what an export saves where a pruned channel is dead is left out. FedTiny's authors
compare with hand-made networks of two or three layers; a narrower copy leaves nothing to taste.
"""

from __future__ import annotations

from dataclasses import replace

from fedtiny_export.errors import UsageError

from fedtiny_train.methods import Method, Setting
from fedtiny_train.methods.fedavg import begin
from fedtiny_train.models import blocks, build, prunable
from fedtiny_train.packing import dense_width, model_bytes


def network(setting: Setting) -> Setting:
    """Return the facts of the small network; refuse a size that not even a width of 1 has."""
    asked, density = setting.spec, setting.config.train.density
    limit = model_bytes(asked, density, setting.config.run.seed)
    width = dense_width(asked, limit, asked.width)
    if not width:
        least = model_bytes(replace(asked, width=1), 1.0)
        raise UsageError(
            f"{asked.name} of width {asked.width} at density {density} packs to {limit:,} bytes, and even its dense "
            f"network of width 1 has {least:,}; use a greater --density or --width"
        )
    config = replace(setting.config, train=replace(setting.config.train, density=1.0))
    spec = replace(asked, width=width)
    model = build(spec)
    weights = {name: weight.numel() for name, weight in prunable(model).items()}
    return Setting(config, spec, weights, frozenset(), tuple(blocks(model)))


METHOD = Method(begin, network=network)
