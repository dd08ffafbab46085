"""Chunks that follow each other through the stages of a collective."""

from __future__ import annotations

from collections.abc import Callable

from mpisign.transports.base import Pending, Steps

#: Chunks between one stage and the next: so many exchanges of each stage are under way at once.
DEPTH = 2


def slots(chunks: int) -> int:
    """How many buffers a stage needs whose exchange the next stage waits for."""
    return min(chunks, DEPTH + 1)


def pipelined(chunks: int, *stages: Callable[[int], Pending | None]) -> Steps[None]:
    """Runs ``stage(i)`` for each chunk i, each stage once the exchange of the one before is over.

    A stage returns the exchange that it starts; the last returns None. The order of starts depends
    on the number of chunks alone, so that it is the same on all ranks.
    """
    started: list[list[Pending | None]] = [[None] * chunks for _ in stages]
    for turn in range(chunks + DEPTH * (len(stages) - 1)):
        for s, stage in enumerate(stages):
            i = turn - s * DEPTH
            if not 0 <= i < chunks:
                continue
            pending = started[s - 1][i] if s else None
            if pending is not None:
                yield pending
            started[s][i] = stage(i)
