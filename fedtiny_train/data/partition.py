"""Who gets which sample: iid, dirichlet:ALPHA, shards:PER_CLIENT, natural.

Each function returns one array of sample indices per client; every sample goes to exactly one client, and no
client is left empty.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

from fedtiny_train.config import split_spec

Indices = npt.NDArray[np.int64]
LEAST_SAMPLES = 10
TRIES = 1000


def split(
    spec: str, y: Indices, clients: int, natural: Indices | None, generator: np.random.Generator
) -> list[Indices]:
    """Deal the samples with labels `y` to clients."""
    kind, value = split_spec(spec)
    if kind == "natural":
        return by_owner(natural, clients, generator)
    if clients > len(y):
        raise FedtinyError(f"{clients} clients cannot share {len(y)} training samples; use fewer clients")
    if kind == "iid":
        return [np.sort(part) for part in np.array_split(generator.permutation(len(y)), clients)]
    if kind == "shards":
        return by_shards(y, clients, int(value), generator)
    return by_dirichlet(y, clients, float(value), generator)


def by_dirichlet(y: Indices, clients: int, alpha: float, generator: np.random.Generator) -> list[Indices]:
    """Skew the labels: FedML's hetero partition, as FedTiny uses it.

    Each class is dealt in proportions drawn from Dir(alpha); a client that already holds its even share gets
    no more, and the whole is redrawn until everyone has 10 samples. That never ends for many clients with
    little data, so the least is at most half of an even share, and after 1,000 draws samples are moved.
    """
    least = max(1, min(LEAST_SAMPLES, len(y) // (2 * clients)))
    parts: list[list[int]] = []
    for _ in range(TRIES):
        parts = _draw_dirichlet(y, clients, alpha, generator)
        if min(len(part) for part in parts) >= least:
            break
    for part in parts:
        while len(part) < least:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def _draw_dirichlet(y: Indices, clients: int, alpha: float, generator: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(y):
        indices = generator.permutation(np.flatnonzero(y == label))
        shares = generator.dirichlet(np.full(clients, alpha))
        shares = shares * np.array([len(part) < len(y) / clients for part in parts])
        if not shares.sum() > 0:  # all that is left went to clients that are full: deal this class evenly
            shares = np.ones(clients)
        cuts = (np.cumsum(shares / shares.sum()) * len(indices)).astype(np.int64)[:-1]
        for part, piece in zip(parts, np.split(indices, cuts), strict=True):
            part.extend(piece.tolist())
    return parts


def by_shards(y: Indices, clients: int, per_client: int, generator: np.random.Generator) -> list[Indices]:
    """Sort by label, cut into equal shards and give each client `per_client` of them at random."""
    pieces = clients * per_client
    if pieces > len(y):
        raise FedtinyError(f"{clients} clients x {per_client} shards is more than the {len(y)} training samples")
    shards = np.array_split(np.argsort(y, kind="stable"), pieces)
    order = generator.permutation(pieces).reshape(clients, per_client)
    return [np.sort(np.concatenate([shards[i] for i in row])) for row in order]


def by_owner(owner: Indices | None, clients: int, generator: np.random.Generator) -> list[Indices]:
    """Give each sample to its owner; those without one are dealt out at random. `clients` 0 keeps all owners.

    With fewer clients than owners, the first ones in order of their number take part.
    """
    if owner is None:
        raise FedtinyError("the natural partition needs client_train in the data file; use dirichlet:0.5 or iid")
    parts = [np.flatnonzero(owner == who) for who in owners(owner, clients)]
    stray = np.array_split(generator.permutation(np.flatnonzero(owner < 0)), len(parts))
    return [np.sort(np.concatenate([part, more])) for part, more in zip(parts, stray, strict=True)]


def owners(owner: Indices, clients: int) -> Indices:
    """Return which owners take part, in the order of the clients."""
    found = np.unique(owner[owner >= 0])
    if not len(found):
        raise FedtinyError("no sample has an owner: client_train is negative throughout")
    if clients > len(found):
        raise FedtinyError(f"the data has {len(found)} natural clients, not {clients}; use --clients 0 for all")
    return found[:clients] if clients else found
