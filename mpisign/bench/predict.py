"""``mpisign bench predict``: predictions of ``mpisign predict`` beside measured training steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

import mpisign
from mpisign.bench import runner
from mpisign.bench.collectives import nodes
from mpisign.bench.collectives.run import JobRecord
from mpisign.bench.collectives.via import Via
from mpisign.bench.predict_shown import SHOWN
from mpisign.bench.progress import progress
from mpisign.bench.settings import PredictCheckSettings
from mpisign.bench.table import coordinates
from mpisign.bench.training import network
from mpisign.communicator import Communicator
from mpisign.experiments import data
from mpisign.experiments.errors import SettingsError
from mpisign.predict import kernels
from mpisign.predict.equations import Compute, Network
from mpisign.predict.methods import METHODS, Cluster, Rates, predict
from mpisign.predict.models import ModelShapes
from mpisign.predict.wire import Wire, measure_wire

_WARM = 1  # steps that do not count
_ONE_BUCKET = 1 << 20  # MB
_PLAIN_STEPS = 2  # that torch's hook would send uncompressed
_POWERSGD_RANK = 1
_WITHIN = 0.15

#: A network's name of a vote's algorithm.
_VOTES = {
    "allgather-vote": "allgather",
    "alltoall-vote": "alltoall",
    "hierarchical": "hierarchical",
}


@dataclass(frozen=True)
class PredictedStep:
    """One method at one size: seconds of a step, predicted and measured, of the slowest rank.

    ``none``: the measured step without communication, which the prediction starts from. ``error``:
    why there is no measured step.
    """

    size: int
    method: str
    overlap: bool
    none: float
    predicted: float
    measured: float | None = None
    error: str = ""

    DERIVED = ("off", "within")

    @property
    def off(self) -> float | None:
        """How far the prediction is off, of the measured step; negative: too short."""
        return None if self.measured is None else self.predicted / self.measured - 1

    @property
    def within(self) -> bool | None:
        """Whether it is off by at most 15%."""
        return None if self.off is None else abs(self.off) <= _WITHIN


@dataclass(kw_only=True)
class PredictCheckRecord(JobRecord):
    """One run. ``rates``: by size."""

    remote: Wire | None = None
    local: Wire | None = None
    rates: dict[int, Rates] = field(default_factory=dict)


def run(settings: PredictCheckSettings, command: str) -> int:
    """Measures and reports; 0, or 2 after an error that the user can correct. Collective."""
    torch.set_num_threads(1)
    record = PredictCheckRecord(name=settings.NAME, command=command, settings=settings)

    def work(opened: list[Via]) -> None:
        runner.join(("torch",), opened, settings.hangs)
        via = next(via for via in opened if via.name == "torch")
        record.nodes = nodes.find(via)
        _Check(via, record).run()

    return runner.run(settings, record, SHOWN, settings.hangs, work)


class _Check:
    """All is collective."""

    def __init__(self, via: Via, record: PredictCheckRecord) -> None:
        self.via, self.record, self.settings = via, record, record.settings
        self.watchdog = runner.watchdog(
            via, self.settings.hangs, lambda what: f"mpisign: gave up: {what} hangs"
        )
        self.comm = Communicator(via.argument(), timeout=self.settings.hangs)
        self.alone = [dist.new_group([rank]) for rank in range(via.size)][via.rank]
        shard = data.digits().shard(via.rank, via.size)
        images = shard[0][: self.settings.batch_size]
        labels = shard[1][: self.settings.batch_size]
        self.batch = torch.from_numpy(images), torch.from_numpy(labels)

    def run(self) -> None:
        """Fills the record."""
        s, record, first = self.settings, self.record, self.via.rank == 0
        cases = list(_cases(1 < record.nodes.most < self.via.size))
        with progress(len(s.sizes) * (len(cases) + kernels.STEPS + 1) + 1, shown=first) as begin:
            begin("latency and bandwidth")
            self._wires()
            for size in s.sizes:
                shapes = tuple(tuple(p.shape) for p in self._net(size).parameters())
                model = ModelShapes(f"perceptron of {size:,}", shapes)
                record.rates[size] = self._rates(model, begin)
                cluster = self._cluster(record.rates[size])
                for name, overlap in cases:
                    begin(f"{coordinates(size)} parameters, {name}")
                    record.rows.append(self._row(model, cluster, name, overlap, size))

    def _wires(self) -> None:
        engine = self.comm.engine
        self.record.local = measure_wire(engine, self.via, False)
        self.record.remote = measure_wire(engine, self.via, True) or self.record.local

    def _cluster(self, rates: Rates) -> Cluster:
        remote, local = self.record.remote, self.record.local
        assert remote is not None
        near = (local.latency, local.bandwidth) if local else (0.0, float("inf"))
        far = remote.latency, remote.bandwidth, self.record.nodes.most, remote.per_message
        wire = Network(*far, *near, remote.share)
        message = self.comm.engine.transport.message
        return Cluster(self.via.size, wire, rates, _POWERSGD_RANK, message)

    def _rates(self, model: ModelShapes, begin: Callable[[str], None]) -> Rates:
        """Of all ranks at once; the slowest counts."""
        device = kernels.device_of("cpu")
        self.via.barrier()
        own = kernels.measure_rates(model, self.via.size, device, _POWERSGD_RANK, begin, self.alone)
        names = [f.name for f in fields(Rates)]
        values = self.via.gather(np.array([getattr(own, name) for name in names]))
        return Rates(*np.median(values, axis=0).tolist())

    def _net(self, size: int) -> nn.Module:
        return network.build(size, self.settings.layers, "he", 0)

    def _row(
        self, model: ModelShapes, cluster: Cluster, name: str, overlap: bool, size: int
    ) -> PredictedStep:
        """Steps of a model alone and with the method, in turns; the prediction from the former."""
        nets = self._net(size), self._net(size)
        alone, sgd = (torch.optim.SGD(net.parameters(), lr=1e-4) for net in nets)
        row = PredictedStep(size, name, overlap, 0.0, 0.0)
        what = f"{name}, {coordinates(size)} parameters"
        times: list[float] = []
        backward: list[float] = []
        for p in nets[0].parameters():
            p.register_post_accumulate_grad_hook(lambda p: times.append(time.perf_counter()))

        def plain_step() -> None:
            times.clear()
            self._step(nets[0], alone)
            backward.append(times[-1] - times[0])

        try:
            module = self.via.agreed(lambda: self._built(row, nets[1], sgd))
            steps = plain_step, lambda: self._step(module, sgd)
            none, measured = self._seconds(steps, what)
        except SettingsError as error:
            return replace(row, error=str(error))
        slowest = self.via.gather(np.array([median(backward[_WARM:])])).max()
        compute = Compute(none, float(slowest))
        method = next(m for m in METHODS if m.name == name)
        step = predict(model, cluster, compute, overlap, [method])[name]
        return replace(row, none=none, predicted=step.seconds, measured=measured)

    def _step(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(self.batch[0]), self.batch[1]).backward()
        optimizer.step()

    def _seconds(self, steps: Sequence[Callable[[], object]], what: str) -> list[float]:
        """Median seconds of each of ``steps``, of the slowest rank, in turns."""
        samples: list[list[float]] = [[] for _ in steps]
        for number in range(_WARM + self.settings.repeat):
            for step, own in zip(steps, samples, strict=True):
                self.via.barrier()
                start = time.perf_counter()
                with self.watchdog.over(what):
                    step()
                seconds = np.array([time.perf_counter() - start])
                slowest = float(self.via.gather(seconds).max())
                if number >= _WARM:
                    own.append(slowest)
            if sum(map(sum, samples)) > self.settings.time_limit:
                break
        return [median(own) for own in samples]

    def _built(self, row: PredictedStep, net: nn.Module, sgd: torch.optim.Optimizer) -> nn.Module:
        named = list(net.named_parameters())
        if row.method in _VOTES or row.method == "ef_sign":
            options: dict[str, Any] = {"comm": self.comm, "overlap": row.overlap}
            if row.method == "ef_sign":
                options |= {"compression": "ef_sign", "skip": None}
            else:
                options |= {"compression": "signum", "algorithm": _VOTES[row.method]}
            mpisign.DistributedOptimizer(sgd, named, **options)
            return net
        given: dict[str, Any] = {"init_sync": False, "gradient_as_bucket_view": True}
        if not row.overlap:
            given["bucket_cap_mb"] = _ONE_BUCKET
        ddp = nn.parallel.DistributedDataParallel(net, **given)
        if row.method == "fp16":
            ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        if row.method == "PowerSGD":
            state = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=_POWERSGD_RANK, start_powerSGD_iter=_PLAIN_STEPS
            )
            state.iter = _PLAIN_STEPS  # at once: an uncompressed step would take long
            ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return ddp


def _cases(hierarchical: bool) -> Iterator[tuple[str, bool]]:
    """(method, overlap). PowerSGD in one bucket: in several torch's hook hangs on Gloo."""
    yield "fp32", True
    yield "fp16", True
    yield "PowerSGD", False
    yield "allgather-vote", False
    yield "alltoall-vote", False
    yield "alltoall-vote", True
    if hierarchical:
        yield "hierarchical", False
    yield "ef_sign", False
