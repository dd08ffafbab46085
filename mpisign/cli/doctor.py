"""``mpisign doctor``: lists what this machine has, what works and what is missing."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from mpisign import launcher
from mpisign.cli.numbers import bounded

_DESCRIPTION = """\
Look at everything that mpisign can use here, try it, and say what is missing.

Each question is asked in a process of its own with a time limit, so that a library that crashes or
hangs is a line in the table. Started by mpirun, it also lists each rank's host."""

_EPILOG = """\
the table:
  ok        there, and it worked
  missing   not there; the line to install it, where there is one
  BROKEN    installed, and it does not work

"MPI CUDA-aware, asked" is what the library says of itself, "probed" what became of device memory
that a process sent to itself. "Communicator()" is what mpisign.Communicator() picks when two ranks
are started that way, after a vote between them.

examples:
  mpisign doctor
  mpisign doctor --json -           for programs
  mpirun -n 4 mpisign doctor        from inside a job

exit status: 0; 1 if something that is installed does not work"""

_MARKS = {"ok": "ok", "missing": "missing", "broken": "BROKEN"}


def add_parser(commands: Any) -> None:
    """Adds ``doctor`` to the subparsers ``commands``."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, what works, what is missing",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    about = "write all that was found to FILE, - for stdout"
    parser.add_argument("--json", metavar="FILE", type=Path, help=about)
    about = "for each question (default: %(default)g)"
    parser.add_argument("--seconds", metavar="S", type=_seconds, default=60.0, help=about)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Runs the probes and prints the table; the exit status."""
    from mpisign.doctor.examine import Finding, document, examine

    rank = launcher.rank()
    # Without MPI, under horovodrun --gloo or torchrun, ranks are not listed.
    other = os.environ.get("HOROVOD_CONTROLLER") == "gloo" or "TORCHELASTIC_RUN_ID" in os.environ
    ranks, problem = ([], "") if rank is None or other else _ranks()
    if rank:  # rank 0 examines and prints
        return 0

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        rows = examine(args.seconds, rank is not None, lambda name: progress(f"{name} ..."))
    except KeyboardInterrupt:
        print("\nmpisign: interrupted", file=sys.stderr)
        return 130
    finally:
        progress("")
    if problem:
        rows.append(Finding("this job", "broken", problem))
    report = document(rows, ranks)
    text = json.dumps(report, indent=1)
    if args.json == Path("-"):
        print(text)
    else:
        if args.json is not None:
            try:
                args.json.write_text(text + "\n")
            except OSError as error:
                args.parser.error(f"--json: {error}")
        print(_table(rows, report))
    return bool(report["broken"])


def _ranks() -> tuple[list[dict[str, Any]], str]:
    """Each rank's host, or what is wrong with the job. Collective."""
    local = launcher.local_rank()
    mine = np.zeros((), dtype=[("host", "S256"), ("local_rank", "<i8")])
    mine["host"] = platform.node().encode()[:256]
    mine["local_rank"] = -1 if local is None else local
    try:
        from mpi4py import MPI

        launcher.check_world(MPI.COMM_WORLD.Get_size())
    except Exception as error:
        return [], f"{type(error).__name__}: {error}"
    every = np.empty(MPI.COMM_WORLD.Get_size(), dtype=mine.dtype)
    MPI.COMM_WORLD.Allgather([mine, MPI.BYTE], [every, MPI.BYTE])
    MPI.Finalize()  # the others end now, instead of waiting for the first
    ranks = [
        {"host": host.decode(errors="replace"), "local_rank": None if n < 0 else n}
        for host, n in every.tolist()
    ]
    return ranks, ""


def _table(rows: list[Any], report: dict[str, Any]) -> str:
    lines = [f"mpisign doctor on {platform.node()}"]
    wide = max(len(row.name) for row in rows)
    for row in rows:
        text = textwrap.wrap(row.found, 100 - wide - 13, break_on_hyphens=False) or [""]
        lines.append(f"  {row.name:<{wide}}  {_MARKS[row.state]:<7}  {text[0]}")
        more = [*text[1:], *([f"-> {row.advice}"] if row.advice else [])]
        lines += [f"  {'':<{wide}}  {'':<7}  {line}" for line in more]
    for number, rank in enumerate(report["ranks"]):
        lines.append(f"  rank {number}: {rank['host']}, local rank {rank['local_rank']}")
    broken = ", ".join(report["broken"])
    return "\n".join([*lines, f"does not work: {broken}" if broken else "what is installed works"])


def _seconds(text: str) -> Any:
    what = "a number of seconds, up to 3600"
    return bounded(text, float, math.nextafter(0, 1), math.nextafter(3600, math.inf), what)
