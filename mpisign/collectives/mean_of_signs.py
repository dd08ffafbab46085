"""mean_of_signs: what Distributed Lion (Avg) descends by."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.count_task import Count, CountTask, submit
from mpisign.collectives.vote_task import Planes
from mpisign.engine.engine import Engine


def mean_of_signs(
    x: Any,
    comm: Any = None,
    *,
    algorithm: policies.Algorithm = "auto",
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int | None = None,
    out: Any = None,
) -> Any:
    """(1/p) sum over ranks of sign(x), float32 of x's shape, bit for bit the same on every rank.

    A coordinate that abstains counts 0 among p. The whole number of the sum is exact, 1/p is
    rounded to fp32, their product too. Arguments, wire, bytes and errors: as ``tally``'s; ``out``:
    C-contiguous float32 of x's shape. Source: Liu et al. 2024, Communication efficient distributed
    training with Distributed Lion, averaging.
    """
    settings = {
        "algorithm": algorithm,
        "zeros": zeros,
        "nan": nan,
        "weight": 1,
        "seed": seed,
        "step": step,
    }
    return submit("mean_of_signs", comm, settings, lambda c: _Mean(x, out, c, settings)).wait()


class _Mean(Count):
    def __init__(self, x: Any, out: Any, engine: Engine, settings: Any) -> None:
        super().__init__("mean_of_signs", x, False, engine, settings)
        v = self.view
        self.result = arrays.empty(v.shape, "float32", like=v) if out is None else out
        o = arrays.view_floats("mean_of_signs", "out", self.result, writable=True)
        if o.dtype != "float32" or o.shape != v.shape or not o.contiguous or o.device != "cpu":
            raise ValueError(
                f"mean_of_signs: out must be C-contiguous float32 {v.shape}, "
                f"got {o.dtype} {o.shape}"
            )
        self._flat = np.asarray(self.result).reshape(-1)

    def _unpack(self, part: slice, counts: Planes) -> None:
        mean_of(counts, self.task, self._flat[part])


def mean_of(counts: Any, task: CountTask, out: Any) -> None:
    """The mean of ``task.size`` signs from their count planes (kd, b), into float32 ``out``."""
    length = len(out)
    if task.k == 1:
        planes.mean_of_counts(counts, task.size, length=length, out=out)
        return
    # A plane's 0 adds its weight and its 1 takes it away: what is left is + minus -.
    bit = 2.0 ** np.arange(-1, task.bits - 1)
    planes.weighted_sum(counts, np.concatenate([bit, -bit]), length=length, out=out)
    out *= float(np.float32(1 / task.size))
