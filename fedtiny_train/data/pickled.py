"""Reading the pickles that CIFAR is handed out as, without unpickling them.

A pickle is a program, and a module that runs it can be made to run anything. Here `pickletools` only takes it
apart, and this file carries out the few instructions that build texts, whole numbers, lists, dictionaries and
arrays of bytes. No name in a file is ever looked up or imported: five of them are compared with text.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.untrusted import guarded

from fedtiny_train.data.official import check_size

Bytes = npt.NDArray[np.uint8]
MAX_BYTES = 200_000_000  # CIFAR-100's training file has about 155 million
MAX_STEPS = 300_000  # and takes about 200,000 instructions
MAX_AXES = 4
RECONSTRUCT, NDARRAY, DTYPE, ENCODE = "reconstruct", "ndarray", "dtype", "encode"
NAMES = {
    "numpy.core.multiarray _reconstruct": RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": RECONSTRUCT,
    "numpy ndarray": NDARRAY,
    "numpy dtype": DTYPE,
    "_codecs encode": ENCODE,  # how Python 3 writes bytes in the format of Python 2
}


@dataclass(frozen=True, slots=True)
class _Name:
    """One of `NAMES`."""

    role: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a list of operands begins."""


@dataclass(slots=True)
class _Array:
    """An array between its creation and its content, which are two instructions."""

    values: Bytes | None = None


@dataclass(frozen=True, slots=True)
class _Machine:
    """What a pickle works on."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def take(self, kind: type) -> Any:
        """Pop a value of a type."""
        value = self.stack.pop()
        if type(value) is not kind:
            raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
        return value

    def take_to_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        values = []
        while type(value := self.stack.pop()) is not _Mark:
            values.append(value)
        return values[::-1]


def read(path: Path) -> dict[str, Any]:
    """Return the dictionary that a pickle holds: texts, numbers, lists, and arrays of bytes."""
    check_size(path, MAX_BYTES)

    def run() -> dict[str, Any]:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in names, all refused anyway
            machine = _Machine()
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > MAX_STEPS:
                    raise ValueError(f"more than {MAX_STEPS:,} instructions")
                if opcode.name == "STOP":
                    break
                if opcode.name not in STEPS:
                    raise ValueError(f"the instruction {opcode.name} has no place in it")
                STEPS[opcode.name](machine, argument)
            content = machine.take(dict)
        return {key: value.values if type(value) is _Array else value for key, value in content.items()}

    return guarded(path, "a pickle of texts, numbers and byte arrays", run)


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _remember(machine: _Machine, argument: Any) -> None:
    # MEMOIZE has no argument: it counts for itself.
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _recall(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[argument])


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, argument: Any) -> None:
        machine.stack.append(tuple(machine.stack.pop() for _ in range(count))[::-1])

    return step


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.take(list)
    target.extend(values)
    machine.stack.append(target)


def _set(machine: _Machine, values: list[Any]) -> None:
    target = machine.take(dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        text = key.decode("latin-1") if type(key) is bytes else key
        if type(text) is not str:
            raise ValueError(f"a {type(key).__name__} as a key")
        target[text] = value
    machine.stack.append(target)


def _name(machine: _Machine, argument: Any) -> None:
    if argument is None:  # STACK_GLOBAL
        last, first = machine.take(str), machine.take(str)
        argument = f"{first} {last}"
    if argument not in NAMES:
        raise ValueError(f"it asks for {argument[:60]!r}")
    machine.stack.append(_Name(NAMES[argument]))


def _call(machine: _Machine, argument: Any) -> None:
    arguments = machine.take(tuple)
    role = machine.take(_Name).role
    if role == RECONSTRUCT:
        machine.stack.append(_Array())
    elif role == DTYPE and arguments and arguments[0] in ("u1", b"u1"):
        machine.stack.append(_Name("u1"))
    elif role == ENCODE and len(arguments) == 2 and type(arguments[0]) is str and arguments[1] == "latin1":
        machine.stack.append(arguments[0].encode("latin-1"))
    else:
        raise ValueError(f"it calls {role} with what is not an array of bytes")


def _build(machine: _Machine, argument: Any) -> None:
    state = machine.take(tuple)
    target = machine.stack[-1]
    if type(target) is _Array:
        target.values = _array(state)
    elif target != _Name("u1"):  # a byte has no order, so the state of its type says nothing
        raise ValueError(f"it sets the state of a {type(target).__name__}")


def _array(state: tuple[Any, ...]) -> Bytes:
    _, shape, kind, columns_first, content = state
    data = content.encode("latin-1") if type(content) is str else content
    if kind != _Name("u1") or type(data) is not bytes or type(columns_first) is not bool:
        raise ValueError("it holds an array of something else than bytes")
    sizes = type(shape) is tuple and len(shape) <= MAX_AXES and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or math.prod(shape) != len(data):
        raise ValueError(f"it holds an array whose shape does not fit its {len(data):,} bytes")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if columns_first else "C")


STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _recall),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _name),
    "MARK": lambda machine, argument: machine.stack.append(_Mark()),
    "NONE": lambda machine, argument: machine.stack.append(None),
    "NEWTRUE": lambda machine, argument: machine.stack.append(True),
    "NEWFALSE": lambda machine, argument: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, argument: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, argument: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, argument: machine.stack.append(()),
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.take_to_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda machine, argument: _extend(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, argument: _extend(machine, machine.take_to_mark()),
    "SETITEM": lambda machine, argument: _set(machine, [machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, argument: _set(machine, machine.take_to_mark()),
    "REDUCE": _call,
    "BUILD": _build,
}
