"""Configurations: read, checked, completed and written. What options there are is `options.py`'s.

It imports neither torch nor numpy, so that `--help` answers at once, and it knows nothing of what the options do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fedtiny_export.errors import UsageError, nearest
from fedtiny_export.untrusted import guarded, read_text

from fedtiny_train.options import IN_BLOCKS, WIDTHS, Config, ModelOptions, ServerOptions, options, sections

Scalar = bool | int | float | str
# What an option without a limit of its own may be: TOML's whole numbers, and what training's float32 can hold.
LARGEST = {int: 2**63 - 1, float: 3e38}
FAULTS = ("dropout", "slow", "corrupt", "shape", "nan", "huge")


def split_spec(text: str) -> tuple[str, str]:
    """Split `kind:value` of a partition or a holdout; the value may be empty."""
    kind, _, value = text.partition(":")
    return kind, value


def fault_rates(text: str) -> dict[str, float]:
    """Read `kind=share,...`: how often a client fails in which way; raise ValueError on anything else."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        kind, _, share = (piece.strip() for piece in part.partition("="))
        if kind not in FAULTS or kind in found:
            what = "comes twice" if kind in found else f"is no fault{nearest(kind, FAULTS)}; known: {', '.join(FAULTS)}"
            raise ValueError(f"simulate_faults: {kind!r} {what}")
        try:
            found[kind] = float(share)
        except ValueError:
            raise ValueError(f"simulate_faults: {kind} needs a share, as in {kind}=0.1, not {share!r}") from None
        if not 0 <= found[kind] <= 1:
            raise ValueError(f"simulate_faults: {kind} is {found[kind]}; it must be between 0 and 1")
    if sum(found.values()) > 1 + 1e-9:
        raise ValueError(f"simulate_faults: the shares add up to {sum(found.values()):g}; they must not exceed 1")
    return found


def trim_share(aggregate: str) -> float:
    """Return the share that `trimmed:SHARE` leaves out at either end; raise ValueError if it has none."""
    _check_number("aggregate", "trimmed", split_spec(aggregate)[1], 0, whole=False)
    if not 0 < (share := float(split_spec(aggregate)[1])) < 0.5:
        raise ValueError(f"aggregate is {aggregate}; the share must be above 0 and below 0.5")
    return share


def _check_server(server: ServerOptions) -> None:
    fault_rates(server.simulate_faults)
    if server.aggregate.startswith("trimmed"):
        trim_share(server.aggregate)
    elif server.aggregate not in (known := ("mean", "median")):
        hint = nearest(server.aggregate, (*known, "trimmed"))
        raise ValueError(f"unknown aggregate {server.aggregate!r}{hint}; known: mean, median, trimmed:SHARE")


def _check_option(item: dataclasses.Field[Any], value: Scalar) -> None:
    facts = item.metadata
    if facts["choices"] and value not in facts["choices"] and not (facts["free"] and facts["free"] in str(value)):
        raise ValueError(
            f"unknown {item.name} {value!r}{nearest(str(value), facts['choices'])}; "
            f"known: {', '.join(facts['choices'])}"
        )
    if isinstance(value, str) and any(c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{item.name} is {value!r}; config.toml cannot hold such a character: rename it")
    if isinstance(value, str | bool):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{item.name} is {value}; it must be a finite number")
    low, high, above = facts["low"], facts["high"] or LARGEST[type(value)], facts["above"]
    if (low is not None and value < low) or (above is not None and value <= above):
        raise ValueError(
            f"{item.name} is {value}; it must be {'above' if low is None else 'at least'} "
            f"{above if low is None else low}"
        )
    if value > high:
        raise ValueError(f"{item.name} is {value}; it must be at most {high}")


def _check_number(name: str, kind: str, text: str, least: float, whole: bool) -> None:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"{name} {kind} needs a number after the colon, not {text!r}") from None
    if not least <= number < float("inf"):
        raise ValueError(f"{name} {kind}:{text} must be at least {least}")


def _check_own_model(options: ModelOptions) -> None:
    place, _, function = options.model.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), function)):
        raise ValueError(f"model {options.model!r} is not MODULE:FUNCTION, as my_net:build is for build in my_net.py")
    if place.endswith(".py"):
        raise ValueError(f"model {options.model!r} names a file; name the module: {place[:-3]}:{function}")
    if options.width:
        raise ValueError(f"width is {options.width}, but {options.model} decides on its own channels; leave width out")


