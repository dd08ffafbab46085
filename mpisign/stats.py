"""What this process packed, sent, counted and waited for: bytes, calls and seconds per stage."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, field

_LOCK = threading.Lock()
STAGES = ("pack", "exchange", "vote", "unpack")


@dataclass
class Stage:
    """One stage's totals. ``sent`` and ``received``: payload bytes that left and reached this rank.

    What a rank keeps for itself does not count. A wire's own reduction (allreduce) hides its
    messages: it is booked as the ring it is at best, 2 (p - 1) / p of the buffer each way.
    """

    calls: int = 0
    seconds: float = 0.0
    sent: int = 0
    received: int = 0


@dataclass
class Stats:
    """Totals of the process since its start or the last ``reset``."""

    stages: dict[str, Stage] = field(default_factory=lambda: {s: Stage() for s in STAGES})

    def add(
        self, stage: str, *, calls: int = 1, seconds: float = 0.0, sent: int = 0, received: int = 0
    ) -> None:
        """Books one call; KeyError for an unknown stage."""
        with _LOCK:  # simulated ranks are threads of one process
            s = self.stages[stage]
            s.calls += calls
            s.seconds += seconds
            s.sent += sent
            s.received += received

    def reset(self) -> None:
        """Sets every total to zero."""
        for name in self.stages:
            self.stages[name] = Stage()

    def as_dict(self) -> dict[str, dict[str, float]]:
        """``{stage: {"calls", "seconds", "sent", "received"}}``."""
        return {name: asdict(stage) for name, stage in self.stages.items()}

    def table(self) -> str:
        """The totals as text, a row a stage."""
        lines = [f"{'stage':<10}{'calls':>10}{'seconds':>12}{'sent B':>16}{'received B':>16}"]
        for name, s in self.stages.items():
            lines.append(f"{name:<10}{s.calls:>10}{s.seconds:>12.4f}{s.sent:>16}{s.received:>16}")
        return "\n".join(lines)

    __str__ = table


_STATS = Stats()


def stats() -> Stats:
    """The totals of this process."""
    return _STATS


class stage:
    """``with stage(name):`` books one call of a stage and the seconds of the block."""

    __slots__ = ("_name", "_start")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        _STATS.add(self._name, seconds=time.perf_counter() - self._start)
