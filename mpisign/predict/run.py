"""``mpisign predict`` from its settings to its report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from mpisign.bench import report, runner
from mpisign.bench.collectives.via import Via
from mpisign.bench.progress import progress
from mpisign.bench.record import Record
from mpisign.communicator import Communicator
from mpisign.experiments.errors import SettingsError
from mpisign.predict import kernels
from mpisign.predict.bench_files import Found, read_results
from mpisign.predict.equations import Compute, Network, StepTime
from mpisign.predict.methods import FP16, FP32, METHODS, Cluster, PredictedMethod, Rates, predict
from mpisign.predict.models import ModelShapes, model_of
from mpisign.predict.reasons import Verdict, break_even, verdict
from mpisign.predict.script import measure_script
from mpisign.predict.settings import PredictSettings
from mpisign.predict.shown import SHOWN
from mpisign.predict.wire import Wire, measure_loopback, measure_wire

_BANDWIDTHS = (125e6, 1.25e9, 12.5e9)  # where none is given: a range to look at
_TIMEOUT = 120.0
_BACKWARD = 2 / 3  # of a step: two products for each one of the forward pass
_POINTS, _MARGIN = 33, 3.0  # of a curve; how far it goes beyond the bandwidths asked for
_COMPARED = tuple(m for m in METHODS if m.votes or m.name in (FP16, FP32))


@dataclass(frozen=True)
class PredictedRow:
    """One method on one cluster, in seconds and bytes; ``faster``: than fp16 on it, times."""

    ranks: int
    bandwidth: float
    method: str
    step: StepTime
    faster: float


@dataclass(frozen=True)
class BreakEven:
    """The bandwidth from which on votes do not pay; None if they do at any, 0.0 if at none."""

    ranks: int
    bandwidth: float | None


@dataclass(frozen=True)
class Curve:
    """One method's seconds over bandwidths, for the picture."""

    ranks: int
    method: str
    bandwidths: list[float]
    seconds: list[float]


@dataclass(kw_only=True)
class PredictRecord(Record):
    """One run. ``sources``: where each measured quantity comes from, by its name."""

    parameters: int = 0
    model_name: str = ""
    compute: Compute = Compute()
    rates: Rates | None = None
    remote: Wire | None = None
    local: Wire | None = None
    sources: dict[str, str] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    break_evens: list[BreakEven] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    @property
    def mark(self) -> str:
        return self.settings.MARK  # type: ignore[no-any-return]

    def cluster(self, ranks: int, bandwidth: float) -> Cluster:
        """The cluster of so many ranks and such links."""
        assert self.rates is not None and self.remote is not None
        near = (self.local.latency, self.local.bandwidth) if self.local else (0.0, math.inf)
        far = self.remote.latency, bandwidth, self.settings.ranks_per_node, self.remote.per_message
        network = Network(*far, *near, self.remote.share)
        return Cluster(ranks, network, self.rates, self.settings.powersgd_rank)

    def steps(
        self, model: ModelShapes, ranks: int, bandwidth: float,
        methods: tuple[PredictedMethod, ...] = METHODS,
    ) -> Mapping[str, StepTime]:  # fmt: skip
        """Every method's step."""
        cluster = self.cluster(ranks, bandwidth)
        return predict(model, cluster, self.compute, self.settings.overlap, methods)


def run(settings: PredictSettings, command: str) -> int:
    """Measures, predicts and reports; the exit status. Collective in a job.

    Raises:
        SettingsError: what the person can put right, of a process without a launcher.
    """
    record = PredictRecord(name=settings.NAME, command=command, settings=settings)
    if settings.started:
        return runner.run(
            settings, record, SHOWN, _TIMEOUT, lambda opened: _fill(record, opened[0])
        )
    report.check(record, SHOWN)
    return report.run(record, SHOWN, lambda: _fill(record, None))


def _fill(record: PredictRecord, via: Via | None) -> None:
    s: PredictSettings = record.settings
    first = via is None or via.rank == 0
    steps = kernels.STEPS + 4
    with progress(steps, shown=first) as begin:
        model = _model(record, via, begin)
        found = _agreed(via, lambda: read_results(s.results, max(s.ranks)))
        _measure_network(record, found, via, begin)
        _measure_rates(record, model, found, via, begin)
        begin("prediction")
        if first:
            _predict(record, model)


def _agreed(via: Via | None, action: Any) -> Any:
    return action() if via is None else via.agreed(action)


def _model(record: PredictRecord, via: Via | None, begin: kernels.Begin) -> ModelShapes:
    """The model, and what its step computes."""
    s: PredictSettings = record.settings
    begin("the script" if s.script else "the model")
    if s.script is not None:
        measured = _agreed(via, lambda: measure_script(s.script or ""))
        model, step, backward = measured.model, measured.step, measured.backward
        record.sources["step without communication"] = f"three steps of {s.script}"
    else:
        model = model_of("resnet50" if s.model is None else s.model)
        step = (s.compute_ms or 0.0) / 1e3
        backward = _BACKWARD * step
        if s.compute_ms is not None:
            record.sources["step without communication"] = "--compute-ms"
        else:
            record.notes.append(
                "Without --compute-ms or --script a step is its exchange alone: the model's own "
                "time comes on top, and --overlap has nothing to hide an exchange behind."
            )
    if s.backward_ms is not None:
        backward = s.backward_ms / 1e3
        if backward > step:
            raise SettingsError(
                f"--backward-ms {s.backward_ms:g}: longer than the step, {1e3 * step:g} ms"
            )
    record.compute = Compute(step, backward, s.gamma)
    record.parameters, record.model_name = model.parameters, model.name
    return model


