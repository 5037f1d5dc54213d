"""Clients in this process, or in a small pool of processes that live as long as the run.

Each process computes with one thread, and an answer depends on its order alone, so any number of workers
gives the same bytes. A request goes to each worker once, however many clients it answers for: a worker holds the
last one. Orders go only to workers that wait for them, so that nobody writes to somebody who writes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from fedtiny_export.errors import FedtinyError

from fedtiny_train import client
from fedtiny_train.client import LocalSpec
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order, Reply

SHARES = 8  # orders go out in about as many groups a worker: few messages, and nobody waits long for the last one
Letter = tuple[bytes, bytes]
Job = tuple[int, bytes]


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


def _work(line: Connection) -> None:
    """Answer what comes along the line, until it ends; first of all come the shards and the settings."""
    # Ctrl-C is the parent's to handle; and if the parent is killed, nobody would ever stop the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        here, letter = Inline(*line.recv()), (b"", b"")
        while True:
            news, jobs = line.recv()
            letter = news or letter
            line.send(_answers(here, letter, jobs))
    except (EOFError, OSError):
        return  # the parent hung up


def _answers(here: Inline, letter: Letter, jobs: Sequence[Job]) -> list[Reply] | Exception:
    try:
        return here.run([Order(number, *letter, own) for number, own in jobs])
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # the parent has no other trace of it
        return error


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(slots=True)
class Worker:
    """One process, our end of the line to it, and the letter that it holds."""

    process: BaseProcess
    line: Connection
    letter: Letter = (b"", b"")

    def send(self, orders: Sequence[Order]) -> None:
        """Send orders that share a letter, and the letter unless it is there."""
        letter = (orders[0].request, orders[0].kept)
        news = None if letter == self.letter else letter
        self.line.send((news, [(order.client, order.own) for order in orders]))
        self.letter = letter


@dataclass(slots=True)
class Pool:
    """Clients in worker processes, started fresh so that they share no state with this one."""

    shards: Sequence[Shard]
    workers: list[Worker] = field(default_factory=list)

    def run(self, orders: Sequence[Order]) -> list[Reply]:
        """Answer the orders in parallel, those of the largest clients first."""
        replies: dict[int, Reply] = {}
        try:
            self._carry(orders, deque(self._groups(orders)), replies)
        except (EOFError, OSError):
            raise _died() from None
        return [replies[place] for place in range(len(orders))]

    def _carry(self, orders: Sequence[Order], waiting: deque[list[int]], replies: dict[int, Reply]) -> None:
        idle, busy = list(self.workers), dict[Connection, tuple[Worker, list[int]]]()
        while waiting or busy:
            while waiting and idle:
                worker, group = idle.pop(), waiting.popleft()
                worker.send([orders[place] for place in group])
                busy[worker.line] = (worker, group)
            for line in wait(list(busy)):
                assert isinstance(line, Connection)
                found = line.recv()
                worker, group = busy.pop(line)
                if isinstance(found, Exception):
                    raise found
                replies |= dict(zip(group, found, strict=True))
                idle.append(worker)

    def _groups(self, orders: Sequence[Order]) -> list[list[int]]:
        """Return the places of orders that go out together; those of a group share their letter."""
        places = sorted(range(len(orders)), key=lambda place: -len(self.shards[orders[place].client].y))
        most = max(1, len(orders) // (SHARES * len(self.workers)))
        groups: dict[Letter, list[list[int]]] = {}
        for place in places:
            same = groups.setdefault((orders[place].request, orders[place].kept), [[]])
            if len(same[-1]) == most:
                same.append([])
            same[-1].append(place)
        return [group for same in groups.values() for group in same]

    def close(self) -> None:
        """Stop the workers, whatever they are doing: they hold nothing that is not here as well."""
        for worker in self.workers:
            worker.line.close()
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()


def _died() -> FedtinyError:
    return FedtinyError(
        "a worker process died (out of memory?); use fewer --workers, with --resume if the run folder is there"
    )


def start(shards: Sequence[Shard], local: LocalSpec, workers: int) -> Inline | Pool:
    """Return the engine for a number of workers; one worker needs no process of its own."""
    workers = min(workers, len(shards))
    if workers == 1:
        return Inline(shards, local)
    pool = Pool(shards, [_hired() for _ in range(workers)])
    try:
        for worker in pool.workers:
            worker.line.send((tuple(shards), local))
    except OSError:
        pool.close()
        raise _died() from None
    return pool


def _hired() -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # The shards go along the line: as arguments they would hang us for ever if the process died before it read them.
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # or we would never hear that the worker died
    return Worker(process, ours)
