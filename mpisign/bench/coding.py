"""Coding sparse planes, and back; on the host alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.bench import plain
from mpisign.bench.case import Calls, Case
from mpisign.bench.stock import Stock

_PLANES = 2 / 8  # bytes a coordinate
_CODED = {0.1: 0.576 / 8, 0.05: 0.339 / 8, 0.01: 0.091 / 8}  # by the share that is present
_MAIN = 0.1


def cases(xp: Any) -> Iterator[Case]:
    """All cases of coding; ``xp`` is numpy or cupy, for which there are none."""
    if xp is np:
        for share in _CODED:
            yield _encode(share)
        for share in _CODED:
            yield _decode(share)


def _encode(share: float) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        both, out = stock.sparse(length, share), stock.room(planes.coded_bytes_bound(length))
        return Calls(
            partial(planes.encode, both, length=length, out=out),
            {"int32 positions": partial(plain.positions, both)},
        )

    return Case(
        kernel="encode",
        variant=f"{share:.0%} present",
        limit="copy",
        read=_PLANES,
        written=_CODED[share],
        spare=_PLANES - _CODED[share],
        build=build,
        main=share == _MAIN,
    )


def _decode(share: float) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        out = stock.planes(length, 2)
        other = Stock(np, "cpu")  # the planes that the message is made of are not held
        other.reserve(out.size + 64)
        both = other.sparse(length, share)
        coded = planes.encode(both, length=length)
        message = stock.room(coded.size)
        message[:] = coded
        at, signs = plain.positions(both)
        return Calls(
            partial(planes.decode, message, length, out),
            {"int32 positions": partial(plain.planes_of_positions, at, signs, length)},
        )

    return Case(
        kernel="decode",
        variant=f"{share:.0%} present",
        limit="copy",
        read=_CODED[share],
        written=_PLANES,
        build=build,
        main=share == _MAIN,
    )
