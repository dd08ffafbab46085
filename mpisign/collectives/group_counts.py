"""What a group of ranks tells other groups of its ballots: counts of votes, or its majority."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from mpisign.collectives.hierarchy import Children
from mpisign.collectives.vote_task import VoteTask


class Told(ABC):
    """What the children of one group of a hierarchy send to each other, and what it adds up to.

    Args:
        task: what is voted on.
        weights: whole numbers, by rank.
        children: the ranks of each child.
        first: the children are ranks, which send ballots.
        top: the group is that of all ranks, whose votes are decided.

    Attributes:
        rows: (rows, planes a row) of memory for what the children send.
        made: planes that ``tell`` writes, 0 at the top.
    """

    rows: tuple[int, int]
    made: int

    def __init__(
        self, task: VoteTask, weights: Sequence[int], children: Children, first: bool, top: bool
    ) -> None:
        self.task, self.weights, self.children = task, weights, children
        self.first, self.top = first, top

    def fill(self, stack: Any) -> None:  # noqa: B027
        """Writes into memory for ``rows`` what no child sends."""

    @abstractmethod
    def received(self, stack: Any) -> list[list[Any]]:
        """Where the planes of each child go in ``stack``, uint8 ``rows`` of b bytes each."""

    @abstractmethod
    def tell(self, stack: Any, at: int, out: Any) -> list[Any]:
        """The planes that the group sends, rows of ``out``, uint8 (made, b), contiguous.

        ``at``: the first byte's place in the task.
        """

    @abstractmethod
    def decide(self, stack: Any, at: int, out: Any) -> None:
        """At the top: the result's planes (kd, b)."""


class Counts(Told):
    """Each group sends how many of its ranks voted -, and + where masks tell, bit by bit.

    A bit of a count is a row of the next level that votes with the weight of the bit.
    """

    def __init__(
        self, task: VoteTask, weights: Sequence[int], children: Children, first: bool, top: bool
    ) -> None:
        super().__init__(task, weights, children, first, top)
        k = task.k
        if first:
            self._bits = [1] * len(children)
            self._votes = [weights[r] for (r,) in children]  # of the rows of one sign
            self.rows = (len(children), k)
        else:
            units = [self._count(child) for child in children]
            self._bits = [bits for bits, _ in units]
            self._votes = [unit << j for bits, unit in units for j in range(bits)]
            n = len(self._votes)
            self.rows = (k * n, 1) if not top else (2 * n, 2) if k == 2 else (n + 1, 1)
        # Bits of counts can add up to more than there are voters: the highest plane is 0 then.
        unit = math.gcd(*self._votes) or 1
        each = max(1, (sum(self._votes) // unit).bit_length())
        self.made = 0 if top else k * each
        self._sent = self._count([r for child in children for r in child])[0]

    def _count(self, ranks: Sequence[int]) -> tuple[int, int]:
        """Count planes of one sign, and the unit that they count in, 0 if nobody has a weight."""
        if self.task.weights is None:
            return len(ranks).bit_length(), 1
        weights = [self.weights[r] for r in ranks]
        unit = math.gcd(*weights)  # planes.tally divides its rows' weights by it
        return max(1, (sum(weights) // (unit or 1)).bit_length()), unit

    def fill(self, stack: Any) -> None:
        if not self.top:
            return
        if self.task.k == 2:
            half = len(stack) // 2
            stack[:half, 0] = 0xFF  # negative votes, then positive ones
            stack[half:, 0] = 0
        else:
            stack[len(stack) - 1] = 0xFF

    def received(self, stack: Any) -> list[list[Any]]:
        if self.first:
            return [list(row) for row in stack]
        halves = self._halves(stack)
        found, at = [], 0
        for bits in self._bits:
            found.append([plane for half in halves for plane in half[at : at + bits, -1]])
            at += bits
        return found

    def tell(self, stack: Any, at: int, out: Any) -> list[Any]:
        if self.first:
            self.task.add_up(stack, at, self._votes, out)
        else:
            for sign, into in zip(self._halves(stack), self._halves(out), strict=True):
                self.task.add_up(sign, at, self._votes, into)
        return [plane for half in self._halves(out) for plane in half[: self._sent]]

    def decide(self, stack: Any, at: int, out: Any) -> None:
        weights = self._votes * self.task.k
        if self.task.k == 1:
            # A 0 bit voted + with its weight, and counts can hold more than there are voters: a row
            # of - takes away the surplus. W - 2 N - (W - total) = total - 2 N.
            weights.append(sum(weights) - sum(self.weights))
        self.task.tally(stack, at, out, weights, self.weights)

    def _halves(self, rows: Any) -> list[Any]:
        """Rows of negative votes, and of positive ones where masks tell."""
        half = len(rows) // self.task.k
        return [rows[j * half : (j + 1) * half] for j in range(self.task.k)]


class Verdicts(Told):
    """Each node sends its majority: a plane, or two (sign and mask) where it can tie."""

    def __init__(
        self, task: VoteTask, weights: Sequence[int], children: Children, first: bool, top: bool
    ) -> None:
        super().__init__(task, weights, children, first, top)
        self.rows = (len(children), task.k if first else 2)
        self.made = 0 if top else self._sent(children)

    def _sent(self, node: Sequence[Any]) -> int:
        return 2 if self.task.k == 2 or len(node) % 2 == 0 or self.task.weights is not None else 1

    def fill(self, stack: Any) -> None:
        if not self.first:
            stack[:, 1] = 0xFF

    def received(self, stack: Any) -> list[list[Any]]:
        if self.first:
            return [list(row) for row in stack]
        nodes = zip(stack, self.children, strict=True)
        return [list(row[: self._sent(node)]) for row, node in nodes]

    def tell(self, stack: Any, at: int, out: Any) -> list[Any]:
        weights = None
        if self.task.weights is not None:
            weights = [self.weights[r] for (r,) in self.children]
        self.task.verdict(stack, at, weights, out)
        return list(out)

    def decide(self, stack: Any, at: int, out: Any) -> None:
        self.task.tally(stack, at, out, [1] * len(stack))
