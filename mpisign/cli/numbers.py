"""Values as people write them on a command line: 25.6M, 1e6, 2^28, the names of rules."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from functools import partial
from typing import Any

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def sizes(text: str) -> tuple[int, ...]:
    """Numbers of coordinates, separated by commas, in ascending order."""
    return tuple(sorted({size(part) for part in text.split(",")}))


def size(text: str) -> int:
    """One number of coordinates, from 8."""
    power = re.fullmatch(r"2(?:\^|\*\*)(\d{1,2})", text)
    number = re.fullmatch(r"(\d+(?:\.\d*)?)(?:([kmg]?)|e\+?(\d{1,2}))", text.lower())
    value = 0.0
    if power:
        value = 2.0 ** int(power[1])
    elif number:
        unit = 10 ** int(number[3]) if number[3] else _UNITS[number[2]]
        value = round(float(number[1]) * unit, 6)
    if value != int(value) or not 8 <= value <= 1 << 40:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from 8, such as 1k, 25.6M, 1e6, 2^28"
        )
    return int(value)


def number(text: str, low: int, high: int, what: str) -> int:
    """A whole number of ``what`` in [low, high]."""
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}, from {low}")
    return int(text)


def names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Some of ``known``, separated by commas."""
    found = tuple(text.split(","))
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return found


def bounded(text: str, kind: type, low: float, high: float, what: str) -> Any:
    """A number of ``kind`` in [low, high); ``what`` it is, for the error."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value < high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


positive = partial(bounded, kind=int, low=1, high=1 << 62, what="a positive number")
count = partial(bounded, kind=int, low=0, high=1 << 62, what="a number from 0")
seed = partial(bounded, kind=int, low=0, high=1 << 63, what="a number from 0 to 2**63 - 1")
rate = partial(bounded, kind=float, low=0.0, high=math.inf, what="a learning rate")
momentum = partial(bounded, kind=float, low=0.0, high=1.0, what="a number from 0 to below 1")


def ways(text: str) -> tuple[str, ...]:
    """Variants of ``mpisign train``, separated by commas, in the order in which they run."""
    from mpisign.experiments.variants import VARIANTS

    found = names(text, tuple(VARIANTS))
    return tuple(name for name in VARIANTS if name in found)


def attack(text: str) -> str:
    """The name of an attack."""
    from mpisign.attacks import ATTACKS

    return _known(text, tuple(ATTACKS), "an attack")


def rule(text: str) -> str:
    """The name of a robust rule, such as krum or nnm+krum."""
    from mpisign import robust

    *mixings, last = text.split("+")
    for name in mixings:
        _known(name, tuple(robust.MIXINGS), "what may stand before a rule")
    _known(last, tuple(robust.RULES), "a rule")
    return text


def _known(text: str, known: tuple[str, ...], what: str) -> str:
    if text not in known:
        near = difflib.get_close_matches(text, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else f": {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}{hint}")
    return text
