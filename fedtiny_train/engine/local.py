"""Clients in this process, or in a small pool of processes that live as long as the run.

Each process computes with one thread, and an answer depends on its order alone, so any number of workers
gives the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from fedtiny_export.errors import FedtinyError

from fedtiny_train import client
from fedtiny_train.client import LocalSpec
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order, Reply


class Inline:
    """All clients one after the other, here."""

    def __init__(self, shards: Sequence[Shard], local: LocalSpec) -> None:
        client.prepare_torch()
        self.shards, self.local = shards, local

    def run(self, orders: Sequence[Order]) -> list[Reply]:
        """Answer one order after the other."""
        return [client.answer(order, self.shards[order.client], self.local) for order in orders]

    def close(self) -> None:
        """Nothing to let go of."""


_here: Inline | None = None


def _begin(shards: Sequence[Shard], local: LocalSpec) -> None:
    global _here
    # Ctrl-C is the parent's to handle; and if the parent is killed, nobody would ever stop the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _here = Inline(shards, local)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(order: Order) -> Reply:
    assert _here is not None
    return _here.run([order])[0]


class Pool:
    """Clients in worker processes, started fresh so that they share no state with this one."""

    def __init__(self, shards: Sequence[Shard], local: LocalSpec, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context, _begin, (tuple(shards), local))

    def run(self, orders: Sequence[Order]) -> list[Reply]:
        """Answer the orders in parallel."""
        try:
            return list(self.pool.map(_answer, orders))
        except BrokenProcessPool:
            raise FedtinyError(
                "a worker process died (out of memory?); use fewer --workers, with --resume if the run folder is there"
            ) from None

    def close(self) -> None:
        """Stop the workers."""
        self.pool.shutdown(cancel_futures=True)


def start(shards: Sequence[Shard], local: LocalSpec, workers: int) -> Inline | Pool:
    """Return the engine for a number of workers; one worker needs no process of its own."""
    workers = min(workers, len(shards))
    return Inline(shards, local) if workers == 1 else Pool(shards, local, workers)
