"""Steps of one way on all ranks, timed; what crossed the links; whether replicas agree."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mpisign.bench.errors import BenchError
from mpisign.bench.training import network, rates
from mpisign.bench.training.build import Training, build, connected
from mpisign.bench.training.names import Named
from mpisign.bench.training.settings import Settings
from mpisign.bench.wire.measure import Clock
from mpisign.bench.wire.nodes import Nodes
from mpisign.bench.wire.via import Via
from mpisign.bench.wire.watchdog import Watchdog
from mpisign.stats import stats
from mpisign.training import data, model

Feed = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Block:
    """Some steps, each in seconds of the slowest rank; all else mean over ranks, of a step.

    ``cpu``: processor time of a rank, all of its threads. ``sent``: booked by mpisign.stats.
    ``counted``: bytes at each node's interface, mean of both ways, headers included; None if
    nobody counts. ``stages``: seconds in the stages of mpisign.stats.
    """

    seconds: float
    cpu: float
    sent: float
    counted: float | None
    stages: dict[str, float]


class Trainer:
    """Trains models by turns. Every method is collective, and raises BenchError on all ranks."""

    def __init__(
        self,
        control: Via,
        vias: dict[str, Via | str],
        nodes: Nodes,
        settings: Settings,
        watchdog: Watchdog,
    ) -> None:
        self.control, self.nodes, self.settings = control, nodes, settings
        self._vias, self._watchdog = vias, watchdog
        self._clock = Clock(control, nodes, watchdog, settings.time_limit)
        digits = data.digits()
        self._shard = digits.shard(control.rank, control.size)
        self._test = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
        if settings.batch_size > len(self._shard[1]):
            raise BenchError(
                f"--batch-size {settings.batch_size}: a rank has {len(self._shard[1])} of the "
                "digits"
            )

    def feed(self, seed: int) -> Feed:
        """This rank's batches, without end."""
        batches = data.batches(
            *self._shard, self.settings.batch_size, seed=seed, rank=self.control.rank
        )
        for images, labels in batches:
            yield torch.from_numpy(images), torch.from_numpy(labels)

    @contextmanager
    def training(
        self, way: Named, lr: float, seed: int, parameters: int | None = None
    ) -> Iterator[Training]:
        """A new model, and the way to train it; both are gone after the block."""
        gc.collect()  # the model before
        with ExitStack() as stack:
            with self._watchdog.over(f"{way.name}, its start"):
                via = stack.enter_context(connected(way, self.control, self._vias))
                size = parameters or self.settings.parameters
                net = network.build(size, self.settings.layers, self.settings.init, seed)
                if len(set(self.digests(net))) != 1:
                    raise BenchError("ranks start from different parameters: unlike torch?")
                training = self.control.agreed(lambda: build(way, net, via, lr, seed))
            yield training

    def steps(
        self, training: Training, feed: Feed, count: int, what: str, at: tuple[int, int] | None
    ) -> Block:
        """``count`` steps. ``at``: the first's number and their total, for the schedule."""
        used = np.zeros(1)

        def call() -> None:
            start = time.process_time()
            for i in range(count):
                if at is not None:
                    lr = training.lr * rates.share(at[0] + i, at[1])
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
        return Block(seconds / count, float(cpu), sent / count, counted, named)

    def accuracy(self, training: Training) -> float:
        """Of the first rank's model, on the digits that are for testing; not timed."""
        found = np.zeros(1)
        if self.control.rank == 0:
            found[0] = model.accuracy(training.net, *self._test)
        return float(self.control.gather(found)[0, 0])

    def digests(self, net: torch.nn.Module) -> list[str]:
        """Every rank's SHA-256 of all parameters."""
        own = np.frombuffer(bytes.fromhex(model.digest(net)), dtype=np.uint8)
        return [row.tobytes().hex() for row in self.control.gather(own)]

    def identical(self, way: Named, training: Training) -> bool | None:
        """Whether all ranks hold the same parameters, bit for bit; None where none are sent."""
        return None if not way.via else len(set(self.digests(training.net))) == 1
