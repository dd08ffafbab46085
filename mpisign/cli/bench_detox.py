"""``mpisign bench detox``: a step of DETOX beside plain robust rules, as ranks become more."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.cli import numbers

#: The rules of ``mpisign.robust``, which importing this file does not import.
RULES = (
    "mean", "median", "trimmed_mean", "meamed", "geometric_median", "centered_clipping", "krum",
    "multi_krum", "bulyan",
)  # fmt: skip
_MOST = 1024

_DESCRIPTION = """\
Measure what a step of DETOX computes beside plain robust rules, as ranks become more.

All ranks are threads of this process; each steps a mpisign.DistributedOptimizer on gradients that
are given. Votes of signs and robust rules in full precision, each in groups (DETOX) and without;
beside them the rule on the same rows in one place, and ByzFL's where it is installed."""

_EPILOG = """\
the tables:
  work        processor time of a step, all ranks together; +- is half the quartiles' distance
  a rank      work / ranks
  computing   of the work packing, hashing, rules, tallies and unpacking: without messages and
              the Python around them
  clock       what a step took here, where ranks take turns on one core
  sent        bytes that a rank sends
  of plain    work / that of the same rule without groups
  p^1.20      work grows with the ranks p as p^1.20, by least squares; nearly linear: up to 1.25
Ranks that are threads cannot show the time of a real job: divided by the ranks, work is what a
step takes where each has a core of its own and a free wire; "sent" tells what a wire carries.

examples:
  mpisign bench detox                                      about three minutes on an idle machine
  mpisign bench detox --ranks 9,27 --rules multi_krum
  mpisign bench detox --size 1M --ranks 9,15,27,45 --json detox.json --plot detox.png
  mpisign bench detox --markdown docs/measurements.md"""


def add_parser(kinds: Any) -> None:
    """Adds ``detox`` to the subparsers ``kinds``."""
    parser = kinds.add_parser(
        "detox",
        help="a step of DETOX against plain robust rules, by simulated ranks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--ranks",
        metavar="P,P",
        type=_ranks,
        default=(9, 15, 27, 45, 64),
        help="numbers of ranks (default: 9,15,27,45,64)",
    )
    add(
        "--size",
        metavar="N",
        type=numbers.size,
        default=100_000,
        help="parameters of the model, about (default: 100k)",
    )
    add(
        "--rules",
        metavar="NAMES",
        type=lambda text: numbers.names(text, RULES),
        default=("median", "multi_krum", "bulyan"),
        help="robust rules, by commas (default: median,multi_krum,bulyan)",
    )
    add(
        "--redundancy",
        metavar="R",
        type=_redundancy,
        default=3,
        help="ranks of a group, odd (default: 3)",
    )
    add("--steps", metavar="N", type=_count, default=3, help="steps of a turn (default: 3)")
    add("--repeat", metavar="N", type=_count, default=5, help="turns of each (default: 5)")
    add("--json", metavar="FILE", type=Path, help="write every figure to FILE")
    add("--plot", metavar="FILE.png", type=Path, help="draw work over ranks (or .svg, .pdf)")
    add(
        "--markdown",
        metavar="FILE",
        type=Path,
        help="write the tables in Markdown to a new FILE, or between two lines of FILE that read "
        "<!-- mpisign bench detox -->",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measures; the exit status."""
    parser: argparse.ArgumentParser = args.parser
    if (launcher.launched_size() or 1) > 1:
        parser.error("simulates its ranks in one process: start it without a launcher")
    if min(args.ranks) < args.redundancy:
        parser.error(f"--redundancy {args.redundancy} needs as many ranks, got {min(args.ranks)}")
    from mpisign.bench.detox.run import Settings
    from mpisign.bench.detox.run import run as bench

    options = {k: v for k, v in vars(args).items() if k not in ("run", "parser", "command")}
    return bench(Settings(**options), args.command)


def _ranks(text: str) -> tuple[int, ...]:
    parts = (numbers.number(part, 2, _MOST, "ranks") for part in text.split(","))
    return tuple(sorted(set(parts)))


def _redundancy(text: str) -> int:
    value = numbers.number(text, 3, _MOST, "ranks, odd")
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an odd number of ranks")
    return value


def _count(text: str) -> int:
    return numbers.number(text, 1, 10_000, "turns")
