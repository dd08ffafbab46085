"""Steps of one method on all ranks, timed; bytes on the links; whether replicas are equal."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mpisign.bench.collectives.clock import Clock
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.collectives.via import Via
from mpisign.bench.runner import Watchdog
from mpisign.bench.settings import TrainingSettings
from mpisign.bench.training import names, network
from mpisign.bench.training.build import Training, build, connected
from mpisign.bench.training.names import TrainingMethod
from mpisign.experiments import data, model
from mpisign.experiments.errors import SettingsError
from mpisign.stats import stats

Feed = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Block:
    """Some steps, each in seconds of the slowest rank; all else mean over ranks, of a step.

    ``cpu``: processor time of a rank, all of its threads. ``sent``: counted by mpisign.stats.
    ``counted``: bytes at each node's interface, mean of both directions, headers included, or
    None. ``stages``: seconds in the stages of mpisign.stats.
    """

    seconds: float
    cpu: float
    sent: float
    counted: float | None
    stages: dict[str, float]


class Trainer:
    """Trains models in turns. All is collective, and raises SettingsError on all ranks."""

    def __init__(
        self, control: Via, vias: dict[str, Via | str], nodes: Nodes, settings: TrainingSettings,
        watchdog: Watchdog,
    ) -> None:  # fmt: skip
        self.control, self.nodes, self.settings = control, nodes, settings
        self._vias, self._watchdog = vias, watchdog
        self._clock = Clock(control, nodes, watchdog, settings.time_limit)
        digits = data.digits()
        self._shard = digits.shard(control.rank, control.size)
        self._test = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
        if settings.batch_size > len(self._shard[1]):
            images = f"a rank has {len(self._shard[1])} of the digits"
            raise SettingsError(f"--batch-size {settings.batch_size}: {images}")

    def feed(self, seed: int) -> Feed:
        """This rank's batches, endless."""
        batches = data.batches(
            *self._shard, self.settings.batch_size, seed=seed, rank=self.control.rank
        )
        for images, labels in batches:
            yield torch.from_numpy(images), torch.from_numpy(labels)

    @contextmanager
    def training(
        self, method: TrainingMethod, lr: float, seed: int, parameters: int | None = None
    ) -> Iterator[Training]:
        """A new model and its optimizer, for as long as the block runs."""
        gc.collect()  # the model before
        with ExitStack() as stack:
            with self._watchdog.over(f"{method.name}, its start"):
                via = stack.enter_context(connected(method, self.control, self._vias))
                size = parameters or self.settings.parameters
                net = network.build(size, self.settings.layers, self.settings.init, seed)
                if not self.same(net):
                    raise SettingsError(
                        "ranks start from different parameters: another version of torch?"
                    )
                training = self.control.agreed(lambda: build(method, net, via, lr, seed))
            yield training

    def steps(
        self, training: Training, feed: Feed, count: int, what: str,
        at: tuple[int, int] | None = None,
    ) -> Block:  # fmt: skip
        """``count`` steps. ``at``: the first's number and their total, for the schedule."""
        used = np.zeros(1)

        def call() -> None:
            start = time.process_time()
            for i in range(count):
                if at is not None:
                    lr = training.lr * names.share(at[0] + i, at[1])
                    for group in training.optimizer.param_groups:
                        group["lr"] = lr
                with self._watchdog.over(what):
                    training.step(*next(feed))
            used[0] = time.process_time() - start

        before = [stage.seconds for stage in stats().stages.values()]
        seconds, (sent, _, out, into) = self._clock.timed(call, 1)
        after = [stage.seconds for stage in stats().stages.values()]
        own = np.concatenate([used, np.subtract(after, before)])
        cpu, *stages = self.control.gather(own).mean(axis=0) / count
        counted = (out + into) / 2 / count if self.nodes.interface else None
        named = dict(zip(stats().stages, map(float, stages), strict=True))
        return Block(float(seconds[0]) / count, float(cpu), sent / count, counted, named)

    def accuracy(self, training: Training) -> float:
        """Of the first rank's model, on the digits that are for testing; not timed."""
        found = np.zeros(1)
        if self.control.rank == 0:
            found[0] = model.accuracy(training.net, *self._test)
        return float(self.control.gather(found)[0, 0])

    def identical(self, method: TrainingMethod, training: Training) -> bool | None:
        """``same`` of the model; None where nothing is sent."""
        return self.same(training.net) if method.via else None

    def same(self, net: torch.nn.Module) -> bool:
        """Whether all ranks hold the same parameters, bit for bit."""
        own = np.frombuffer(bytes.fromhex(model.digest(net)), dtype=np.uint8)
        rows = self.control.gather(own)
        return bool((rows == rows[0]).all())
