"""What stays as it is while a run goes on: its configuration, data, engine and costs, and the count of traffic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fedtiny_train import models, trace
from fedtiny_train.activations import held
from fedtiny_train.budget import within
from fedtiny_train.client import LocalSpec
from fedtiny_train.config import fault_rates
from fedtiny_train.cost import Network
from fedtiny_train.data import Federation, deal
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.engine import Engine
from fedtiny_train.engine.faulty import Faulty
from fedtiny_train.engine.local import start
from fedtiny_train.methods import Setting, setting
from fedtiny_train.options import Config
from fedtiny_train.server import Answers, Check, Refusal, ask
from fedtiny_train.wire import Message


@dataclass(slots=True)
class Traffic:
    """The bytes of everything asked in one round, in how many waves, and who was refused."""

    number: int
    waves: int = 0
    up: int = 0
    down: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def add(self, answers: Answers) -> Answers:
        """Count one wave of requests and answers; refused ones cost what they cost."""
        self.waves += 1
        self.up += answers.bytes_up
        self.down += answers.bytes_down
        self.refused += answers.refused
        return answers


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that stays as it is during a run."""

    config: Config
    data_name: str
    class_names: tuple[str, ...]
    setting: Setting
    federation: Federation
    engine: Engine
    network: Network

    @property
    def everyone(self) -> range:
        """Return the numbers of all clients."""
        return range(len(self.federation.shards))

    def ask(
        self,
        traffic: Traffic,
        request: Message,
        check: Check,
        clients: Sequence[int] | None = None,
        kept: Message | None = None,
        own: Mapping[int, bytes] | None = None,
    ) -> Answers:
        """Ask clients (all of them unless named) once and count what it costs."""
        invited = self.everyone if clients is None else clients
        turn, limit = (traffic.number, traffic.waves), self.config.server.max_value
        return traffic.add(ask(self.engine, invited, request, check, kept, own, turn, limit))

    def gather(
        self,
        traffic: Traffic,
        request: Message,
        check: Check,
        clients: Sequence[int] | None = None,
        kept: Message | None = None,
        own: Mapping[int, bytes] | None = None,
    ) -> Answers:
        """Ask outside the rounds: those that did not answer well are asked again, but not for ever.

        What is asked here is asked of all, since it is about all: a statistic of half the clients is another one. In
        the end a quorum has to do.
        """
        options = self.config.server
        found = self.ask(traffic, request, check, clients, kept, own)
        for _ in range(options.patience - 1):
            missing = [k for k in found.invited if k not in found.messages]
            if not missing:
                break
            again = self.ask(traffic, request, check, missing, kept, own)
            found = replace(again, messages={**found.messages, **again.messages}, invited=found.invited)
        if error := found.lack(options.quorum):
            raise type(error)(f"{request.kind}, asked {options.patience} times: {error}")
        return found


def network_of(spec: models.ModelSpec) -> Network:
    """Return what the cost formulas need of a network."""
    model = models.build(spec)
    return Network(trace.macs(model, spec.shape), held(model, spec.shape))


def _started(config: Config, federation: Federation, local: LocalSpec) -> Engine:
    if config.run.engine == "flower":
        from fedtiny_train.engine import flower  # only this engine needs its processes

        return flower.start(federation.shards, local, config.run.workers)
    return start(federation.shards, local, config.run.workers)


@contextmanager
def opened(config: Config, dataset: Dataset) -> Iterator[Run]:
    """Deal the data and start the engine; let go of it at the end."""
    config, spec = within(config, models.choose(config.model, dataset.shape, len(dataset.class_names)))
    facts = setting(config, spec)
    spec = facts.spec  # a method may train another width than the one asked for
    federation = deal(dataset, config.data, config.run.seed)
    options = config.train
    local = LocalSpec(
        spec,
        config.run.seed,
        options.batch,
        options.local_epochs,
        options.momentum,
        options.weight_decay,
        config.run.precision,
    )
    engine = _started(config, federation, local)
    if rates := fault_rates(config.server.simulate_faults):
        engine = Faulty(engine, rates, config.run.seed)
    try:
        yield Run(
            config,
            dataset.name,
            dataset.class_names,
            facts,
            federation,
            engine,
            network_of(spec),
        )
    finally:
        engine.close()
