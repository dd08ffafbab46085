"""``mpisign doctor``: lists what this machine has, what works and what is missing."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.cli.numbers import bounded

_DESCRIPTION = """\
Look at everything that mpisign can use here, try it, and say what is missing and what to do.

Each question is asked in a process of its own with a time limit, so that a library that crashes or
hangs is a line in the table. Under a launcher (mpirun, torchrun, horovodrun, srun) every rank is
asked: rank 0 prints the table, and of the others that in which they differ."""

_EPILOG = """\
the table ({ticks} where the terminal can show these):
  ok        there, and it worked
  -         not there; the line to install it, where there is one
  !         works; what follows the arrow makes it better
  BROKEN    installed, and it does not work

"MPI CUDA-aware, asked" is what the library says of itself, "probed" what became of device memory
that a process sent to itself. "NCCL" is every libnccl in one process with torch and CuPy.
"Communicator()" is what mpisign.Communicator() picks when two ranks are started that way, after a
vote between them.

examples:
  mpisign doctor
  mpisign doctor --json             for programs; --json FILE writes a file beside the table
  mpirun -n 4 mpisign doctor        from inside a job, as it will run
  torchrun --nproc-per-node 4 --no-python mpisign doctor

exit status: 0; 1 if something that is installed does not work; 130 after Ctrl-C"""

_ASCII = {"ok": "ok", "missing": "-", "doubtful": "!", "broken": "BROKEN"}
_TICKS = {"ok": "\N{CHECK MARK}", "missing": "-", "doubtful": "!", "broken": "\N{BALLOT X}"}


def add_parser(commands: Any) -> None:
    """Adds ``doctor`` to the subparsers ``commands``."""
    ticks = ", ".join(_TICKS.values()) if _marks() is _TICKS else "ticks and crosses"
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, what works, what is missing",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(ticks=ticks),
    )
    about = "write all that was found to FILE; to stdout without one, or as -"
    parser.add_argument("--json", metavar="FILE", nargs="?", const=Path("-"), type=Path, help=about)
    about = "for each question (default: %(default)g)"
    parser.add_argument("--seconds", metavar="S", type=_seconds, default=60.0, help=about)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Runs the probes and prints the table; the exit status."""
    from mpisign.doctor import children

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # launchers end ranks by it
    try:
        return _run(args)
    except KeyboardInterrupt:
        children.kill_all()
        if not launcher.rank():
            print("\nmpisign: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from mpisign.doctor import job
    from mpisign.doctor.examine import document, examine
    from mpisign.doctor.ranks import differences

    rank = launcher.rank()
    ranks, started = job.ask_ranks(args.seconds)
    if rank:  # rank 0 examines and prints; of a child that died it knows only that it is silent
        if started.state == "broken" and not started.found.startswith("no answer"):
            print(f"mpisign doctor, rank {rank}: {started.found}", file=sys.stderr)
        return 0
    try:
        rows = examine(args.seconds, rank is not None, lambda name: _progress(f"{name} ..."))
    finally:
        _progress("")
    own = job.rows_of_ranks(ranks) if ranks else []
    place = next(i for i, row in enumerate(rows) if row.name.startswith("Communicator"))
    rows[place:place] = [started, *own]
    report = document(rows, ranks, differences(ranks))
    text = json.dumps(report, indent=1)
    if args.json == Path("-"):
        print(text)
    else:
        if args.json is not None:
            try:
                args.json.write_text(text + "\n")
            except OSError as error:
                args.parser.error(f"--json: {error}")
        print(_table(rows, job.by_host(ranks)))
    return bool(report["broken"])


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _marks() -> dict[str, str]:
    """Ticks and crosses where standard output can show them."""
    try:
        "".join(_TICKS.values()).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _TICKS


def _table(rows: list[Any], hosts: dict[str, list[int]]) -> str:
    from mpisign.doctor.ranks import spans

    marks = _marks()
    wide, mark = max(len(row.name) for row in rows), max(map(len, marks.values()))
    room = max(40, shutil.get_terminal_size((100, 24)).columns - wide - mark - 6)
    lines = [f"mpisign doctor on {platform.node()}"]
    if sum(map(len, hosts.values())) > 1:
        lines += [f"  ranks {spans(of)} on {host}" for host, of in hosts.items()]
    for row in rows:
        text = [
            line
            for part in row.found.split(" | ")
            for line in textwrap.wrap(part, room, break_on_hyphens=False, break_long_words=False)
        ]
        more = textwrap.wrap(f"-> {row.advice}", room, break_on_hyphens=False) if row.advice else []
        first, *others = [*text, *more] or [""]
        lines.append(f"  {marks[row.state]:<{mark}}  {row.name:<{wide}}  {first}")
        lines += [f"  {'':<{mark}}  {'':<{wide}}  {line}" for line in others]
    broken = ", ".join(row.name for row in rows if row.state == "broken")
    lines.append(f"does not work: {broken}" if broken else "what is installed works")
    if doubtful := ", ".join(row.name for row in rows if row.state == "doubtful"):
        lines.append(f"could be better: {doubtful}")
    whole = "\n".join(lines)
    encoding = sys.stdout.encoding or "ascii"  # a path may have what the terminal cannot show
    return whole.encode(encoding, "backslashreplace").decode(encoding)


def _seconds(text: str) -> Any:
    what = "a number of seconds, up to 3600"
    return bounded(text, float, math.nextafter(0, 1), math.nextafter(3600, math.inf), what)
