"""The ways to agree on a gradient that are compared: with groups and without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mpisign.compressors import Compressor
from mpisign.compressors.detox import Detox
from mpisign.compressors.robust import Robust
from mpisign.compressors.signum import Signum
from mpisign.robust.names import by_name

Kind = Literal["vote", "robust", "here", "byzfl"]
#: Rows that a rule with f of them hostile needs, at least: the most that any rule asks (Bulyan).
_NEEDED = 4, 3


@dataclass(frozen=True)
class Way:
    """One row of a number of ranks.

    ``kind``: "vote" of signs; "robust": a rule over gradients, both as collectives; "here", the
    rule on the same rows in one place, and "byzfl", ByzFL's. ``groups``: what the ranks are dealt
    out to, 0 for none. ``f``: hostile rows that the rule is made for.
    """

    kind: Kind
    rule: str
    groups: int = 0
    f: int = 0
    redundancy: int = 0

    @property
    def label(self) -> str:
        """For people."""
        if self.kind in ("here", "byzfl"):
            return f"{self.rule}, {'one place' if self.kind == 'here' else 'ByzFL'}"
        return f"{self.rule}, DETOX {self.redundancy}" if self.groups else self.rule

    @property
    def compressor(self) -> Compressor:
        """What ``DistributedOptimizer`` takes."""
        inner = Signum() if self.kind == "vote" else Robust(rule=by_name(self.rule, self.f))
        return Detox(redundancy=self.redundancy, inner=inner) if self.groups else inner


def ways(ranks: int, redundancy: int, rules: tuple[str, ...]) -> Iterator[Way]:
    """All of a number of ranks: each rule with as many hostile rows as Bulyan can take."""
    groups = ranks // redundancy
    yield Way("vote", "signum")
    yield Way("vote", "signum", groups, redundancy=redundancy)
    for rule in rules:
        yield Way("robust", rule, f=_hostile(ranks))
        yield Way("robust", rule, groups, _hostile(groups), redundancy)
        yield Way("here", rule, f=_hostile(ranks))
        yield Way("byzfl", rule, f=_hostile(ranks))


def _hostile(rows: int) -> int:
    each, rest = _NEEDED
    return max(0, (rows - rest) // each)
