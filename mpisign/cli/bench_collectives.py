"""``mpisign bench collectives``: votes beside what others send, over the wires that run here."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.cli import guard, numbers

VIAS = ("mpi", "torch", "horovod")
ALL_VIAS = "all-that-run"
ALGORITHMS = ("auto", "allgather", "alltoall", "hierarchical", "vote_of_votes")
KINDS = ("vote", "fp32", "fp16", "packbits", "powersgd", "deepspeed")
_DAY = 86400.0

_DESCRIPTION = """\
Measure votes between the ranks of this job, end to end: gradient in, vote out.

Beside them, in the same run and over the same wire, what others send: allreduce in fp32 and fp16,
NumPy's packbits, PowerSGD, DeepSpeed's 1-bit collective. All take turns, so that a machine's mood
hits all alike. Start it with your job's launcher; scripts/netlab makes one machine a cluster."""

_EPILOG = """\
the table, one for each size and wire:
  time        median of a call, of the slowest rank each time; +- is half the quartiles' distance
  algbw       4 bytes a coordinate / time, for every row: its fp32 gradient per second
  busbw       bytes that a rank receives / time: for an fp32 allreduce algbw x 2 (p - 1) / p
  sent        bytes that a rank sends, on average; of votes as mpisign.stats() booked them, of
              others as their algorithm must
  on link     bytes counted at each node's network interface, mean of both directions, headers and
              all (only in scripts/netlab)
  limit       what the way's bytes need at the rate of the link: in netlab the one set there, else
              the one measured in this run with plain messages between all ranks
  x limit     time / limit: near 1 is the end
  x fp32      how many times faster than the fp32 allreduce of the same wire; x fp16 likewise
What could not run says why. Before anything is timed, results are compared between the ranks, and
with NumPy's where there is one right result. A run that a goal of this project speaks of says
whether it was met.

examples:
  mpirun -n 4 mpisign bench collectives                      over MPI, about a minute
  torchrun --nproc-per-node 4 --no-python mpisign bench collectives         over Gloo
  horovodrun -np 4 mpisign bench collectives --via horovod   over Horovod
  mpirun -n 4 mpisign bench collectives --via all-that-run   all of them
  scripts/netlab run -- mpirun -n 4 mpisign bench collectives --sizes 25.6M
  ... --sizes 25.6M --tensors resnet50                       as 161 tensors, not as one
  ... --only vote,fp32 --algorithms alltoall                 two rows
  ... --only vote --cost costs.json                          for MPISIGN_COSTS
  ... --json all.json --plot times.png --markdown table.md
(more ranks than cores: mpirun --oversubscribe --bind-to none)"""


def add_parser(kinds: Any) -> None:
    """Adds ``collectives`` to the subparsers ``kinds``."""
    parser = kinds.add_parser(
        "collectives",
        help="votes between ranks against allreduce and others, over MPI, Gloo and Horovod",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--via",
        metavar="NAMES",
        type=_via,
        help=f"{', '.join(VIAS)}, by commas, or {ALL_VIAS} (default: what the launcher started)",
    )
    add(
        "--sizes",
        metavar="N,N",
        type=numbers.sizes,
        default=numbers.sizes("1k,100k,1M,25.6M"),
        help="coordinates (default: 1k,100k,1M,25.6M)",
    )
    add(
        "--algorithms",
        metavar="NAMES",
        type=lambda text: numbers.names(text, ALGORITHMS),
        default=ALGORITHMS,
        help=f"of votes, by commas (default: {','.join(ALGORITHMS)})",
    )
    add(
        "--tensors",
        metavar="N",
        type=_tensors,
        default=1,
        help="cut the coordinates into N tensors, or as ResNet-50's 161: resnet50 (default: 1)",
    )
    add(
        "--only",
        metavar="NAMES",
        type=lambda text: numbers.names(text, KINDS),
        default=(),
        help=f"these rows only, by commas: {', '.join(KINDS)}",
    )
    add("--repeat", metavar="N", type=_repeat, default=9, help="turns of each (default: 9)")
    add(
        "--time-limit",
        metavar="S",
        type=seconds,
        default=10.0,
        help="seconds that a row may take, after which it rests; what hangs for ten times as long, "
        "a minute at least, ends the run (default: 10)",
    )
    add(
        "--cost",
        metavar="FILE",
        type=Path,
        help="write what exchanges cost over the first wire to FILE; MPISIGN_COSTS=FILE tells it "
        'algorithm="auto", and no communicator measures it again',
    )
    add("--json", metavar="FILE", type=Path, help="write every figure, and the ranks, to FILE")
    add(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help="draw times and limits into FILE (or .svg, .pdf)",
    )
    add(
        "--markdown",
        metavar="FILE",
        type=Path,
        help="write the tables in Markdown to a new FILE, or between two lines of FILE that read "
        "<!-- mpisign bench collectives -->",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measures; the exit status."""
    parser: argparse.ArgumentParser = args.parser
    started = started_by()
    if started is None:
        parser.error("needs two ranks or more: mpirun -n 4 mpisign bench collectives")
    guard.end_on_signals(speaker=not rank())

    def job() -> int:
        from mpisign.bench.wire.run import Settings
        from mpisign.bench.wire.run import run as bench

        options = {k: v for k, v in vars(args).items() if k not in ("run", "parser", "command")}
        options["via"] = args.via or (started,)
        return bench(Settings(**options, started=started, rank=rank() or 0), args.command)

    return guard.abort_on_error(job, rank)


def started_by() -> str | None:
    """The wire that the launcher started this process for; None if none did."""
    if os.environ.get("HOROVOD_CONTROLLER") == "gloo":
        return "horovod"
    if launcher.rank() is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return "mpi"
    return "torch" if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else None


def rank() -> int | None:
    """This process's number among all of the job; None if no launcher tells."""
    found = launcher.rank()
    if found is None and os.environ.get("RANK", "").isdecimal():
        found = int(os.environ["RANK"])
    return found


def _via(text: str) -> tuple[str, ...]:
    return (text,) if text == ALL_VIAS else numbers.names(text, VIAS)


def _tensors(text: str) -> int | str:
    return text if text == "resnet50" else numbers.number(text, 1, 100_000, "tensors")


def _repeat(text: str) -> int:
    return numbers.number(text, 1, 10**6, "turns")


def seconds(text: str) -> float:
    """A number of seconds, up to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _DAY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
