"""Data as the user gave it, and how it is dealt out to clients.

A `Dataset` holds raw samples, channels last; a `Federation` holds what each party sees, in the layout of the
network (channels first, float32), not normalised: that is the network's first step. Nothing here trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError, UsageError, nearest

from fedtiny_train.config import split_spec
from fedtiny_train.data import cifar, cinic10, digits, idx, images, npz, partition, public, speech_commands, svhn
from fedtiny_train.data.dataset import Dataset, limited
from fedtiny_train.options import DataOptions
from fedtiny_train.seeds import rng

Samples = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# Each reader is given the folder to look in.
READERS: Mapping[str, Callable[[Path], Dataset]] = {
    "digits": lambda root: digits.read(),
    "cifar10": cifar.read_cifar10,
    "cifar100": cifar.read_cifar100,
    "svhn": svhn.read,
    "cinic10": cinic10.read,
    "mnist": idx.read_mnist,
    "fashion-mnist": idx.read_fashion_mnist,
    "speech-commands": speech_commands.read,
}


@dataclass(frozen=True, slots=True)
class Shard:
    """What one client holds."""

    client: int
    x: Samples
    y: Labels


@dataclass(frozen=True, slots=True)
class Federation:
    """Who holds what: the clients' private data, the server's public data (may be empty) and its test set."""

    shards: tuple[Shard, ...]
    public: Shard
    test: Shard
    test_client: Labels | None


def load(options: DataOptions, seed: int = 0) -> Dataset:
    """Read the data set that was asked for, or as much of it as was asked for."""
    dataset = _read(options)
    if options.public.endswith(".npz"):
        dataset = public.added(dataset, Path(options.data_dir) / options.public)
    return limited(dataset, options.train_samples, options.test_samples, rng(seed, "subset"))


def _read(options: DataOptions) -> Dataset:
    if options.data in READERS:
        return READERS[options.data](Path(options.data_dir))
    path = Path(options.data_dir) / options.data
    if path.is_dir():
        return images.read(path)
    if path.suffix != ".npz":
        hint = nearest(options.data, READERS)
        raise UsageError(f"unknown data set {options.data!r}{hint}; known: {', '.join(READERS)}, FILE.npz, FOLDER")
    if not path.is_file():
        raise FedtinyError(f"data file {path} does not exist")
    return npz.read(path)


def to_network(x: npt.NDArray[Any]) -> Samples:
    """Return samples as the network takes them: float32, a channel axis first."""
    x = x.astype(np.float32)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        x = x.transpose(0, 3, 1, 2)
    # A copy, because a view with an axis of one has arbitrary strides there, torch takes them as a hint of
    # the memory layout, and another layout adds in another order: a worker's copy would give other bytes.
    return np.array(x, order="C")


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of everything in a data set, so that a resumed run can tell whether it changed."""
    digest = hashlib.sha256()
    known = (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test, dataset.client_train)
    for array in (*known, dataset.x_public, dataset.y_public):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def hold_out(y: Labels, wanted: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `wanted` indices, the classes in turn, so that a small public set has some of each."""
    queues = [generator.permutation(np.flatnonzero(y == c)).tolist() for c in np.unique(y)]
    picked: list[int] = []
    while len(picked) < wanted and any(queues):
        picked += [queue.pop() for queue in queues if queue][: wanted - len(picked)]
    return np.sort(np.array(picked, dtype=np.int64))


def deal(dataset: Dataset, options: DataOptions, seed: int) -> Federation:
    """Take a public holdout out of the training split and deal the rest to the clients."""
    kind, value = split_spec(options.public)
    count = int(value) if kind == "holdout" and not options.public.endswith(".npz") else 0
    if count > len(dataset.y_train) // 2:
        raise FedtinyError(
            f"public holdout:{count} is more than half of the {len(dataset.y_train)} training samples; "
            f"at most holdout:{len(dataset.y_train) // 2}"
        )
    held = hold_out(dataset.y_train, count, rng(seed, "public"))
    private = np.setdiff1d(np.arange(len(dataset.y_train)), held)
    natural = None if dataset.client_train is None else dataset.client_train[private]
    parts = partition.split(
        options.partition, dataset.y_train[private], options.clients, natural, rng(seed, "partition")
    )
    # One part at a time, since the whole set as float32 beside its parts would need its memory twice.
    shards = tuple(_shard(k, dataset.x_train, dataset.y_train, private[part]) for k, part in enumerate(parts))
    test = Shard(-1, to_network(dataset.x_test), dataset.y_test)
    given = _shard(-1, dataset.x_train, dataset.y_train, held)
    if dataset.x_public is not None and dataset.y_public is not None:
        given = Shard(-1, to_network(dataset.x_public), dataset.y_public)
    return Federation(shards, given, test, _test_clients(dataset, options, natural))


def _test_clients(dataset: Dataset, options: DataOptions, natural: Labels | None) -> Labels | None:
    """Return the number of the client that owns each test sample, -1 where none does; None without natural ones."""
    if natural is None or dataset.client_test is None or options.partition != "natural":
        return None
    owners = partition.owners(natural, options.clients)
    place = np.minimum(np.searchsorted(owners, dataset.client_test), len(owners) - 1)
    return np.where(owners[place] == dataset.client_test, place, -1)


def _shard(client: int, x: npt.NDArray[Any], y: Labels, chosen: npt.NDArray[np.int64]) -> Shard:
    return Shard(client, to_network(x[chosen]), y[chosen])
