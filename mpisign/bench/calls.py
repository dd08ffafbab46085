"""Small calls: what a pack, a majority and an unpack cost from Python, results allocated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from mpisign import planes
from mpisign.bench import plain
from mpisign.bench.case import Call
from mpisign.bench.stock import Stock

_ROWS = 4


class SmallCase(NamedTuple):
    """A call, its goal in seconds, and the plain ways beside it."""

    name: str
    goal: float | None
    ours: Call
    plain: Mapping[str, Call]


def small_calls(
    xp: Any, stock: Stock, size: int, goal_each: float | None, goal_all: float | None
) -> list[SmallCase]:
    """pack, majority, unpack and the three together."""
    host = xp.__name__ == "numpy"
    pack = planes.pack if host else planes.pack_census  # the one waits for its count of NaNs
    g, stack = stock.floats(size), stock.planes(size, _ROWS)
    plane = stock.planes(size)

    def vote() -> Any:
        stack[0] = planes.pack(g)
        return planes.unpack(planes.majority(stack, length=size), size)

    def plain_vote() -> Any:
        stack[0] = plain.pack(xp, g)
        return plain.signs(xp, plain.majority(xp, stack, size), size, "float32")

    three = {"numpy" if host else "cupy": plain_vote}
    return [
        SmallCase("pack", goal_each, partial(pack, g), {"packbits": partial(plain.pack, xp, g)}),
        SmallCase(
            f"majority of {_ROWS}",
            goal_each,
            partial(planes.majority, stack, length=size),
            {"a byte a coordinate": partial(plain.majority, xp, stack, size)},
        ),
        SmallCase(
            "unpack",
            goal_each,
            partial(planes.unpack, plane, size),
            {"unpackbits, where": partial(plain.signs, xp, plane, size, "float32")},
        ),
        SmallCase("all three: a vote", goal_all, vote, three),
    ]
