"""``mpisign bench kernels``: the kernels beside the limits of the machine and the plain ways."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.cli import numbers

KERNELS = (
    "pack", "pack_many", "pack_signum", "pack_lion", "pack_error_feedback", "pack_sparsign",
    "majority", "group_distances", "tally", "weighted_sum", "mean_of_counts", "unpack",
    "unpack_add", "update", "encode", "decode", "calls",
)  # fmt: skip
_SIZES = {"cpu": "1k,32k,1M,25.6M", "cuda": "1M,2^28"}

_DESCRIPTION = """\
Measure packing, voting and unpacking against what this machine's memory can do.

No kernel can be faster than memory delivers its bytes. So each is timed in turns with plain loops
that read, write or copy as many bytes, and beside what one would write without mpisign: NumPy,
CuPy and torch expressions, DeepSpeed's way among them."""

_EPILOG = """\
the table:
  time        median of one call; +- is half the distance between the quartiles (from 3 runs)
  moved       bytes that the operation must read and write, however it is done
  of limit    moved / time, as a share of the machine's read, write or copy speed, median of the
              rounds: near 1.00 is the end, above it what is written overlaps with what is read
              (write, copy: the better of plain and of streaming stores; copied bytes count twice)
  goal        the share this project asks for at 25.6M coordinates, one thread; met or missed
  times one   with several --threads: how many times faster than the first of them (the goal of two
              is 1.6, where memory allows it); memory: how many times faster the limit became; left
              out below 131,072 coordinates, which one thread does alone
  faster than how many times longer the plain ways take: 17x DeepSpeed's way; below 1 it is the
              plain way that is faster: 0.51x packbits(x < 0)

A plane of 25.6M coordinates is 3.2 MB: called again and again with the same one, a kernel would
read its processor's cache, not memory. So calls take turns in copies that exceed four times the
last-level cache (--warm: no copies). Calls below 10,000 coordinates are always cached: there the
cost of the call itself is what counts. The largest size is measured with every option of every
kernel, the others with the usual ones only.

examples:
  mpisign bench kernels                              all, about a minute
  mpisign bench kernels --only pack,unpack           two of them
  mpisign bench kernels --sizes 1M,1G --runs 5       other sizes: 1k, 25.6M, 1e6, 2^28
  mpisign bench kernels --threads 1,2                how threads scale
  mpisign bench kernels --isa portable               code for any processor
  mpisign bench kernels --json all.json --plot ratios.png --markdown table.md
  mpisign bench kernels --device cuda                on a GPU, with CuPy (not tried by us yet)

kernels:
  """


def add_parser(kinds: Any) -> None:
    """Adds ``kernels`` to the subparsers ``kinds``."""
    parser = kinds.add_parser(
        "kernels",
        help="packing, voting and unpacking against the limits of memory",
        description=_DESCRIPTION,
        epilog=_EPILOG + ", ".join(KERNELS[:7]) + ",\n  " + ", ".join(KERNELS[7:]),
    )
    add = parser.add_argument
    add(
        "--sizes",
        metavar="N,N",
        type=numbers.sizes,
        help=f"coordinates (default: {_SIZES['cpu']}; on a GPU {_SIZES['cuda']})",
    )
    add("--only", metavar="NAMES", type=_names, default=(), help="these kernels only, by commas")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    add("--threads", metavar="N,N", type=_threads, default=(1,), help="of the CPU (default: 1)")
    add("--runs", metavar="N", type=_runs, default=15, help="samples of each (default: 15)")
    add("--warm", action="store_true", help="the same data again and again, from the caches")
    add("--all", action="store_true", help="every option of every kernel at every size")
    add("--isa", choices=("avx512", "avx2", "portable"), help="instructions (default: the best)")
    add("--json", metavar="FILE", type=Path, help="write every figure, and the machine, to FILE")
    add(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help="draw the shares of the limits into FILE (or .svg, .pdf): those of the largest size, "
        "with the first number of --threads",
    )
    add(
        "--markdown",
        metavar="FILE",
        type=Path,
        help="write the tables in Markdown to a new FILE, or between two lines of FILE that read "
        "<!-- mpisign bench kernels -->",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measures; the exit status."""
    from mpisign.bench.errors import BenchError

    parser: argparse.ArgumentParser = args.parser
    ranks, rank = launcher.launched_size() or 1, launcher.rank()
    if ranks > 1:
        if rank:  # the first says it for all
            return 0
        parser.error(f"{ranks} processes would disturb each other: run it alone, without launcher")
    if args.device == "cuda" and args.threads != (1,):
        parser.error("--threads is of the CPU: not with --device cuda")
    if args.device == "cuda" and args.isa:
        parser.error("--isa is of the CPU: not with --device cuda")
    options = {k: v for k, v in vars(args).items() if k not in ("run", "parser", "command")}
    options["sizes"] = args.sizes or numbers.sizes(_SIZES[args.device])
    try:
        from mpisign.bench.run import Settings
        from mpisign.bench.run import run as bench

        return bench(Settings(**options), args.command)
    except KeyboardInterrupt:
        print("\nmpisign: interrupted", file=sys.stderr)
        return 130
    except BenchError as error:
        parser.error(str(error))


def _names(text: str) -> tuple[str, ...]:
    return numbers.names(text, KERNELS)


def _threads(text: str) -> tuple[int, ...]:
    each = (numbers.number(part, 1, 1024, "threads") for part in text.split(","))
    return tuple(dict.fromkeys(each))


def _runs(text: str) -> int:
    return numbers.number(text, 1, 10**6, "runs")