def check(config: Config) -> None:
    """Raise ValueError with one clear line if an option has a value it may not have."""
    for section, item in options():
        _check_option(item, getattr(getattr(config, section), item.name))
    if config.flpqsu.exchange_bits not in (8, 32):
        raise ValueError(f"exchange_bits is {config.flpqsu.exchange_bits}; it must be 8 or 32")
    if ":" in config.model.model:
        _check_own_model(config.model)
    kind, value = split_spec(config.data.partition)
    if kind not in (known := ("iid", "dirichlet", "shards", "natural")):
        raise ValueError(f"unknown partition {kind!r}{nearest(kind, known)}; known: {', '.join(known)}")
    if kind == "dirichlet":
        _check_number("partition", kind, value, 1e-3, whole=False)
    elif kind == "shards":
        _check_number("partition", kind, value, 1, whole=True)
    elif value or ":" in config.data.partition:
        raise ValueError(f"partition {kind} takes no value, but {config.data.partition!r} has one")
    kind, value = split_spec(config.data.public)
    if config.data.public.endswith(".npz"):
        pass  # a file, which is looked at when data is read
    elif kind == "holdout":
        _check_number("public", kind, value, 1, whole=True)
    elif config.data.public != "none":
        raise ValueError(f"unknown public data {config.data.public!r}; known: holdout:N, FILE.npz, none")
    if config.data.clients == 0 and split_spec(config.data.partition)[0] != "natural":
        raise ValueError("clients is 0; only the natural partition knows its own number of clients")
    if config.train.batch == 1 and settle(config).model.norm == "batch":
        raise ValueError("batch is 1, and batch norm needs two samples; use --norm running or scaled, or --batch 2")
    _check_server(config.server)
    _check_budget(config)
    if config.train.method == "fedavg" and config.train.density not in (0.0, 1.0):
        raise ValueError(
            f"density is {config.train.density}, but fedavg keeps every weight; "
            "leave density out, or use --method fedtiny or random"
        )
    if config.train.method == "adp":
        _check_adp(config)
    if config.train.qat and settle(config).model.norm == "scaled":
        raise ValueError(
            "qat rounds the weights that a layer holds, and norm scaled computes with others; use --norm batch"
        )
    if config.train.qat_rounds > config.train.rounds or (config.train.qat_rounds and not config.train.qat):
        raise ValueError("qat_rounds is how many of the rounds qat takes; give --qat, and no more than --rounds")
    if config.pruning.prune_block > 1 and settle(config).train.method not in IN_BLOCKS:
        raise ValueError(
            f"prune_block is {config.pruning.prune_block}, but {config.train.method} moves single weights; "
            f"methods that prune in blocks: {', '.join(IN_BLOCKS)}"
        )
    if config.train.method == "synflow" and config.model.norm == "scaled":
        raise ValueError(
            "synflow scores weights without their signs, and norm scaled takes each filter's mean away, which leaves "
            "nothing of a flow; use --norm batch or running, or --method erk"
        )


def _check_budget(config: Config) -> None:
    options = config.train
    if not options.flash_budget and not options.target:
        return
    if options.flash_budget:
        read_bytes(options.flash_budget)
        if options.target:
            raise ValueError("flash_budget and target both say how large the model may be; leave out one of the two")
    if options.density and (config.model.width or ":" in config.model.model):
        raise ValueError("density and width decide how large the model is; leave out one, or flash_budget and target")
    if options.method in ("fedavg-small", "adp"):
        hint = "; a dense network that fills it is --method fedavg" if options.method == "fedavg-small" else ""
        raise ValueError(f"{options.method} takes no flash_budget and no target: give its width and density{hint}")


