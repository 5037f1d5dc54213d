"""The forward function of a user's module as named layers: every tensor gets a name, and export knows every layer.

Operations that are a layer in other words (`x + y`, `torch.relu`, `x.flatten(1)`, `x.mean((2, 3))`) become that
layer. What computes anything else is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedtiny_export.errors import FedtinyError
from torch import fx, nn

from fedtiny_train.models.graph import LEAVES
from fedtiny_train.models.layers import Add, Center, Scale

RESERVED = ("input", "logits", "center", "scale")
LONGEST = 200  # characters of a name, which travels with a prefix in at most 255 bytes
KNOWN = (
    "known are Conv2d, Linear, BatchNorm1d, BatchNorm2d, ReLU, ReLU6, AdaptiveAvgPool2d(1), AvgPool2d, MaxPool2d, "
    "Flatten, Dropout, Identity, and in forward x + y, relu, flatten(1), mean((2, 3))"
)
INSTEAD = {
    "softmax": "leave it out: the loss has it, and the network returns logits",
    "log_softmax": "leave it out: the loss has it, and the network returns logits",
    "Softmax": "leave it out: the loss has it, and the network returns logits",
    "LogSoftmax": "leave it out: the loss has it, and the network returns logits",
    "conv2d": "use nn.Conv2d",
    "linear": "use nn.Linear",
    "batch_norm": "use nn.BatchNorm2d",
    "LazyConv2d": "use nn.Conv2d",
    "LazyLinear": "use nn.Linear",
}


def unknown(name: str) -> FedtinyError:
    """Return the refusal of an operation or a layer, with what to use instead."""
    return FedtinyError(f"{name} is not known; {INSTEAD.get(name, KNOWN)}")


@dataclass(frozen=True, slots=True)
class Layers:
    """What an operation is: layers one after the other, and what the first of them takes. None: the tensor itself."""

    inputs: tuple[Any, ...]
    modules: tuple[nn.Module, ...]
    changes_input: bool = False


def _add(x: Any, other: Any, *, alpha: int = 1) -> Layers:
    if not isinstance(x, fx.Node) or not isinstance(other, fx.Node) or alpha != 1:
        raise FedtinyError("an addition of anything but two tensors is not known; use a bias, or x + y")
    return Layers((x, other), (Add(),))


def _relu(x: Any, inplace: bool = False) -> Layers:
    return Layers((x,), (nn.ReLU(),), inplace)


def _relu6(x: Any, inplace: bool = False) -> Layers:
    return Layers((x,), (nn.ReLU6(),), inplace)


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Layers:
    return Layers((x,), (nn.Flatten(start_dim, end_dim),))


def _reshape(x: Any, *sides: Any) -> Layers:
    wanted = tuple(sides[0]) if len(sides) == 1 and isinstance(sides[0], tuple | list) else sides
    if len(wanted) != 2 or wanted[1] != -1 or not _is_batch_size(wanted[0]):
        raise FedtinyError("a view or reshape other than x.view(x.size(0), -1) is not known; use x.flatten(1)")
    return Layers((x,), (nn.Flatten(),))


def _is_batch_size(side: Any) -> bool:
    """Return whether a value is x.size(0), x.size()[0] or x.shape[0]."""
    if not isinstance(side, fx.Node):
        return False
    if side.op == "call_method" and side.target == "size":
        return side.args[1:] == (0,)
    if getattr(side.target, "__name__", "") != "getitem" or side.args[1] != 0:
        return False
    whole = side.args[0]
    by_attribute = isinstance(whole, fx.Node) and whole.target is getattr and whole.args[1] == "shape"
    return by_attribute or (isinstance(whole, fx.Node) and whole.target == "size" and len(whole.args) == 1)


def _mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: None = None) -> Layers:
    sides = sorted(side % 4 for side in dim) if isinstance(dim, tuple | list) else []
    if sides != [2, 3] or dtype is not None:
        raise FedtinyError("a mean over anything but the image is not known; use x.mean((2, 3))")
    return Layers((x,), (nn.AdaptiveAvgPool2d(1),) if keepdim else (nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def _adaptive_avg_pool2d(x: Any, output_size: Any) -> Layers:
    return Layers((x,), (nn.AdaptiveAvgPool2d(output_size),))


def _max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Layers:
    return Layers((x,), (nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode),))


def _avg_pool2d(x: Any, kernel_size: Any, *rest: Any, **more: Any) -> Layers:
    return Layers((x,), (nn.AvgPool2d(kernel_size, *rest, **more),))


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Layers:
    return Layers((x,), (nn.Dropout(p),) if training else (), inplace)


OPERATIONS: Mapping[str, Callable[..., Layers]] = {
    "add": _add,
    "add_": lambda x, other, *, alpha=1: Layers(*_parts(_add(x, other, alpha=alpha)), True),
    "iadd": lambda x, other: Layers(*_parts(_add(x, other)), True),
    "relu": _relu,
    "relu_": lambda x: _relu(x, True),
    "relu6": _relu6,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "mean": _mean,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "dropout": _dropout,
}


def _parts(layers: Layers) -> tuple[tuple[Any, ...], tuple[nn.Module, ...]]:
    return layers.inputs, layers.modules


class _Tracer(fx.Tracer):
    """Stops at the layers we know by their very type (a subclass may compute anything) and at all of torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LEAVES or super().is_leaf_module(m, module_qualified_name)


