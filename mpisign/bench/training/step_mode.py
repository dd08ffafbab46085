"""Seconds per step: all ways by turns, in rounds of which the first does not count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mpisign.bench.errors import BenchError
from mpisign.bench.training.names import Named
from mpisign.bench.training.results import StepRow, beside
from mpisign.bench.training.trainer import Block, Trainer


@dataclass
class _Contestant:
    way: Named
    lr: float
    error: str = ""
    identical: bool | None = None
    blocks: list[Block] = field(default_factory=list)


def measure(
    trainer: Trainer,
    ways: Sequence[tuple[Named, float]],
    begin: Callable[[str], None],
    end: Callable[[], None],
) -> list[StepRow]:
    """A row a way. ``begin``, ``end``: told of each turn."""
    contestants = [_Contestant(way, lr) for way, lr in ways]
    for number in range(trainer.settings.repeat + 1):
        # Another goes first each time: no way always follows the same one.
        first = number % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            begin(f"round {number} of {trainer.settings.repeat}, {contestant.way.name}")
            if not contestant.error:
                _turn(trainer, contestant, counts=number > 0)
            end()
    return beside(
        [
            StepRow(
                c.way.name,
                c.way.ours,
                c.lr,
                c.error,
                None if c.error else c.identical,
                [] if c.error else c.blocks,
            )
            for c in contestants
        ]
    )


def _turn(trainer: Trainer, contestant: _Contestant, counts: bool) -> None:
    way, settings = contestant.way, trainer.settings
    try:
        with trainer.training(way, contestant.lr, seed=0) as training:
            feed = trainer.feed(seed=0)
            trainer.steps(training, feed, settings.warm_up, f"{way.name}, first steps", None)
            block = trainer.steps(training, feed, settings.steps, f"{way.name}, steps", None)
            same = trainer.identical(way, training)
    except BenchError as error:
        contestant.error = str(error)
        return
    if counts:
        contestant.blocks.append(block)
    if same is not None:
        contestant.identical = same and contestant.identical is not False
