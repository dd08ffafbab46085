"""Notices through a key-value store, for wires whose launcher keeps one."""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Protocol

from mpisign.errors import WireError
from mpisign.transports.base import NOTICE

#: Requests a second that a store gets from all ranks together while they wait for each other.
_REQUESTS = 1000
_PAUSE = 10.0  # seconds without questions after the store failed


class Store(Protocol):
    """Bytes under names, the same for all ranks; OSError or RuntimeError if it is out of reach."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes | None:
        """None for what nobody has put yet; does not wait for it."""


class Mailbox:
    """``Transport.post`` and ``Transport.notices`` over a store of this transport's own.

    Rank r's n-th notice lies under ``r.n``, and its name, once it is there, under ``bell``. A look
    for notices is one request as long as the bell is what it was. Looks that come faster than
    ``interval`` seconds, or fast enough for all ranks to keep a store busy, find nothing.
    """

    def __init__(self, store: Store, rank: int, size: int, interval: float = 0.05) -> None:
        self._store = store
        self._rank = rank
        self._read = dict.fromkeys((r for r in range(size) if r != rank), 0)
        self._interval = max(interval, size / _REQUESTS)
        self._posted = 0
        self._bell: bytes | None = None
        self._next = 0.0

    def post(self, notice: bytes) -> None:
        """Leaves a notice; one that the store does not take is lost. ValueError if too long."""
        if len(notice) > NOTICE:
            raise ValueError(f"a notice holds at most {NOTICE} bytes, got {len(notice)}")
        name = f"{self._rank}.{self._posted}"
        try:
            self._store.put(name, notice)
            self._store.put("bell", name.encode())
            self._posted += 1
        except (OSError, RuntimeError, HTTPException):
            pass  # most likely the launcher is gone, and with it soon all ranks

    def notices(self) -> list[tuple[int, bytes]]:
        """What is new; WireError, naming the rank, for what is longer than a notice."""
        if time.monotonic() < self._next:
            return []
        came: list[tuple[int, bytes]] = []
        try:
            bell = self._store.get("bell")
            if bell != self._bell:
                for rank in self._read:
                    came += self._from(rank)
                self._bell = bell
            self._next = time.monotonic() + self._interval
        except (OSError, RuntimeError, HTTPException):
            self._next = time.monotonic() + _PAUSE
        return came

    def _from(self, rank: int) -> list[tuple[int, bytes]]:
        came = []
        while (notice := self._store.get(f"{rank}.{self._read[rank]}")) is not None:
            self._read[rank] += 1
            if len(notice) > NOTICE:
                raise WireError(
                    f"a notice of {len(notice)} bytes from rank {rank}: at most {NOTICE}"
                )
            came.append((rank, notice))
        return came
