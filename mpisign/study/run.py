"""Running what is due of a study: by simulated ranks in worker processes, or by the job's ranks."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np

import mpisign
from mpisign.study.cell import Cell
from mpisign.study.plan import Group, due
from mpisign.study.progress import Progress
from mpisign.study.results import Results
from mpisign.training.world import World

_MESSAGE = 8192  # bytes that a cell's settings may take between real ranks


def simulate(
    groups: Sequence[Group], results: Results, jobs: int, progress: Progress
) -> dict[str, str]:
    """Runs all cells that are due, ``jobs`` at a time; what went wrong, by the cells' keys.

    ``jobs`` 0: in this process, where an error goes through to the caller, or to a debugger. Else a
    cell that fails is left out and the others go on. KeyboardInterrupt ends the workers. Raises
    BrokenExecutor if a worker was killed.
    """
    version = versions()
    failed: dict[str, str] = {}
    if not jobs:
        while cells := due(groups, results.records):
            progress.began(cells[0])
            record = _record(cells[0], _simulated(cells[0]), version, "simulated")
            results.add(record)
            progress.ended(cells[0], record)
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
                    progress.began(cell)
                if not running:
                    return failed
                for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                    cell = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenExecutor):
                        raise error
                    if error is None:
                        record = _record(cell, future.result(), version, "simulated")
                        results.add(record)
                        progress.ended(cell, record)
                    else:
                        failed[cell.key] = f"{type(error).__name__}: {error}"
                        progress.failed(cell, failed[cell.key])
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _worker() -> None:
    """Ctrl-C is the parent's business; without a parent there is no work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="mpisign-parent", daemon=True).start()


def _simulated(cell: Cell) -> dict[str, Any]:
    from mpisign.study.record import simulated  # torch: not for whoever only shows results

    return simulated(cell)


def run_real(
    groups: Sequence[Group], results: Results | None, world: World, progress: Progress
) -> None:
    """Runs all cells that are due one after the other, by all ranks of ``world``: collective.

    ``results``: rank 0's, which says what is next; None on the others.
    """
    from mpisign.study.record import real

    version = versions()
    comm = mpisign.Communicator("mpi")
    while True:
        message = np.zeros(_MESSAGE, dtype=np.uint8)
        cells = due(groups, results.records) if results is not None else []
        if cells:
            text = json.dumps(cells[0].as_dict()).encode()
            message[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        told = world.gather(message)[0].tobytes().rstrip(b"\0")
        if not told:
            return
        cell = Cell(**json.loads(told))
        progress.began(cell)
        result = real(cell, world, comm)
        if results is not None:
            record = _record(cell, result, version, "real")
            results.add(record)
            progress.ended(cell, record)


def _record(cell: Cell, result: dict[str, Any], version: str, ranks: str) -> dict[str, Any]:
    return {
        "key": cell.key,
        "settings": cell.told(),
        "ranks": ranks,
        "version": version,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "result": result,
    }


def versions() -> str:
    """What runs: the package, its commit where there is one, torch, Python."""
    command = ["git", "-C", str(Path(mpisign.__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        commit = f" {done.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        commit = ""
    torch = importlib.metadata.version("torch")
    python = platform.python_version()
    return f"mpisign {mpisign.__version__}{commit}, torch {torch}, Python {python}"
