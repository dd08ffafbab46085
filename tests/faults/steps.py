"""One training of a few tensors by every front end: the same steps, and what they must come to.

Gradients are small multiples of 1/4, rates and momenta powers of 2: all arithmetic is exact. Zeros
abstain and a tie is 0, so that the vote is the sign of the sum of signs, whatever the layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from faults.plan import Job

SHAPES = [(48, 33), (132,), (12, 5, 9)]
RATE, MOMENTUM = 2.0**-6, 0.5


def gradients(job: Job, rank: int, step: int, shapes: list[tuple[int, ...]]) -> list[Any]:
    """A rank's gradients of a step. What it is given counts too, if that is the fault."""
    rng = np.random.default_rng([job.seed, rank, step])
    found = [(rng.integers(-3, 4, shape) / 4).astype(np.float32) for shape in shapes]
    if rank == job.odd and step == job.at:
        if job.kind == "a-nan":
            found[0].flat[3] = np.nan
        if job.kind == "an-infinity":
            found[0].flat[3] = np.inf
        if job.kind == "no-gradient":
            found[1][...] = 0
    return found


class Reference:
    """What all ranks' parameters must be, by all ranks' gradients."""

    def __init__(self, job: Job, shapes: list[tuple[int, ...]]) -> None:
        self.job, self.shapes = job, list(shapes)
        self.x = [np.zeros(shape, np.float32) for shape in shapes]
        self.m = [[np.zeros(shape, np.float32) for shape in shapes] for _ in range(job.ranks)]

    def step(self, step: int) -> None:
        """One more step."""
        total = [np.zeros(shape, np.float32) for shape in self.shapes]
        for rank in range(self.job.ranks):
            for i, g in enumerate(gradients(self.job, rank, step, self.shapes)):
                if self.job.compression == "signum":
                    g = self.m[rank][i] = MOMENTUM * self.m[rank][i] + (1 - MOMENTUM) * g
                total[i] += np.sign(g)
        for x, votes in zip(self.x, total, strict=True):
            x -= np.float32(RATE) * np.sign(votes)


class Front:
    """What the ranks have in common; faults change attributes before or between steps."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank = job, rank
        self.shapes = self.due()
        self.options: dict[str, Any] = {"seed": 3, "ties": "zero", "algorithm": job.algorithm}
        self.offset = 0.0
        self.sparse = False
        self.now = -1
        self.reference = Reference(job, self.due())

    def due(self) -> list[tuple[int, ...]]:
        """The shapes that all ranks should have."""
        return list(SHAPES)

    def begin(self) -> None:
        """Makes what the steps are taken with. Collective."""
        raise NotImplementedError

    def step(self, step: int, between: Callable[[], None] | None = None) -> None:
        """One step; ``between``: to be called between the exchange and the optimizer's step."""
        raise NotImplementedError

    def parts(self) -> list[Any]:
        """This rank's parameters."""
        raise NotImplementedError

    def digest(self) -> str:
        """Of the parameters."""
        return hashlib.sha256(b"".join(x.tobytes() for x in self.parts())).hexdigest()[:16]

    def right(self, step: int) -> bool:
        """Whether they are what they must be after this step."""
        self.reference.step(step)
        pairs = zip(self.parts(), self.wanted(), strict=True)
        return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    def wanted(self) -> list[Any]:
        """The reference's counterpart of ``parts``."""
        return self.reference.x


class Functions(Front):
    """mpisign.Communicator and its votes on one tensor."""

    def due(self) -> list[tuple[int, ...]]:
        return [(self.job.length,)]

    def begin(self) -> None:
        import mpisign

        kind = self.job.wire.partition("-")[0]
        self.x, self.dtype, self.shift = np.zeros(self.job.length, np.float32), "float32", 0
        self.comm = mpisign.Communicator(kind)
        if self.job.kind == "frees-twice":
            self.other = mpisign.Communicator(kind)

    def values(self, step: int) -> Any:
        """What this rank votes on."""
        (g,) = gradients(self.job, self.rank, step, self.shapes)
        return g.tolist() if self.dtype == "list" else g.astype(self.dtype)

    def lengthen(self) -> None:
        """One coordinate more."""
        self.shapes = [(self.job.length + 1,)]

    def start(self, step: int) -> Any:
        """A vote in flight."""
        how = {**self.options, "zeros": "abstain", "byzantine_f": self.job.byzantine_f}
        return self.comm.majority_vote_async(self.values(step), step=step + self.shift, **how)

    def take(self, votes: Any) -> None:
        """Steps on the votes."""
        self.x -= np.float32(RATE) * votes

    def step(self, step: int, between: Callable[[], None] | None = None) -> None:
        self.now = step
        self.take(self.start(step).wait())

    def parts(self) -> list[Any]:
        return [self.x]
