"""What is measured of one rule in one framework, and what follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpisign.bench.results import Timing

TIMES = 2.0  # as fast as ByzFL, at least
AT_LIMIT = 0.7  # of the speed of plain reading: memory, not the rule, is what takes the time


@dataclass(frozen=True)
class Row:
    """Seconds of one call. ``limit``: of reading all rows once by plain loads, in turns with it.

    ``differs``: the largest difference of the two results, by the largest magnitude of ByzFL's;
    None if it has no such rule, or draws at random in another way. ``note``: why something is not
    there.
    """

    rule: str
    framework: str
    time: Timing
    limit: Timing
    theirs: Timing | None = None
    differs: float | None = None
    note: str = ""

    @property
    def times(self) -> float | None:
        """How many times longer ByzFL takes."""
        return self.theirs.median / self.time.median if self.theirs else None

    @property
    def of_limit(self) -> float:
        """Its speed, by that of reading the rows."""
        return self.limit.median / self.time.median

    @property
    def met(self) -> bool | None:
        """At least twice as fast as ByzFL, or at the memory's limit; None without ByzFL's rule."""
        if self.of_limit >= AT_LIMIT:
            return True
        return None if self.times is None else self.times >= TIMES

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        more = {"times": self.times, "of_limit": self.of_limit, "met": self.met}
        return {**asdict(self), **more}
