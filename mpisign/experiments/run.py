"""Cells of a study by simulated ranks in worker processes, or by the job's ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for
from typing import Any

import numpy as np
import torch

import mpisign
from mpisign import simulation
from mpisign.experiments import files, loop, recipes
from mpisign.experiments.cell import Cell
from mpisign.experiments.plan import Group, due
from mpisign.experiments.results import Results
from mpisign.experiments.tasks import metric
from mpisign.experiments.world import TrainingWorld

_MESSAGE = 8192  # bytes that a cell's settings may take between real ranks

Report = Callable[..., None]  # of ``progress.of_cells``


def simulated(cell: Cell) -> dict[str, Any]:
    """The result of ``cell`` by ranks that are threads of this process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    mpisign.stats().reset()
    ranks = simulation.run(cell.ranks, recipes.named(cell.recipe), cell)
    sent = mpisign.stats().as_dict()["exchange"]["sent"] / cell.ranks
    bits = sum(bits for _, bits in ranks) / cell.ranks
    digests = [done.digest for done, _ in ranks]
    return _result(ranks[0][0], digests, sent, bits, time.perf_counter() - start)


def real(cell: Cell, world: TrainingWorld, comm: mpisign.Communicator) -> dict[str, Any]:
    """The result of ``cell`` by all ranks of ``world``, valid on rank 0. Collective."""
    start = time.perf_counter()
    mpisign.stats().reset()
    own, bits = recipes.named(cell.recipe)(comm, cell)
    totals = [mpisign.stats().as_dict()["exchange"]["sent"], bits]
    sent, bits = world.gather(np.array(totals, dtype=np.float64)).mean(axis=0).tolist()
    digests = world.gather_digests(own.digest)
    return _result(own, digests, sent, bits, time.perf_counter() - start)


def _result(
    first: loop.Trained, digests: Sequence[str], sent: float, bits: float, seconds: float
) -> dict[str, Any]:
    """``sent``: bytes over all steps, headers and copies; ``bits``: code length, each of a rank."""
    if len(set(digests)) != 1 and first.diverged is None:
        raise RuntimeError(f"replicas differ at the end: {digests}")
    steps = first.steps if first.diverged is None else first.diverged + 1
    return {
        "test": _short(first.test),
        "validation": _short(first.validation),
        "diverged": first.diverged,
        "steps": first.steps,
        "parameters": first.parameters,
        "sent": round(sent / steps, 1),
        "bits": round(bits / steps / first.parameters, 4),
        "curve": [(p.step, _short(p.test), _short(p.mean)) for p in first.curve],
        **first.more,
        "digest": digests[0],
        "seconds": round(seconds, 2),
    }


def _short(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")


class _Recorded:
    """Writes results to the file, with what they were measured on, and reports them."""

    def __init__(self, results: Results | None, kind: str, report: Report) -> None:
        self._results, self._report = results, report
        machine = {"version": files.versions(), "machine": files.machine()}
        self._measured_on = {"ranks": kind, **machine}

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Nothing on ranks that have no file."""
        if self._results is None:
            return
        record = {"key": cell.key, "settings": cell.recorded(), **self._measured_on}
        self._results.add({**record, "time": files.now(), "result": result})
        outcome = f"diverged at step {result['diverged']}"
        if result["diverged"] is None:
            outcome = f"{metric(cell.task).name} {metric(cell.task).shown(result['test'])}"
        self._report(cell.name, f"{outcome}, {result['seconds']:.1f} s")


def run_simulated(
    groups: Sequence[Group], results: Results, jobs: int, report: Report
) -> dict[str, str]:
    """Runs what is due, ``jobs`` at a time (0: in this process); errors by the cells' keys."""
    recorded = _Recorded(results, "simulated", report)
    failed: dict[str, str] = {}
    if not jobs:
        while cells := due(groups, results.records):
            report(cells[0].name)
            recorded.add(cells[0], simulated(cells[0]))
        return failed
    running: dict[Future[dict[str, Any]], Cell] = {}
    context = multiprocessing.get_context("spawn")  # a fork of what has threads is no rank
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker) as pool:
        try:
            while True:
                busy = {c.key for c in running.values()} | failed.keys()
                waiting = [c for c in due(groups, results.records) if c.key not in busy]
                for cell in waiting[: jobs - len(running)]:
                    running[pool.submit(simulated, cell)] = cell
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


def run_real(
    groups: Sequence[Group], results: Results | None, world: TrainingWorld, report: Report
) -> None:
    """Runs all cells that are due one after the other, by all ranks of ``world``: collective."""
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
