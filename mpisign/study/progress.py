"""How far a study is: a bar on a terminal, else a line for each cell that ends."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from mpisign.study.cell import Cell
from mpisign.study.tasks import metric


class Progress:
    """Speaks on standard error; silent unless ``shown``. ``done`` of ``total`` cells are there."""

    def __init__(self, done: int, total: int, shown: bool = True) -> None:
        self._done, self._total, self._shown = done, total, shown
        self._running: dict[str, str] = {}
        self._bar: Any = None
        self._task: Any = None
        if shown and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def began(self, cell: Cell) -> None:
        """``cell`` is under way."""
        self._running[cell.key] = name(cell)
        self._describe()

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        """``cell`` is in the file."""
        result = record["result"]
        if result["diverged"] is not None:
            told = f"diverged at step {result['diverged']}"
        else:
            told = f"{metric(cell.task).name} {metric(cell.task).told(result['test'])}"
        self._over(cell, f"{told}, {result['seconds']:.1f} s")

    def failed(self, cell: Cell, why: str) -> None:
        """``cell`` ended with an error."""
        self._over(cell, f"FAILED: {why}")

    def _over(self, cell: Cell, told: str) -> None:
        self._done += 1
        self._running.pop(cell.key, None)
        line = f"{self._done} of {self._total}: {name(cell)}: {told}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
            self._bar.update(self._task, completed=self._done)
            self._describe()
        elif self._shown:
            print(line, file=sys.stderr, flush=True)

    def _describe(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=" | ".join(self._running.values()))


def name(cell: Cell) -> str:
    """A cell for people."""
    told = [f"{cell.task} {cell.compressor} lr {cell.lr:g}", f"{cell.ranks} ranks"]
    if cell.task != "quadratic":
        told.append(f"batch {cell.batch_size}")
    if cell.dirichlet is not None:
        told.append(f"alpha {cell.dirichlet:g}")
    if cell.adversaries:
        told.append(f"{cell.adversaries} {cell.attack}")
    return ", ".join([*told, f"seed {cell.seed}"])


def _bar() -> Any:
    from rich import console, progress

    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
        console=console.Console(stderr=True),
    )
