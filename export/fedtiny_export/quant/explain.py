"""Where int8 loses: every layer's signal against its noise, and what the layer alone does to the network's answer.

Three numbers that are easily mixed up are kept apart. What has gathered at a layer's output is its own noise and that
of all before it. A layer's own noise is what its int8 arithmetic adds to a float network's values. What that own
noise does to the network's output, with everything else in float, says which layer hurts most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..ftm.cost import nominal_macs
from ..graph import reference
from ..graph.evaluate import Floats, Samples, in_steps, run_float, run_float_node, to_int8
from ..graph.ir import Graph, Node, Op, Tensor

WORK = 4e9  # multiply-accumulates that may be spent


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """Decibels of signal over noise; null where there is no noise at all.

    `gathered_db`: at this output, the int8 network beside the float one. `output_db`: at the network's output, if
    only this operator were int8.
    """

    name: str
    op: str
    gathered_db: float | None
    output_db: float | None


def explain(exact: Graph, coarse: Graph, samples: Samples) -> tuple[LayerNoise, ...]:
    """One row for the input's own rounding and one for each operator, in running order."""
    x = samples.x[: _affordable(exact)]
    whole = _as_float(exact, coarse)
    real, ints = run_float(whole, x), reference.run_all(coarse, to_int8(coarse, x))
    names = [("input", "input", coarse.input), *((n.name, n.op.value, n.output) for n in coarse.nodes)]
    errors: list[Floats] = [_real(ints[coarse.input], coarse.tensors[coarse.input]) - x]
    errors += [_own_error(a, b, coarse, real) for a, b in zip(whole.nodes, coarse.nodes, strict=True)]
    return tuple(
        LayerNoise(
            name,
            op,
            decibels(real[tensor], _real(ints[tensor], coarse.tensors[tensor]) - real[tensor]),
            decibels(real[whole.output], _carried(whole, real, tensor, error) - real[whole.output]),
        )
        for (name, op, tensor), error in zip(names, errors, strict=True)
    )


def worst(rows: tuple[LayerNoise, ...]) -> LayerNoise | None:
    """The row that hurts the network's output most."""
    noisy = [row for row in rows if row.output_db is not None]
    return min(noisy, key=lambda row: row.output_db or 0.0) if noisy else None


def decibels(signal: Floats, noise: Floats) -> float | None:
    """Ten times the logarithm of the powers' ratio; none where nothing is lost or there is no signal."""
    power, lost = float((signal**2).sum()), float((noise**2).sum())
    return round(10.0 * float(np.log10(power / lost)), 2) if power > 0.0 and lost > 0.0 else None


def _affordable(graph: Graph) -> int:
    """Every operator's noise is carried through those behind it: half of the network each time."""
    once = sum(nominal_macs(graph, node) for node in graph.nodes) * (len(graph.nodes) / 2 + 2)
    return int(np.clip(WORK / max(once, 1.0), 2, 100))


def _as_float(exact: Graph, coarse: Graph) -> Graph:
    """The float network with the int8 network's operators: those that only change steps do nothing here."""
    known = {node.name: node for node in exact.nodes}
    nodes = tuple(
        replace(known[node.name], inputs=node.inputs)
        if node.name in known
        else replace(node, op=Op.AFFINE, constants={"scale": np.ones(1), "shift": np.zeros(1)})
        for node in coarse.nodes
    )
    return replace(coarse, nodes=nodes, tensors={n: Tensor(n, t.shape) for n, t in coarse.tensors.items()})


def _real(values: NDArray[np.int8], tensor: Tensor) -> Floats:
    assert tensor.quant is not None
    return np.asarray((values.astype(np.float64) - tensor.quant.zero_point) * tensor.quant.scale)


def _steps(values: Floats, tensor: Tensor) -> NDArray[np.int8]:
    assert tensor.quant is not None
    return in_steps(values, tensor.quant)


def _own_error(exact: Node, coarse: Node, graph: Graph, real: Mapping[str, Floats]) -> Floats:
    """Int8 arithmetic beside float arithmetic, both on the float network's values in int8 steps."""
    steps = {name: _steps(real[name], graph.tensors[name]) for name in coarse.inputs}
    made = _real(reference.run_node(graph, coarse, steps), graph.tensors[coarse.output])
    values = [_real(steps[name], graph.tensors[name]) for name in exact.inputs]
    return made - run_float_node(exact, values).reshape(made.shape)


def _carried(graph: Graph, real: Mapping[str, Floats], name: str, error: Floats) -> Floats:
    """The network's output when one tensor has an error and all else is exact."""
    changed: dict[str, Floats] = {name: np.asarray(real[name] + error)}
    for node in graph.nodes:
        if any(source in changed for source in node.inputs) and node.output not in changed:
            values = [changed.get(source, real[source]) for source in node.inputs]
            changed[node.output] = run_float_node(node, values).reshape(real[node.output].shape)
    return changed.get(graph.output, real[graph.output])
