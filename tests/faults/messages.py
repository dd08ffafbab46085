"""Ranks that send what no rank that follows the rules sends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from faults.kinds import GLOO, MPI, kind

_HEADER = 512
_here = {"fronts": ("functions",), "wires": (*MPI, *GLOO), "when": "made"}
_where = {**_here, "settings": {"length": 20_000}}
_among = {**_here, "ranks": (4,), "settings": {"length": 20_000, "byzantine_f": 1}}


def _patched(fault: Any, change: Callable[[int, Any], Any]) -> None:
    """From step ``at`` on each part to rank ``dest`` is ``change(dest, part)``; None: nothing."""
    from mpisign.transports.base import Transport

    wire = fault.front.comm.engine.transport
    exchange, first = wire._exchange, wire._first_round

    def changed(sends: Any) -> list[Any]:
        if fault.front.now < fault.job.at:
            return list(sends)
        made = [(dest, change(dest, part)) for dest, part in sends]
        return [(dest, part) for dest, part in made if part is not None]

    # Plans keep their messages where they began; here each call sends its own.
    wire.prepare = functools.partial(Transport.prepare, wire)
    wire.start_allgather = functools.partial(Transport.start_allgather, wire)
    wire._exchange = lambda sends, recvs, tag, *more: exchange(changed(sends), recvs, tag, *more)
    wire._first_round = lambda sends, recvs, rooms, tag: first(changed(sends), recvs, rooms, tag)


def _planes(part: Any) -> bool:
    return part.nbytes > 200 and part.nbytes % _HEADER != 0


def _victim(fault: Any) -> int:
    return 1 if fault.rank == 0 else 0


def _at_planes(fault: Any, change: Callable[[Any], Any], all_alike: bool = False) -> None:
    victim = _victim(fault)

    def tamper(dest: int, part: Any) -> Any:
        return change(part) if _planes(part) and (all_alike or dest == victim) else part

    _patched(fault, tamper)


# Gloo ends a process that is sent too much, which docs/trust.md says.
@kind("named", **{**_where, "wires": MPI})
def sends_too_much(fault: Any) -> None:
    """A ballot twice as long as is due, to one rank."""
    _at_planes(fault, lambda part: np.concatenate([part, part]))


@kind("named", **_where)
def sends_too_little(fault: Any) -> None:
    """Half of a ballot, to one rank."""
    _at_planes(fault, lambda part: part[: part.nbytes // 2].copy())


@kind("named", **_where)
def sends_nothing(fault: Any) -> None:
    """No ballot to one rank."""
    _at_planes(fault, lambda part: None)


@kind("named", **{**_among, "wires": MPI})
def sends_too_much_under_byzantine_f(fault: Any) -> None:
    """A message twice as long as is due, under byzantine_f."""
    _at_planes(fault, lambda part: np.concatenate([part, part]))


@kind("either", **_among)
def sends_too_little_under_byzantine_f(fault: Any) -> None:
    """Half of a message, under byzantine_f."""
    _at_planes(fault, lambda part: part[: part.nbytes // 2].copy())


@kind("named", **{**_here, "settings": {"at": 0}})
def garbage_in_a_header(fault: Any) -> None:
    """Random bytes instead of a header."""
    rng = np.random.default_rng(fault.job.seed)

    def change(dest: int, part: Any) -> Any:
        if part.nbytes != _HEADER:
            return part
        return rng.integers(0, 256, _HEADER).astype(np.uint8)

    _patched(fault, change)


def _flipped(part: Any) -> Any:
    part = part.copy()
    part[part.nbytes // 2] ^= 0x55
    return part


@kind(
    "noticed",
    ranks=(3, 4),
    **{**_here, "settings": {"length": 20_000, "algorithm": "allgather", "steps": 30}},
)
def equivocates(fault: Any) -> None:
    """Tells one rank another ballot than the others, in votes that are not compared alone."""
    votes = [0]

    def change(part: Any) -> Any:
        votes[0] += 1
        return _flipped(part) if votes[0] % 4 != 3 else part

    _at_planes(fault, change)


@kind("either", **_among)
def equivocates_under_byzantine_f(fault: Any) -> None:
    """Tells one rank another ballot than the others, under byzantine_f."""
    _at_planes(fault, _flipped)


@kind("either", **_among)
def damages_its_messages_under_byzantine_f(fault: Any) -> None:
    """A byte of each message is another, whatever it is for."""
    rng = np.random.default_rng(fault.job.seed)

    def change(dest: int, part: Any) -> Any:
        if part.nbytes < 16:
            return part
        part = part.copy()
        part[int(rng.integers(part.nbytes))] ^= 0x10
        return part

    _patched(fault, change)
