"""The one tree of options: a field here is a TOML key and a command-line flag of the same name.

It only declares them; `config.py` reads, checks and writes their values. Neither imports torch or numpy, so that
`--help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")

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
# those that can prune blocks of input channels
IN_BLOCKS = ("fedpack", "fedtiny", "rigl", "erk", "random", "magnitude")
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
        "holdout:100",
        "data to pre-train on: holdout:N takes N training samples from the clients; a FILE.npz with x y; or none",
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
        "auto",
        "batch norm by the statistics of each batch, by the running ones (running: small or one-sided clients), "
        "or none, with normalised weights instead (scaled: FedMef's); auto is batch, with method fedmef it is scaled "
        "and activation_pruning 0.7 unless given",
        choices=("auto", "batch", "running", "scaled"),
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

    method: str = option(
        "auto",
        "what decides which weights live; auto is fedpack where flash_budget or target is given, else fedtiny",
        choices=("auto", *METHODS),
    )
    density: float = option(
        0.0, "kept weights / prunable weights; 0 is the method's own: 0.1, for fedavg 1, for adp 0.49", low=0, high=1
    )
    flash_budget: str = option(
        "", "bytes of flash the model may take, as 24576 or 24K: decides on density and width, those that are not given"
    )
    target: str = option("", "board that the model must fit, flash and RAM; decides the same")
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
    qat: bool = option(
        False, "train the last rounds in int8, faked in float, with ranges that the clients find out together"
    )
    qat_rounds: int = option(0, "how many rounds that is; 0 is a fifth of all", low=0)
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
    prune_block: int = option(
        1,
        "neighbouring input channels that are kept or pruned together: 2 makes a model faster where a processor "
        "multiplies in pairs; a layer whose channels cannot be divided so is pruned weight by weight",
        low=1,
        high=8,
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
    weigh_growth: bool = option(True, "weigh gradients by the batch-norm deviation before the greatest grow")
    press: bool = option(False, "press the weights about to be pruned towards zero first (FedMef's extrusion)")
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
    max_value: float = option(1e12, "greatest absolute value in an answer; one with a greater is refused", above=0)
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
    engine: str = option(
        "local",
        "where clients run: local, in this process or its workers; flower, on as many nodes of Flower as workers",
        choices=("local", "flower"),
        recorded=False,
    )
    workers: int = option(1, "processes that clients run in; the result does not depend on it", low=1, recorded=False)
    device: str = option(
        "auto",
        "what computes; auto is a GPU (cuda) where torch sees one and there is one worker",
        choices=("auto", "cpu", "cuda"),
    )
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