def rewrite(model: nn.Module) -> fx.GraphModule:
    """Return a network of named layers that computes what a user's module computes, its input normalised first."""
    graph = _Tracer().trace(model)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise FedtinyError(f"its forward takes {len(inputs)} tensors; it must take one, the raw input")
    modules: dict[str, nn.Module] = {}
    taken = {name for name, _ in model.named_modules()} | set(RESERVED)
    for node in list(graph.nodes):
        layers = _layers_of(node, model)
        if layers is None:
            continue
        _check_in_place(node, layers)
        _put(graph, node, layers, modules, taken)
    _drop_what_nothing_reads(graph)
    _refuse_the_rest(graph)
    _normalise_input(graph, inputs[0], modules)
    modules = {path: module for path, module in modules.items() if any(n.target == path for n in graph.nodes)}
    _check_names(graph, modules)
    _check_sharing(modules)
    graph.lint()
    return fx.GraphModule(modules, graph)


def _layers_of(node: fx.Node, model: nn.Module) -> Layers | None:
    """Return the layers of a node, or None where it is none: an input, the output, a size."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) is nn.Identity:
            return Layers(node.args, ())
        if type(module) not in LEAVES:
            raise unknown(type(module).__name__)
        if node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
            raise FedtinyError(f"layer {node.target} takes more than tensors; give it one tensor")
        return Layers(node.args, (module,), bool(getattr(module, "inplace", False)))
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if name in ("size", "getattr", "getitem"):
        return None
    if name not in OPERATIONS:
        raise unknown(name)
    try:
        return OPERATIONS[name](*node.args, **node.kwargs)
    except TypeError as error:
        raise FedtinyError(
            f"{name} is called in a way that is not known ({error}); use the layer of torch.nn"
        ) from None


def _check_in_place(node: fx.Node, layers: Layers) -> None:
    """Refuse to change a tensor that something else reads: with a name of its own it would stay as it was."""
    source = layers.inputs[0]
    if layers.changes_input and len(source.users) > 1:
        raise FedtinyError(f"{node.name} changes a tensor in place that is used again; use inplace=False")


def _put(graph: fx.Graph, node: fx.Node, layers: Layers, modules: dict[str, nn.Module], taken: set[str]) -> None:
    """Put layers in a node's place. A layer keeps its path; one that is used again, or is new, gets the node's name."""
    own = str(node.target) if node.op == "call_module" and str(node.target) not in modules else None
    last: Any = layers.inputs[0]
    for index, module in enumerate(layers.modules):
        path = own or _free(node.name if index == 0 else f"{node.name}_{type(module).__name__.lower()}", taken)
        if own is None and list(module.parameters()):
            raise FedtinyError(f"layer {node.target} is used twice; a layer with weights can be used once: make two")
        _check_layer(path, module)
        modules[path] = _fresh(module)
        with graph.inserting_before(node):
            last = graph.call_module(path, layers.inputs if index == 0 else (last,))
    node.replace_all_uses_with(last)
    graph.erase_node(node)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _fresh(module: nn.Module) -> nn.Module:
    """Return a layer that changes nothing in place, so that every tensor keeps the values of its name."""
    if isinstance(module, nn.Dropout):
        return nn.Dropout(module.p)
    if isinstance(module, nn.ReLU6):
        return nn.ReLU6()
    return nn.ReLU() if isinstance(module, nn.ReLU) else module


def _wrong_norm(norm: Any) -> str | bool:
    if not norm.affine or not norm.track_running_stats or norm.momentum is None:
        return "affine or track_running_stats switched off, or without momentum"
    return False


# Settings of known layers that no device computes: what is wrong, or nothing.
WRONG: Mapping[type[nn.Module], Callable[[Any], str | bool]] = {
    nn.Conv2d: lambda m: m.padding_mode != "zeros" and "padding_mode other than zeros",
    nn.BatchNorm1d: _wrong_norm,
    nn.BatchNorm2d: _wrong_norm,
    nn.AdaptiveAvgPool2d: lambda m: m.output_size not in (1, (1, 1)) and "output_size other than 1",
    nn.AvgPool2d: lambda m: bool(m.ceil_mode or m.divisor_override) and "ceil_mode or divisor_override",
    nn.MaxPool2d: lambda m: bool(m.ceil_mode or m.return_indices) and "ceil_mode or return_indices",
    nn.Flatten: lambda m: (m.start_dim, m.end_dim) != (1, -1) and "dimensions other than all from 1 on",
}


def _check_layer(path: str, module: nn.Module) -> None:
    wrong = WRONG.get(type(module))
    if wrong is not None and (what := wrong(module)):
        raise FedtinyError(f"{path} is a {type(module).__name__} with {what}, which is not known; leave that out")


def _drop_what_nothing_reads(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _refuse_the_rest(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "get_attr":
            raise FedtinyError(f"its forward reads {node.target} itself; a parameter must be in a layer that is known")
        if node.op in ("call_function", "call_method"):
            raise FedtinyError(f"its forward computes with sizes ({node.name}); use x.flatten(1)")


def _normalise_input(graph: fx.Graph, source: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Put Center and Scale in front, unless the module has them, by these names."""
    own = {path: type(module) for path, module in modules.items() if isinstance(module, Center | Scale)}
    if own:
        if own != {"center": Center, "scale": Scale}:
            raise FedtinyError("a network with a Center or a Scale needs both, as self.center and self.scale")
        return
    users = list(source.users)
    with graph.inserting_after(source):
        center = graph.call_module("center", (source,))
    with graph.inserting_after(center):
        scale = graph.call_module("scale", (center,))
    for user in users:
        user.replace_input_with(source, scale)
    for name, kind in (("center", Center), ("scale", Scale)):
        if name in modules or any(path.startswith(f"{name}.") for path in modules):
            raise FedtinyError(f"a layer is called {name}, as the normalisation of the input is; rename it")
        modules[name] = kind()


def _check_names(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise FedtinyError("its forward returns something other than one tensor; return the logits")
    for path in modules:
        if not re.fullmatch(r"[A-Za-z0-9_.]+", path) or "running_" in path or len(path) > LONGEST:
            raise FedtinyError(
                f"a layer is called {path[:60]!r}; use letters, digits and _, not running_, "
                f"and at most {LONGEST} characters"
            )
        if path == "input" or (path == "logits" and output.target != path):
            raise FedtinyError(f"a layer is called {path}, as a tensor of every network is; rename it")


def _check_sharing(modules: Mapping[str, nn.Module]) -> None:
    seen: dict[int, str] = {}
    for path, module in modules.items():
        for parameter in module.parameters():
            if (other := seen.setdefault(id(parameter), path)) != path:
                raise FedtinyError(f"{path} and {other} share a parameter; give each its own")
