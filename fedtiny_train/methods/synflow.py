"""SynFlow (Tanaka et al., NeurIPS 2020): keep the weights that carry the most flow; no data is needed.

    R       the sum of the outputs for an input of ones, every weight, bias and batch-norm parameter replaced by
            its absolute value, batch norm with its statistics
    score   |w * dR/dw| under the mask so far; what is pruned stays pruned
    begin   n steps; after step i the density is 1 - (1 - d) i / n or d^(i / n), by layer or over all layers

Five linear steps by layer are what FedTiny's authors compare with; the paper has 100 exponential ones over all
layers (`score_steps` 100, `score_schedule` exponential, `score_scope` global). Two things differ from their code,
for one reason: a shift downwards could close a ReLU, and then a whole layer scores 0. The ones stand for the
input once it is normalised, and the running means count as 0. Computed in float64, as theirs: flow grows by layer.
"""

from __future__ import annotations

import numpy as np
import torch

from fedtiny_train import models
from fedtiny_train.methods import Masks, Method, Services, Setting
from fedtiny_train.methods.scoring import Scores, scored_masks
from fedtiny_train.models import Arrays, ModelSpec
from fedtiny_train.server import State


def linearised(tensors: Arrays) -> Arrays:
    """Return the state of the network without signs and without anything that shifts downwards."""
    found = {name: np.abs(array) for name, array in tensors.items()}
    found |= {name: np.zeros_like(array) for name, array in tensors.items() if name.endswith("running_mean")}
    return found | {"center.mean": np.zeros((), np.float32), "scale.inv_std": np.ones((), np.float32)}


def flow(spec: ModelSpec, tensors: Arrays) -> Scores:
    """Return |w * dR/dw| of every prunable weight of a masked state."""
    model = models.build(spec).double()
    models.load(model, linearised(tensors))
    model.eval()
    model(torch.ones(1, *spec.shape, dtype=torch.float64)).sum().backward()
    return {
        name: np.abs((weight.detach() * weight.grad).numpy())
        for name, weight in models.prunable(model).items()
        if weight.grad is not None
    }


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under the weights that carry the most flow."""

    def score(masks: Masks) -> Scores:
        found = flow(setting.spec, state.with_masks(masks).tensors)
        # A live weight without any flow still goes before one that is pruned.
        return {name: np.where(masks[name], found[name], -1.0) for name in setting.maskable}

    return services.tune(state.with_masks(scored_masks(setting, state, score)))


METHOD = Method(begin)
