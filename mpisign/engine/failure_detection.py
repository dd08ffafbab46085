"""Notices between ranks that stop waiting, and which ranks they agree are missing.

Notice, little-endian, at most 512 bytes: magic "MPSN", kind u8 (1 waiting, 2 failed), flags u8
(1: the sender knows that all ranks started the call; 2: its wire broke), 2 bytes 0, number of the
call u64, seconds waited f64, then for kind 1 the ranks that the sender waits for, u32 each (as many
as fit; none at all if its wire cannot tell), for kind 2 the error in UTF-8.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpisign.engine.agreement import name_ranks
from mpisign.errors import CollectiveError, CollectiveTimeout
from mpisign.transports.base import LEFT, NOTICE, Transport

if TYPE_CHECKING:
    from mpisign.engine.handle import Handle

_HEAD = struct.Struct("<4sBB2xQd")
_MAGIC, _WAITING, _FAILED = b"MPSN", 1, 2
_STARTED, _BROKEN = 1, 2
_GRACE = 2.0  # seconds in which every rank that is blocked here answers: it looks 20 times a second
_SLACK = 0.25  # seconds that a notice may take


@dataclass(frozen=True)
class _Notice:
    kind: int
    number: int
    waited: float
    missing: frozenset[int]
    text: str
    read: float  # when this rank read it
    flags: int = 0


def post_failure(transport: Transport, handle: Handle, text: str) -> None:
    """Posts to the other ranks that this one failed, and why."""
    head = _HEAD.pack(_MAGIC, _FAILED, 0, handle.number, 0.0)
    reason = text.removeprefix(f"{handle.function}: ").encode()
    transport.post(head + reason[: NOTICE - _HEAD.size])


class FailureDetector:
    """The notices of one transport's ranks, and the error that follows from them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._posted: dict[int, _Notice] = {}
        self._left: dict[int, float] = {}  # ranks whose programs ended, and when this one noticed

    def check(self, handle: Handle, waited: float) -> CollectiveError | None:
        """The error to raise if a rank gave up, or exited with parts unsent; else None.

        What a rank sent before it exited may still be in flight: it has ``_GRACE`` seconds.
        """
        self._read()
        before = time.monotonic() - _GRACE
        left = False
        if self._left and handle.pending is not None:
            missing = self._or_all(handle.pending.missing(), self._transport.rank)
            left = any(self._left.get(r, before) < before for r in missing)
        return self.give_up(handle, waited) if self._posted or left else None

    def lost(self, handle: Handle, waited: float) -> CollectiveError | None:
        """The error to raise where the wire broke and does not say who is gone.

        None if that cannot be found out.
        """
        self._read()
        error = self.give_up(handle, waited, broken=True)
        named = not isinstance(error, CollectiveTimeout) or error.ranks
        return error if named else None

    def give_up(self, handle: Handle, waited: float, broken: bool = False) -> CollectiveError:
        """Posts that this rank stops waiting, collects who else does, and names the missing ranks.

        A rank that answers is not missing, even if it waits for a third, unless it came only after
        others had given up. ``broken``: the wire is, because of a rank that has most likely ended.
        """
        failed = self._failed(handle)
        if failed is not None:
            return failed
        missing = None if handle.pending is None else handle.pending.missing()
        own = self._transport.rank
        now = time.monotonic()
        known = self._or_all(missing, own)
        flags = _STARTED * handle.started + _BROKEN * broken
        mine = _Notice(_WAITING, handle.number, waited, known, "", now, flags)
        listed = sorted(missing or [])[: (NOTICE - _HEAD.size) // 4]
        ranks = np.array(listed, dtype="<u4").tobytes()
        head = _HEAD.pack(_MAGIC, _WAITING, flags, handle.number, waited)
        self._transport.post(head + ranks)
        until = now + _GRACE
        others = self._transport.size - 1
        while time.monotonic() < until and len(self._posted.keys() | self._left.keys()) < others:
            if broken and self._left:  # they broke it
                break
            self._transport.sleep(0.02)
            self._read()
            failed = self._failed(handle)
            if failed is not None:
                return failed
        notices = {**self._posted, own: mine}
        longest = max(n.waited for n in notices.values())
        waited_for = set().union(*(n.missing for n in notices.values()))
        silent = waited_for - set(notices)
        broken = any(n.flags & _BROKEN for n in notices.values())
        if not (broken or silent & self._left.keys()):  # that ranks gave up was for lack of time
            silent |= waited_for & self._late(notices)
        absent = sorted(silent)
        prefix = f"{handle.function}: step {handle.step}: "
        if absent:
            why = "timeout= of the communicator or MPISIGN_TIMEOUT says how long to wait"
            left = [r for r in absent if r in self._left and r not in notices]
            if left:
                why = f"the program of {name_ranks(left)} has ended"
                absent = left if broken else absent
            elif broken:
                why = "connections broke, and they do not answer"
                why = why if absent[1:] else "the connection to it broke"
            elif any(n.flags & _STARTED and n.number == handle.number for n in notices.values()):
                verbs = ("do", "are") if absent[1:] else ("does", "is")
                why = (
                    f"{name_ranks(absent)} started it and {verbs[0]} not wait, because of a "
                    f"blocking call in between, or {verbs[1]} stopped; {why}"
                )
            return CollectiveTimeout(
                f"{prefix}{name_ranks(absent)} did not come in {longest:.1f} s ({why})", absent
            )
        blaming = sorted(r for r, n in notices.items() if own in n.missing and r != own)
        if blaming and waited < longest / 2:
            return CollectiveTimeout(
                f"{prefix}{name_ranks(blaming)} gave up on this rank, {own}, after "
                f"{longest:.1f} s without it",
                [own],
            )
        if len({n.number for n in notices.values()}) == 1:
            waits = ", ".join(
                f"rank {r} for {name_ranks(sorted(n.missing))}"
                for r, n in sorted(notices.items())[:16]
                if n.missing
            )
            return CollectiveTimeout(
                f"{prefix}ranks waited {longest:.1f} s for each other in the same call ({waits}): "
                "one of them did not send what the others wait for"
            )
        calls = ", ".join(f"rank {r} in call {notices[r].number}" for r in sorted(notices)[:16])
        return CollectiveTimeout(
            f"{prefix}ranks waited {longest:.1f} s for each other ({calls}): all must call the "
            "same collectives in the same order"
        )

    def _late(self, notices: dict[int, _Notice]) -> set[int]:
        """The ranks that began to wait only when others had given up, to whom they came late."""
        first = min(n.read for n in notices.values())
        slack = min(_SLACK, max(n.waited for n in notices.values()) / 10)
        return {
            rank
            for rank, n in notices.items()
            if rank != self._transport.rank and n.waited < n.read - first + slack
        }

    def _failed(self, handle: Handle) -> CollectiveError | None:
        for rank, notice in sorted(self._posted.items()):
            if notice.kind == _FAILED:
                return CollectiveError(f"{handle.function}: rank {rank} broke off: {notice.text}")
        return None

    def _read(self) -> None:
        for rank, data in self._transport.notices():
            if data == LEFT:
                self._left.setdefault(rank, time.monotonic())
            if len(data) < _HEAD.size:
                continue
            magic, kind, flags, number, waited = _HEAD.unpack_from(data)
            if magic != _MAGIC or kind not in (_WAITING, _FAILED) or not waited >= 0:
                continue
            rest = data[_HEAD.size :]
            missing: list[int] | None = None
            if kind == _WAITING:
                ranks = np.frombuffer(rest[: len(rest) // 4 * 4], dtype="<u4")
                missing = [int(r) for r in ranks if r < self._transport.size] or None
            text = "".join(c if c.isprintable() else "?" for c in rest.decode(errors="replace"))
            known = self._or_all(missing, rank)
            notice = _Notice(kind, number, waited, known, text, time.monotonic(), flags)
            self._posted.setdefault(rank, notice)

    def _or_all(self, missing: list[int] | None, rank: int) -> frozenset[int]:
        """``missing``, or every rank but ``rank``, whose wire cannot tell."""
        everyone = range(self._transport.size)
        return frozenset(everyone if missing is None else missing) - {rank}
