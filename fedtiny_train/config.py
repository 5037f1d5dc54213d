"""The one tree of options: a field here is a TOML key and a command-line flag of the same name.

It reads, checks and writes configurations. It imports neither torch nor numpy, so that `--help` answers at
once, and it knows nothing of what the options do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from fedtiny_export.errors import UsageError, nearest
from fedtiny_export.untrusted import guarded, read_text

T = TypeVar("T")
Scalar = bool | int | float | str
# What an option without a limit of its own may be: TOML's whole numbers, and what training's float32 can hold.
LARGEST = {int: 2**63 - 1, float: 3e38}

# each method and the module of fedtiny_train.methods it lives in
METHODS = {
    "fedtiny": "fedtiny",
    "fedpack": "fedpack",
    "random": "random_mask",
    "erk": "erk",
    "fedavg": "fedavg",
    "rigl": "rigl",
    "magnitude": "magnitude",
    "feddst": "feddst",
    "prunefl": "prunefl",
    "lotteryfl": "lotteryfl",
    "snip": "snip",
    "synflow": "synflow",
    "fl-pqsu": "fl_pqsu",
    "fedmef": "fedmef",
    "adp": "adp",
    "fedavg-small": "small",
}
# The networks, and the width that each has if none is given. `auto` is one of two that agree on it.
WIDTHS = {
    "auto": 8,
    "resnet8": 8,
    "mlp": 8,
    "resnet18": 64,
    "vgg11": 64,
    "mobilenetv1": 8,
    "mobilenetv2": 32,
    "dscnn": 64,
    "cnn": 32,
}
MODELS = tuple(WIDTHS)
DATASETS = ("digits", "cifar10", "cifar100", "svhn", "cinic10", "mnist", "fashion-mnist", "speech-commands")
LATER = {"engine": ("flower",), "device": ("cuda",)}
FAULTS = ("dropout", "slow", "corrupt", "shape", "nan", "huge")


def option(
    default: T,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    free: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    recorded: bool = True,
) -> T:
    """Declare one option: its default, its help text and the values it may take.

    `recorded=False` marks an option that says how a run is carried out, never what comes out of it; it is
    left out of the run folder's config.toml, whose bytes depend on the result alone. A text that contains
    `free` may be something else than one of the choices.
    """
    facts = {
        "help": text,
        "choices": choices,
        "free": free,
        "low": low,
        "high": high,
        "above": above,
        "recorded": recorded,
    }
    return field(default=default, metadata=facts)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which data, and how it is spread over the clients."""

    data: str = option(
        "digits",
        "digits (bundled); a set in data_dir as its authors hand it out: cifar10, cifar100, svhn, cinic10 (valid is "
        "left out), mnist, fashion-mnist, speech-commands (12 classes, MFCC); a FILE.npz with x_train y_train x_test "
        "y_test; or a FOLDER of class/image.png, jpg or bmp, or of train/class/... and test/class/... (without them "
        "every fifth image is test)",
    )
    data_dir: str = option("", "folder that known sets and relative data files are looked up in")
    clients: int = option(10, "number of clients; with natural clients, 0 keeps them all", low=0)
    partition: str = option("dirichlet:0.5", "iid, dirichlet:ALPHA, shards:PER_CLIENT or natural")
    public: str = option(
        "holdout:100", "data to pre-train on: holdout:N takes N training samples from the clients; or none"
    )
    train_samples: int = option(
        0, "train on N samples only, drawn by the seed with the classes in proportion; 0 is all", low=0
    )
    test_samples: int = option(0, "test on N samples only, evenly spaced in the order of the set; 0 is all", low=0)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The network."""

    model: str = option(
        "auto",
        "auto is resnet8 for images, mlp for feature vectors; or a network of your own, MODULE:FUNCTION: "
        "function(shape, classes) returns an nn.Module",
        choices=MODELS,
        free=":",
    )
    width: int = option(
        0,
        "channels of the first layer; all others follow; 0 is the network's own: "
        + ", ".join(f"{width} {name}" for name, width in WIDTHS.items() if name != "auto")
        + " (mobilenetv1 8 is its multiplier of 0.25, mobilenetv2 32 of 1)",
        low=0,
        high=1024,
    )
    norm: str = option(
        "batch",
        "batch norm by the statistics of each batch, by the running ones (running: small or one-sided clients), "
        "or none, with normalised weights instead (scaled: FedMef's)",
        choices=("batch", "running", "scaled"),
    )
    activation_pruning: float = option(
        0.0,
        "share of each layer's inputs that training forgets after the forward pass, the smallest first (FedMef's); "
        "the gradients of the weights are then estimates",
        low=0,
        high=1,
    )


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Federated training, the same for every method."""

    method: str = option("fedtiny", "what decides which weights live", choices=tuple(METHODS))
    density: float = option(
        0.0, "kept weights / prunable weights; 0 is the method's own: 0.1, for fedavg 1, for adp 0.49", low=0, high=1
    )
    rounds: int = option(100, "rounds of federated training", low=1)
    local_epochs: int = option(2, "passes of a client over its data in a round", low=1)
    participation: float = option(1.0, "share of the clients that take part in a round", above=0, high=1)
    batch: int = option(32, "samples a step; 1 needs another norm than batch", low=1)
    lr: float = option(0.1, "learning rate of the first round", above=0)
    lr_final: float = option(0.02, "learning rate of the last round as a share of the first (cosine)", low=0, high=1)
    momentum: float = option(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = option(1e-4, "weight decay of SGD", low=0)
    pretrain_epochs: int = option(20, "passes of the server over the public data before round 1", low=0)
    pretrain_batch: int = option(10, "samples a step of pre-training", low=2)
    tune_epochs: int = option(
        5, "passes over the public data under a new mask, before any client sees it; the paper has none: 0", low=0
    )
    first_dense: bool = option(True, "leave a first convolution unpruned (it counts as kept all the same)")
    depthwise_dense: bool = option(True, "leave depthwise convolutions unpruned (they count as kept all the same)")
    recalibrate: int = option(3, "passes that renew the batch-norm statistics after the last round; 0 is off", low=0)


@dataclass(frozen=True, slots=True)
class PruningOptions:
    """What the methods that move weights during training share."""

    adjust_every: int = option(0, "rounds between adjustments; 0 is the method's own share of all rounds", low=0)
    adjust_until: int = option(0, "last round that may adjust; 0 is the method's own share of all rounds", low=0)
    adjust_rate: float = option(0.3, "share of a layer's live weights that the first swap moves", low=0, high=1)
    scale_by_norm: bool = option(
        False, "weigh gradients by the batch-norm deviation, so that dead filters do not take all growth"
    )
    row_floor: int = option(
        2,
        "weights each class row of the last layer keeps first, as far as its share goes; the papers have none: 0",
        low=0,
    )


@dataclass(frozen=True, slots=True)
class FedTinyOptions:
    """FedTiny alone: adaptive batch-norm selection, then progressive pruning."""

    selection: bool = option(True, "choose the first mask by adaptive batch-norm selection")
    progressive: bool = option(True, "grow and prune during training")
    pool: int = option(0, "candidate masks; 0 is max(5, 0.1 / density)", low=0)
    warmup_rounds: int = option(0, "dense federated rounds before the selection", low=0)
    adaptation_passes: int = option(10, "forward passes that adapt the batch norm of a candidate", low=1)
    granularity: str = option("block", "what is adjusted at a time", choices=("entire", "block", "layer"))
    order: str = option("backward", "from the output to the input, or the other way", choices=("backward", "forward"))


@dataclass(frozen=True, slots=True)
class FedPackOptions:
    """FedPack alone: a network that thins out while it trains."""

    start_density: float = option(0.0, "density of round 1; 0 is max(0.1, 4 * density)", low=0, high=1)
    class_floor: int = option(3, "weights each class row of the last layer keeps", low=0)
    server_momentum: float = option(0.0, "momentum of the server's steps", low=0, high=0.99)
    average_last: float = option(0.0, "share of the rounds, the last ones, whose weights are averaged", low=0, high=1)
    clear_dead_ends: bool = option(True, "drop first the weights that no path from input to output uses")
    global_share: float = option(0.0, "part of the kept weights that all layers compete for", low=0, high=1)


@dataclass(frozen=True, slots=True)
class PruneFLOptions:
    """PruneFL alone: dense gradients."""

    adjust_all: bool = option(False, "move weights of first layer, shortcuts and classifier too")


@dataclass(frozen=True, slots=True)
class LotteryFLOptions:
    """LotteryFL alone: dense at first, thinned out in steps."""

    rewind: bool = option(False, "after each step the weights that are left begin again from their first values")


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """SNIP and SynFlow: pruning by a score before training."""

    score_steps: int = option(5, "steps from dense to the density; SynFlow's paper has 100, SNIP's 1", low=1)
    score_schedule: str = option("linear", "how the density falls from step to step", choices=("linear", "exponential"))
    score_scope: str = option(
        "layer", "the same density in each layer, or a competition of all (the papers)", choices=("layer", "global")
    )


@dataclass(frozen=True, slots=True)
class FedMefOptions:
    """FedMef alone: weights are emptied before they are pruned."""

    fedmef_rate: float = option(0.4, "share of a layer's live weights that the first swap moves", low=0, high=1)
    extrusion: bool = option(True, "press the weights about to be pruned towards zero before they are")
    extrusion_weight: float = option(
        1e-2, "weight of their squares in the loss; 1e-2 and 1e-4 are both in public implementations", low=0
    )


@dataclass(frozen=True, slots=True)
class FlPqsuOptions:
    """FL-PQSU alone: quantised exchange, selective upload."""

    exchange_bits: int = option(8, "bits of each value that server and clients exchange: 8 or 32", low=8, high=32)
    selective_upload: bool = option(True, "a client uploads only if its loss is below that of its last upload")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the server accepts from clients that fail, and how it combines the rest."""

    quorum: float = option(
        0.5, "share of the invited clients that must answer well; below it a round changes nothing", low=0, high=1
    )
    patience: int = option(5, "rounds without a quorum, in a row, after which the run stops", low=1)
    max_value: float = option(1e6, "greatest absolute value in an answer; one with a greater is refused", above=0)
    clip_norm: float = option(
        0.0, "greatest L2 norm of what a client changes in a round; a longer update is shortened; 0 is off", low=0
    )
    aggregate: str = option(
        "mean", "mean (weighted by samples), median, or trimmed:SHARE (without that share at either end)"
    )
    simulate_faults: str = option(
        "", "make clients fail by chance, such as dropout=0.3,slow=0.1,corrupt=0.1,shape=0.05,nan=0.05,huge=0.05"
    )


@dataclass(frozen=True, slots=True)
class AdpOptions:
    """Adaptive dynamic pruning alone: channels gated in every sample, or small weights zeroed after every epoch."""

    gates: str = option(
        "shared", "gates are averaged like weights, or stay with each client (personal)", choices=("shared", "personal")
    )
    gate_client: int = option(
        -1,
        "with personal gates, the client whose gates the exported network has; -1 is the one with most samples",
        low=-1,
    )
    threshold: float = option(
        0.0,
        "above 0 there are no gates; weights of convolutions up to it become 0 after every epoch (FedDP: 1e-3)",
        low=0,
    )


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the run is carried out."""

    seed: int = option(0, "seed of everything random", low=0)
    engine: str = option("local", "where clients run", choices=("local",), recorded=False)
    workers: int = option(1, "processes that clients run in; the result does not depend on it", low=1, recorded=False)
    device: str = option("auto", "what computes; auto is cpu", choices=("auto", "cpu"))
    precision: str = option(
        "fp32", "arithmetic of training; bf16 is faster where the CPU has it, and rounds", choices=("fp32", "bf16")
    )


@dataclass(frozen=True, slots=True)
class Config:
    """One whole run."""

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    pruning: PruningOptions = field(default_factory=PruningOptions)
    fedtiny: FedTinyOptions = field(default_factory=FedTinyOptions)
    fedpack: FedPackOptions = field(default_factory=FedPackOptions)
    prunefl: PruneFLOptions = field(default_factory=PruneFLOptions)
    lotteryfl: LotteryFLOptions = field(default_factory=LotteryFLOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    flpqsu: FlPqsuOptions = field(default_factory=FlPqsuOptions)
    fedmef: FedMefOptions = field(default_factory=FedMefOptions)
    adp: AdpOptions = field(default_factory=AdpOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    run: RunOptions = field(default_factory=RunOptions)


def sections() -> Iterator[tuple[str, type]]:
    """Yield each section's name and its dataclass."""
    for part in dataclasses.fields(Config):
        yield part.name, cast(type, part.default_factory)


def options() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield (section, field) for every option of the tree."""
    for name, section in sections():
        for item in dataclasses.fields(section):
            yield name, item


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
        if value in LATER.get(item.name, ()):
            raise ValueError(
                f"{item.name} {value} is not available in this version; use {' or '.join(facts['choices'])}"
            )
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
    if kind == "holdout":
        _check_number("public", kind, value, 1, whole=True)
    elif config.data.public != "none":
        raise ValueError(f"unknown public data {config.data.public!r}; known: holdout:N, none")
    if config.data.clients == 0 and split_spec(config.data.partition)[0] != "natural":
        raise ValueError("clients is 0; only the natural partition knows its own number of clients")
    if config.train.batch == 1 and config.model.norm == "batch":
        raise ValueError("batch is 1, and batch norm needs two samples; use --norm running or scaled, or --batch 2")
    _check_server(config.server)
    if config.train.method == "fedavg" and config.train.density not in (0.0, 1.0):
        raise ValueError(
            f"density is {config.train.density}, but fedavg keeps every weight; "
            "leave density out, or use --method fedtiny or random"
        )
    if config.train.method == "adp":
        _check_adp(config)


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
    density = config.train.density or own.get(config.train.method, 0.1)
    width = config.model.width or WIDTHS.get(config.model.model, 0)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=width),
        train=dataclasses.replace(config.train, density=density),
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
