"""Running what is due of a study: simulated ranks in worker processes, or the job's ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for
from typing import Any

import mpisign
from mpisign.experiments import files
from mpisign.experiments.cell import Cell
from mpisign.experiments.plan import Group, due
from mpisign.experiments.results import Results
from mpisign.experiments.tasks.metric import metric
from mpisign.experiments.world import World

_MESSAGE = 8192  # bytes that a cell's settings may take between real ranks

Report = Callable[..., None]  # of ``progress.of_cells``


class _Recorded:
    """Writes results to the file, with what they were measured on, and reports them."""

    def __init__(self, results: Results | None, kind: str, report: Report) -> None:
        self._results, self._kind, self._report = results, kind, report
        self._measured_on = {"version": files.versions(), "machine": files.machine()}

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Nothing on ranks that have no file."""
        if self._results is None:
            return
        self._results.add(
            {
                "key": cell.key,
                "settings": cell.recorded(),
                "ranks": self._kind,
                **self._measured_on,
                "time": files.now(),
                "result": result,
            }
        )
        if result["diverged"] is not None:
            outcome = f"diverged at step {result['diverged']}"
        else:
            outcome = f"{metric(cell.task).name} {metric(cell.task).shown(result['test'])}"
        self._report(cell.name, f"{outcome}, {result['seconds']:.1f} s")


def simulate(
    groups: Sequence[Group], results: Results, jobs: int, report: Report
) -> dict[str, str]:
    """Runs all cells that are due, ``jobs`` at a time; returns errors by the cells' keys.

    ``jobs`` 0: in this process, where an error reaches the caller, or a debugger. Else a cell that
    fails is left out and the others go on. KeyboardInterrupt ends the workers. Raises
    BrokenExecutor if a worker was killed.
    """
    recorded = _Recorded(results, "simulated", report)
    failed: dict[str, str] = {}
    if not jobs:
        while cells := due(groups, results.records):
            report(cells[0].name)
            recorded.add(cells[0], _simulated(cells[0]))
        return failed
    running: dict[Future[dict[str, Any]], Cell] = {}
    context = multiprocessing.get_context("spawn")  # a fork of what has threads is no rank
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker) as pool:
        try:
            while True:
                busy = {c.key for c in running.values()} | failed.keys()
                waiting = [c for c in due(groups, results.records) if c.key not in busy]
                for cell in waiting[: jobs - len(running)]:
                    running[pool.submit(_simulated, cell)] = cell
                    report(cell.name)
                if not running:
                    return failed
                for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                    cell, error = running.pop(future), future.exception()
                    if isinstance(error, BrokenExecutor):
                        raise error
                    if error is None:
                        recorded.add(cell, future.result())
                    else:
                        failed[cell.key] = f"{type(error).__name__}: {error}"
                        report(cell.name, f"FAILED: {failed[cell.key]}")
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="mpisign-parent", daemon=True).start()


def _simulated(cell: Cell) -> dict[str, Any]:
    from mpisign.experiments.record import simulated  # torch: not for whoever only shows results

    return simulated(cell)


def run_real(
    groups: Sequence[Group], results: Results | None, world: World, report: Report
) -> None:
    """Runs all cells that are due one after the other, by all ranks of ``world``: collective.

    ``results``: of rank 0, which decides what is next; None on the others.
    """
    from mpisign.experiments.record import real

    recorded = _Recorded(results, "real", report)
    comm = mpisign.Communicator("mpi")
    while True:
        cells = due(groups, results.records) if results is not None else []
        text = json.dumps(cells[0].as_dict()) if cells else ""
        settings = world.gather_texts(text, _MESSAGE)[0]
        if not settings:
            return
        cell = Cell(**json.loads(settings))
        report(cell.name)
        recorded.add(cell, real(cell, world, comm))
