"""Measures on this machine what methods compute: seconds per coordinate."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.experiments.errors import SettingsError
from mpisign.predict.methods import Rates
from mpisign.predict.models import ModelShapes

_LENGTH = 1 << 23  # coordinates, at most: beyond any cache
_TALLY_LENGTH, _ROWS = 1 << 21, 64  # of a majority, at most
_MATRICES = 1 << 25  # coordinates that PowerSGD is measured on, at most
_RUNS, _BUDGET = 5, 0.5  # samples; seconds after which there are no more
_PLAIN_STEPS = 2  # the fewest of torch's hook before it compresses

_kept: list[Any] = []

#: Called with what is measured next.
Begin = Callable[[str], None]


@dataclass(frozen=True)
class TimedDevice:
    """Where gradients are: "cpu" or "cuda". ``sync``: waits for what was started."""

    name: str
    sync: Callable[[], object]

    def floats(self, *shape: int) -> Any:
        """Normal float32."""
        if self.name == "cpu":
            return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        import torch

        return torch.randn(shape, device=self.name)

    def seconds(self, call: Callable[[], object]) -> float:
        """Median of a few calls, after one that does not count."""
        call()
        self.sync()
        samples: list[float] = []
        until = time.perf_counter() + _BUDGET
        while len(samples) < _RUNS and (not samples or time.perf_counter() < until):
            start = time.perf_counter()
            call()
            self.sync()
            samples.append(time.perf_counter() - start)
        return median(samples)


def device_of(name: str) -> TimedDevice:
    """The device of a name; SettingsError if it is not here."""
    if name == "cpu":
        return TimedDevice(name, lambda: None)
    try:
        import torch
    except ImportError as error:
        raise SettingsError(f"--device {name} needs torch: {error}") from error
    if not torch.cuda.is_available():
        raise SettingsError(
            f"--device {name}: torch sees no CUDA device here. On a node that has one run mpisign "
            f"bench kernels --device {name} --json FILE; here give --from FILE"
        )
    return TimedDevice(name, torch.cuda.synchronize)


#: What ``measure_rates`` announces.
STEPS = 10


def measure_rates(
    model: ModelShapes, ranks: int, device: TimedDevice, powersgd_rank: int, begin: Begin,
    group: Any = None,
) -> Rates:  # fmt: skip
    """Measures on up to 8 Mi coordinates; takes some seconds.

    Args:
        model: whose matrices PowerSGD is measured on.
        ranks: planes of a tally, up to 64.
        device: where.
        powersgd_rank: PowerSGD's.
        begin: called with what is measured next.
        group: a process group of this rank alone, where torch.distributed runs already.

    Returns:
        Rates; without torch PowerSGD's is None, and casts and sums are NumPy's.

    Raises:
        SettingsError: the device does not work.
    """
    n = min(model.parameters, _LENGTH)
    g, state, out = device.floats(n), device.floats(n), device.floats(n)
    plane = planes.pack(g)

    def each(what: str, call: Callable[[], object], of: float = n) -> float:
        begin(what)
        return device.seconds(call) / of

    pack = each("pack", lambda: planes.pack_signum([g], [state], out=plane))
    unpack = each("unpack", lambda: planes.unpack(plane, out=out))
    short, rows = min(n, _TALLY_LENGTH), min(ranks, _ROWS)
    one = planes.pack(g[:short])
    stack = _stacked(one, rows)
    vote = planes.majority(stack, length=short)
    tally = each("tally", lambda: planes.majority(stack, length=short, out=vote), short * rows)
    with_error = each("error feedback", lambda: planes.pack_error_feedback(g, state, out=plane))
    weights = np.full((rows, 1), 1 / rows, dtype=np.float32)
    given = weights if device.name == "cpu" else g.new_tensor(weights)
    mean = out[:short]
    sums = each(
        "mean of signs",
        lambda: planes.weighted_sum(stack, given, length=short, out=mean), short * rows,
    )  # fmt: skip
    copy = each("copies", lambda: g.copy() if device.name == "cpu" else g.clone())
    cast, sum_fp32, sum_fp16 = _plain(g, out, device, each)
    powersgd = _powersgd(model, device, powersgd_rank, begin, group)
    return Rates(pack, tally, unpack, with_error, sums, copy, cast, sum_fp32, sum_fp16, powersgd)


def _stacked(row: Any, rows: int) -> Any:
    if isinstance(row, np.ndarray):
        return np.repeat(row[None], rows, axis=0)
    return row[None].repeat(rows, 1)


def _plain(g: Any, out: Any, device: TimedDevice, each: Any) -> Iterator[float]:
    """Casts and sums: torch's, as its users' allreduces have them, else NumPy's."""
    try:
        import torch
    except ImportError:
        half, other = g.astype(np.float16), g.astype(np.float16)

        def cast() -> None:
            np.copyto(half, g, casting="same_kind")
            np.copyto(out, half)

        yield each("casts", cast)
        yield each("fp32 sums", lambda: np.add(g, out, out=out))
        yield each("fp16 sums", lambda: np.add(half, other, out=other))
        return
    x, y = (torch.from_numpy(a) if device.name == "cpu" else a for a in (g, out))
    first, second = x.half(), x.half()
    yield each("casts", lambda: y.copy_(first.copy_(x)))
    yield each("fp32 sums", lambda: y.add_(x))
    yield each("fp16 sums", lambda: second.add_(first))


def _powersgd(
    model: ModelShapes, device: TimedDevice, rank: int, begin: Begin, group: Any
) -> float | None:
    """torch's own hook on a group of one rank: all but the wire."""
    begin("PowerSGD")
    try:
        import torch
        import torch.distributed as dist
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    except ImportError:
        return None
    if not dist.is_available():
        return None
    shapes = sample(model.matrices)
    if not shapes:
        return 0.0
    with _alone(dist, group) as alone:
        flat = torch.as_tensor(device.floats(sum(map(math.prod, shapes))))
        parts = flat.split([math.prod(shape) for shape in shapes])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        # What the hook asks of DDP's GradBucket, which Python cannot make.
        bucket: Any = SimpleNamespace(
            index=lambda: 0, is_last=lambda: True, buffer=lambda: flat, gradients=lambda: views
        )
        state = powerSGD_hook.PowerSGDState(
            alone, matrix_approximation_rank=rank, start_powerSGD_iter=_PLAIN_STEPS
        )

        def call() -> None:
            powerSGD_hook.powerSGD_hook(state, bucket).wait()

        for _ in range(_PLAIN_STEPS):
            call()
        return device.seconds(call) / flat.numel()


def sample(matrices: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Some of a model's matrices, those with most of its coordinates first, cut to a size."""
    often = Counter(matrices)
    found: list[tuple[int, int]] = []
    left = _MATRICES
    for rows, columns in sorted(often, key=lambda s: -often[s] * math.prod(s)):
        rows = min(rows, left // columns)
        if rows < 1:
            break
        found.append((rows, columns))
        left -= rows * columns
    return found


@contextmanager
def _alone(dist: Any, group: Any) -> Iterator[Any]:
    """A process group of this rank alone."""
    if group is not None:
        yield group
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    # A thread of Gloo's may hold the last reference, and would wait for its own end.
    _kept.append(dist.group.WORLD)
    try:
        yield _kept[-1]
    finally:
        dist.destroy_process_group()