def read_bytes(text: str) -> int:
    """Read `24576`, `24K` or `1.5M`; K is 1024. Raise ValueError on anything else."""
    factor = {"K": 1024, "M": 1024**2}.get(text[-1:].upper(), 1)
    try:
        found = float(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        found = 0.0
    if not 1 <= found < 2**40:
        raise ValueError(f"flash_budget is {text!r}; give bytes, as in 24576, 24K or 1.5M")
    return int(found)


def _check_adp(config: Config) -> None:
    if config.adp.threshold and config.train.density not in (0.0, 1.0):
        raise ValueError(
            f"density is {config.train.density}, but with a threshold adp keeps whatever is above it; "
            "leave out one of the two"
        )
    if config.adp.gate_client >= 0 and config.adp.gates == "shared":
        raise ValueError("gate_client names whose gates are exported, and they are shared; add --gates personal")


def settle(config: Config) -> Config:
    """Fill in what an option leaves to the method or the network, so that config.toml says what was run."""
    own = {"fedavg": 1.0, "adp": 1.0 if config.adp.threshold else 0.49}
    budgeted = bool(config.train.flash_budget or config.train.target)
    method = config.train.method if config.train.method != "auto" else "fedpack" if budgeted else "fedtiny"
    density = config.train.density or (0.0 if budgeted else own.get(method, 0.1))
    width = config.model.width or (0 if budgeted else WIDTHS.get(config.model.model, 0))
    norm, dropped = config.model.norm, config.model.activation_pruning
    if norm == "auto":
        norm, dropped = ("scaled", dropped or 0.7) if method == "fedmef" else ("batch", dropped)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=width, norm=norm, activation_pruning=dropped),
        train=dataclasses.replace(config.train, method=method, density=density),
    )


def _convert(item: dataclasses.Field[Any], value: object) -> Scalar:
    kind = type(item.default)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{item.name} must be {wanted}, not {value!r}")
    return cast(Scalar, value)


def merge(config: Config, values: Mapping[str, Mapping[str, object]]) -> Config:
    """Return `config` with the values of each section replaced; raise ValueError on what does not fit."""
    known_sections = dict(sections())
    for name, content in values.items():
        if name not in known_sections:
            home = [f"[{section}] {name}" for section, item in options() if item.name == name]
            hint = f" (it belongs to {home[0]})" if home else nearest(name, known_sections)
            raise ValueError(f"unknown section or key {name!r}{hint}")
        if not isinstance(content, Mapping):
            raise ValueError(f"[{name}] must be a table")  # noqa: TRY004 - a mistake in a file, not in a call
        items = {item.name: item for item in dataclasses.fields(known_sections[name])}
        for key in content:
            if key not in items:
                home = [f"[{section}]" for section, item in options() if item.name == key]
                hint = f" (it belongs to {home[0]})" if home else nearest(key, items)
                raise ValueError(f"unknown key {key!r} in [{name}]{hint}")
        changed = {key: _convert(items[key], value) for key, value in content.items()}
        section = dataclasses.replace(getattr(config, name), **changed)
        config = dataclasses.replace(config, **{name: section})
    return config


def read_toml(path: Path) -> Config:
    """Read and check a configuration file."""
    content = guarded(path, "TOML", lambda: tomllib.loads(read_text(path)))

    def make() -> Config:
        made = merge(Config(), content)
        check(made)
        return made

    return guarded(path, "a usable configuration", make)


def apply_flags(config: Config, flags: Mapping[str, Scalar]) -> Config:
    """Return `config` with the options given on the command line, checked."""
    values: dict[str, dict[str, object]] = {}
    for section, item in options():
        if item.name in flags:
            values.setdefault(section, {})[item.name] = flags[item.name]
    try:
        config = merge(config, values)
        check(config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return config


def recorded(config: Config) -> dict[str, Scalar]:
    """Return by name every option that the result depends on; no two sections share a name."""
    return {
        item.name: getattr(getattr(config, section), item.name)
        for section, item in options()
        if item.metadata["recorded"]
    }


def to_toml(config: Config) -> str:
    """Write the configuration, complete, with each option's meaning beside it."""
    lines = []
    for name, section in sections():
        recorded = [item for item in dataclasses.fields(section) if item.metadata["recorded"]]
        lines.append(f"[{name}]")
        for item in recorded:
            value = getattr(getattr(config, name), item.name)
            text = json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else repr(value)
            lines.append(f"{item.name} = {text}  # {item.metadata['help']}")
        lines.append("")
    return "\n".join(lines)
