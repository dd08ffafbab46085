"""Notices through a key-value store, for wires whose launcher keeps one."""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Protocol

from mpisign.errors import WireError
from mpisign.transports.base import NOTICE

#: Requests a second of all ranks together.
_REQUESTS = 1000
_PAUSE = 10.0  # seconds without requests after the store failed


class Store(Protocol):
    """Bytes by key, shared by all ranks; OSError or RuntimeError if it cannot be reached."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes | None:
        """None for a key that has no value yet; does not wait."""


class Mailbox:
    """``Transport.post`` and ``Transport.notices`` over a store of this transport's own.

    Rank r's n-th notice has the key ``r.n``; ``bell`` then holds the newest key. ``notices`` is one
    request while the bell has not changed. It returns nothing within ``interval`` seconds of the
    last request, or as long as it takes to keep the load on the store low.
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
        """Stores a notice; one that the store refuses is lost. ValueError if too long."""
        if len(notice) > NOTICE:
            raise ValueError(f"a notice holds at most {NOTICE} bytes, got {len(notice)}")
        name = f"{self._rank}.{self._posted}"
        try:
            self._store.put(name, notice)
            self._store.put("bell", name.encode())
            self._posted += 1
        except (OSError, RuntimeError, HTTPException):
            pass  # most likely the launcher has ended, and all ranks soon will

    def notices(self) -> list[tuple[int, bytes]]:
        """New notices; WireError, naming the rank, for one that is too long."""
        if time.monotonic() < self._next:
            return []
        found: list[tuple[int, bytes]] = []
        try:
            bell = self._store.get("bell")
            if bell != self._bell:
                for rank in self._read:
                    found += self._from(rank)
                self._bell = bell
            self._next = time.monotonic() + self._interval
        except (OSError, RuntimeError, HTTPException):
            self._next = time.monotonic() + _PAUSE
        return found

    def _from(self, rank: int) -> list[tuple[int, bytes]]:
        found = []
        while (notice := self._store.get(f"{rank}.{self._read[rank]}")) is not None:
            self._read[rank] += 1
            if len(notice) > NOTICE:
                raise WireError(
                    f"a notice of {len(notice)} bytes from rank {rank}: at most {NOTICE}"
                )
            found.append((rank, notice))
        return found