def _measure_network(
    record: PredictRecord, found: Found, via: Via | None, begin: kernels.Begin
) -> None:
    """``record.remote`` and ``record.local``; what is given wins, then files, then measurements."""
    s: PredictSettings = record.settings
    begin("latency and bandwidth")
    remote, local = found.wires.get("remote"), found.wires.get("local")
    if via is not None and (remote is None or local is None):
        comm = Communicator(via.argument())
        sizes = {len(node) for node in comm.engine.nodes or [[]]}
        far = measure_wire(comm.engine, via, True) if len(sizes) == 1 else None
        near = measure_wire(comm.engine, via, False) if len(sizes) == 1 else None
        remote, local = remote or far, local or near
        comm.free()
    if local is None and (remote is None or s.ranks_per_node > 1):
        local = measure_loopback()
    if remote is None:
        assert local is not None  # measured above
        # What memory between ranks of a node can do says nothing about links.
        remote = replace(local, bandwidth=0.0, share=1.0)
        if s.latency is None:
            record.notes.append(
                f"The latency between nodes is that of {local.where}: a real network adds its own. "
                "Give --latency, or start this between nodes with your launcher."
            )
    record.sources["latency"] = remote.where
    record.sources["bandwidth"] = remote.where
    if s.latency is not None:
        remote = replace(remote, latency=s.latency)
        record.sources["latency"] = "--latency"
    record.remote, record.local = remote, local


def _measure_rates(
    record: PredictRecord, model: ModelShapes, found: Found, via: Via | None, begin: kernels.Begin
) -> None:
    s: PredictSettings = record.settings
    group = None
    if via is not None and via.name == "torch":
        import torch.distributed as dist

        groups = [dist.new_group([rank]) for rank in range(via.size)]
        group = groups[via.rank]
    device = _agreed(via, lambda: kernels.device_of(s.device))
    own = kernels.measure_rates(model, max(s.ranks), device, s.powersgd_rank, begin, group)
    names = [name for name, value in asdict(own).items() if value is not None]
    values = np.array([getattr(own, name) for name in names])
    if via is not None:  # all ranks at once, as in a step; the slowest rank counts
        values = via.gather(values).max(axis=0)
    measured = dict(zip(names, values.tolist(), strict=True))
    where = "measured here" if via is None else f"measured by {via.size} ranks at once"
    record.sources |= {name: found.sources.get(name, where) for name in names}
    record.rates = replace(own, **{**measured, **found.rates})
    if own.powersgd is None:
        record.notes.append(
            "PowerSGD is left out: its work is measured with torch's own hook. Casts and sums are "
            "NumPy's, which are slow in fp16."
        )
    if s.device == "cpu":
        record.notes.append(
            "Gradients are in host memory, and what computes is this machine's CPU. For gradients "
            "on GPUs run this on such a node with --device cuda."
        )


def _predict(record: PredictRecord, model: ModelShapes) -> None:
    s: PredictSettings = record.settings
    assert record.remote is not None
    bandwidths = set(s.bandwidth or _BANDWIDTHS)
    if not s.bandwidth and record.remote.bandwidth:
        bandwidths.add(float(f"{record.remote.bandwidth:.3g}"))
    for ranks in s.ranks:
        for bandwidth in sorted(bandwidths):
            steps = record.steps(model, ranks, bandwidth)
            for name, step in steps.items():
                faster = steps[FP16].seconds / step.seconds
                record.rows.append(PredictedRow(ranks, bandwidth, name, step, faster))
            record.verdicts.append(verdict(ranks, bandwidth, steps, record.compute, s.overlap))
        even = break_even(lambda b, p=ranks: record.steps(model, p, b, _COMPARED))  # type: ignore[misc]
        record.break_evens.append(BreakEven(ranks, even))
    if s.plot is not None:
        record.curves = list(_curves(record, model, sorted(bandwidths)))


def _curves(record: PredictRecord, model: ModelShapes, bandwidths: list[float]) -> Iterator[Curve]:
    """For the picture: bandwidths from below the lowest to beyond the highest."""
    low, high = bandwidths[0] / _MARGIN, bandwidths[-1] * _MARGIN
    axis = np.geomspace(low, high, _POINTS).tolist()
    for ranks in record.settings.ranks:
        at = [record.steps(model, ranks, bandwidth) for bandwidth in axis]
        for name in at[0]:
            yield Curve(ranks, name, axis, [steps[name].seconds for steps in at])
