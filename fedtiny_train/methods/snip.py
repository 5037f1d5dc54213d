"""SNIP (Lee et al., ICLR 2019): keep the weights whose removal would change the loss most, before training.

    score   |w * dL/dw|: w the pre-trained weight, the gradient that of the whole set at once under the mask so far,
            batch norm with its statistics as they are
    begin   n steps; after step i the density is 1 - (1 - d) i / n, by layer or over all layers together

Five steps by layer are what FedTiny's authors compare with; the paper has one step over all layers (`score_steps`
1, `score_scope` global). As in the authors' code a weight that one step pruned may come back in the next. The
set is the server's public data; where there is none, the clients send dense gradients of their development
splits, and the server takes the mean weighted by samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedtiny_train import models
from fedtiny_train.client import dense_gradients
from fedtiny_train.masks import Array
from fedtiny_train.methods import Masks, Method, Services, Setting
from fedtiny_train.methods.scoring import Scores, scored_masks
from fedtiny_train.server import Check, State, average, need, need_shapes
from fedtiny_train.wire import Message


def gradients(setting: Setting, state: State, services: Services) -> Mapping[str, Array]:
    """Return the dense gradients of a masked state, from the public data or from the clients."""
    public = services.public
    if not len(public.y):
        answers = services.ask(state.message("saliency"), saliency_check(state))
        return average(answers.messages, list(setting.sizes))
    model = models.shared(setting.spec)
    models.load(model, state.tensors, state.masks)
    return dense_gradients(model, torch.from_numpy(public.x), torch.from_numpy(public.y))


def saliency_check(state: State) -> Check:
    """Return the check of a client's gradients: finite, dense, one for each prunable weight."""
    shapes = {name: mask.shape for name, mask in state.masks.items()}

    def check(message: Message) -> None:
        need(message, "saliency", ("samples",))
        need_shapes(message, shapes)

    return check


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under the weights that matter most to the loss."""

    def score(masks: Masks) -> Scores:
        found = gradients(setting, state.with_masks(masks), services)
        return {name: np.abs(state.tensors[name] * found[name]) for name in setting.maskable}

    return services.tune(state.with_masks(scored_masks(setting, state, score)))


METHOD = Method(begin)
