"""What a task's figure is called, which end of it is good, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """``percent``: a share in [0, 1], written as percent; else three digits."""

    name: str
    higher_is_better: bool
    percent: bool = False

    def told(self, value: float) -> str:
        """``value`` in the unit of the table, without the unit."""
        if self.percent:
            return f"{100 * value:.1f}"
        return f"{value:.1f}" if 100 <= value < 1e4 else f"{value:.3g}"

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name}, %" if self.percent else self.name


_METRICS = {
    "digits": Metric("test accuracy", higher_is_better=True, percent=True),
    "quadratic": Metric("f at the end", higher_is_better=False),
    "text": Metric("bits per character, held out", higher_is_better=False),
}


def metric(task: str) -> Metric:
    """The metric of a task, known without torch."""
    return _METRICS[task]
