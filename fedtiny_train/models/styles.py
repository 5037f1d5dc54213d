"""Another style for a network that is already there: other normalisation, activation pruning, masks.

The networks are written once, plainly, with batch norm; `restyle` exchanges layers of the built module, so that
every network, also a user's own, can have every style. Names of weights stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from fedtiny_export.errors import FedtinyError
from torch import fx, nn

from fedtiny_train.masks import Array, Mask
from fedtiny_train.models.graph import traced
from fedtiny_train.models.layers import parts
from fedtiny_train.models.norms import RunningNorm1d, RunningNorm2d, normalised
from fedtiny_train.models.sparse import SignReLU, SignReLU6, SparseConv2d, SparseLinear


def restyle(model: nn.Module, norm: str, drop: float) -> nn.Module:
    """Return the network with its batch norms as `norm` says, and forgetting the share `drop` of activations."""
    scaled: set[str] = set()
    if norm == "running":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                model.set_submodule(name, _running(module))
    elif norm == "scaled":
        model, scaled = _without_norms(model)
    for name, module in list(model.named_modules()):
        if (exchanged := _exchanged(module, name in scaled, drop)) is not None:
            model.set_submodule(name, exchanged)
    return model


def _running(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> RunningNorm1d | RunningNorm2d:
    kind = RunningNorm2d if isinstance(norm, nn.BatchNorm2d) else RunningNorm1d
    made = kind(norm.num_features, norm.eps)
    made.load_state_dict(norm.state_dict())
    return made


def _exchanged(module: nn.Module, scaled: bool, drop: float) -> nn.Module | None:
    """Return what takes a module's place, or nothing if it stays."""
    if isinstance(module, nn.Conv2d) and (scaled or drop):
        return SparseConv2d(module, scaled, drop)
    if isinstance(module, nn.Linear) and (scaled or drop):
        return SparseLinear(module, scaled, drop)
    if isinstance(module, nn.ReLU6) and drop:
        return SignReLU6()
    if isinstance(module, nn.ReLU) and drop:
        return SignReLU()
    return None


def _without_norms(model: nn.Module) -> tuple[nn.Module, set[str]]:
    """Take every batch norm out of the network; return it with the names of the layers to normalise instead.

    These are all convolutions, and the linear layers that had a batch norm behind them. A filter of a single
    weight has no variance and stays as it is.
    """
    graph = traced(model)
    layers = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    wanted = {node for node, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    for node, layer in layers.items():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            source = node.args[0]
            behind = isinstance(source, fx.Node) and isinstance(layers.get(source), nn.Conv2d | nn.Linear)
            if not behind or len(source.users) > 1:
                raise FedtinyError(
                    f"norm scaled normalises the weights before a batch norm, and {node.target} does not stand alone "
                    "behind a convolution or a linear layer; use --norm running or batch"
                )
            wanted.add(source)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    names = {str(node.target) for node in wanted if _fan_in(layers[node]) > 1}
    return fx.GraphModule(model, graph), names


def _fan_in(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight[0].numel()


def set_masks(model: nn.Module, masks: Mapping[str, Mask]) -> None:
    """Tell the layers that normalise their weights which positions live; all of them where no mask is given."""
    for name, module in parts(model):
        if isinstance(module, SparseConv2d | SparseLinear):
            mask = masks.get(f"{name}.weight")
            if mask is None:
                module.mask.fill_(True)
            else:
                module.mask.copy_(torch.from_numpy(mask))


def bake(model: nn.Module, state: Mapping[str, Array], masks: Mapping[str, Mask]) -> dict[str, Array]:
    """Return a state in which normalised weights are the plain ones that the network computes with."""
    plain = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, SparseConv2d | SparseLinear) and module.gain is not None:
            weight, gain = torch.from_numpy(state[f"{name}.weight"]), torch.from_numpy(plain.pop(f"{name}.gain"))
            mask = masks.get(f"{name}.weight")
            live = torch.ones_like(weight, dtype=torch.bool) if mask is None else torch.from_numpy(mask)
            plain[f"{name}.weight"] = normalised(weight, live, gain).numpy()
    return plain
