"""A network of the user's own: `module:function`, imported from the current folder or from what is installed.

`function(shape, classes)` gets the shape of one sample, channels first, and returns an nn.Module of raw inputs
and logits. It is Python code that the user runs, so it may do anything; what it returns is checked.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fedtiny_export.errors import FedtinyError, UsageError, nearest
from torch import Tensor, fx, nn

from fedtiny_train.models.layers import Add
from fedtiny_train.models.rewrite import rewrite
from fedtiny_train.seeds import rng


def user_network(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Import a user's function, call it, and return its network as named layers."""
    with _current_folder_importable():
        function = _find(name)
        model = _carefully(
            f"model {name}: {name.split(':')[1]}{(shape, classes)}", lambda: _call(function, shape, classes)
        )
        if not isinstance(model, nn.Module):
            raise FedtinyError(f"model {name} returns a {type(model).__name__}; it must return an nn.Module")
        named: fx.GraphModule = _carefully(f"model {name}", lambda: rewrite(model))
        with torch.no_grad():
            _check_outputs(name, model, named, shape, classes)
    return named.train()


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _carefully(what: str, code: Callable[[], Any]) -> Any:
    """Run a user's code; turn whatever it raises into one line."""
    try:
        return code()
    except FedtinyError as error:
        raise FedtinyError(f"{what}: {error}") from None
    except fx.proxy.TraceError as error:
        raise FedtinyError(
            f"{what}: its forward decides by what a tensor holds ({_first_line(error)}); write it without if and loops"
        ) from None
    except (Exception, SystemExit) as error:
        raise FedtinyError(f"{what} fails with {_first_line(error)}") from None


def _find(name: str) -> Callable[..., Any]:
    place, _, wanted = name.partition(":")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise FedtinyError(f"model {name}: importing {place} fails with {_first_line(error)}") from None
        raise UsageError(
            f"model {name}: there is no module {error.name} in the current folder or among what is installed"
        ) from None
    except (Exception, SystemExit) as error:
        raise FedtinyError(f"model {name}: importing {place} fails with {_first_line(error)}") from None
    function = getattr(module, wanted, None)
    if not callable(function):
        hint = nearest(wanted, [item for item in vars(module) if not item.startswith("_")])
        raise UsageError(f"model {name}: {place} has no function {wanted}{hint}")
    return function  # type: ignore[no-any-return]


def _call(function: Callable[..., Any], shape: tuple[int, ...], classes: int) -> Any:
    # Weights are drawn anew by the trainer; whatever else a function draws must be the same in every process.
    torch.manual_seed(int(rng(0, "user network").integers(2**63)))
    return function(shape, classes)


def _check_outputs(name: str, model: nn.Module, named: fx.GraphModule, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a network whose layers do not fit each other or the data, or that computes more than its layers do."""
    if not any(isinstance(module, nn.Conv2d | nn.Linear) for module in named.modules()):
        raise FedtinyError(f"model {name} has no convolution or linear layer, so there is nothing to train or prune")
    probe = torch.from_numpy(rng(0, "probe").normal(0, 1, (2, *shape))).float()
    model.eval()
    named.eval()
    found = _run(name, named, probe)
    if tuple(found.shape) != (2, classes):
        raise FedtinyError(
            f"model {name} returns shape {tuple(found.shape[1:])} for a sample of shape {shape}; "
            f"it must return {classes} logits"
        )
    wanted = _carefully(f"model {name}", lambda: model(probe.clone()))
    if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise FedtinyError(
            f"model {name}: its forward computes something else than its layers one after the other; it may depend on "
            "self.training, or change a tensor in place that is used again"
        )


def _run(name: str, named: fx.GraphModule, probe: Tensor) -> Tensor:
    """Run the layers one after the other, so that a shape that does not fit is told by its layer."""
    values: dict[fx.Node, Tensor] = {}
    for node in named.graph.nodes:
        if node.op == "placeholder":
            values[node] = probe
        elif node.op == "call_module":
            given = [values[source] for source in node.args]
            layer = named.get_submodule(str(node.target))
            shapes = " and ".join(str(tuple(value.shape[1:])) for value in given)
            if isinstance(layer, nn.Linear | nn.BatchNorm1d) and given[0].dim() != 2:
                raise FedtinyError(f"model {name}: {node.target} gets features of shape {shapes}; flatten them first")
            if isinstance(layer, Add) and given[0].shape != given[1].shape:
                raise FedtinyError(f"model {name}: {node.target} adds {shapes}; both must have one shape")
            call: Callable[[], Tensor] = lambda layer=layer, given=given: layer(*given)  # type: ignore[misc]  # noqa: E731
            values[node] = _carefully(f"model {name}: {node.target} on a sample of shape {shapes}", call)
    output = next(node for node in named.graph.nodes if node.op == "output").args[0]
    return values[output]
