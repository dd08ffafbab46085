"""``mpisign bench robust``: robust rules beside ByzFL's and the limit of memory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.cli import numbers

#: Rules and mixings of ``mpisign.robust``, which importing this file does not import.
RULES = (
    "mean", "median", "trimmed_mean", "meamed", "geometric_median", "centered_clipping", "krum",
    "multi_krum", "bulyan",
)  # fmt: skip
MIXINGS = ("nnm", "bucketing", "clipping")

_DESCRIPTION = """\
Measure every rule of mpisign.robust against ByzFL's, in the same framework and process.

Each call is timed in turns with ByzFL's (where it is installed) and with plain loads that read the
rows once, below which no rule can be; the results are compared."""

_EPILOG = """\
the tables, one a framework:
  time        median of one call; +- is half the distance between the quartiles
  of limit    what reading the rows once takes, by the time: near 1.00 is the end
  ByzFL       what its rule takes on the same rows; times: how many times longer
  goal        2x, or limit where the rule runs at .7 of the speed of memory; met or missed
  differs by  the largest difference of both results, by the largest magnitude

A mixing stands before a rule: nnm+krum, bucketing+median. Alone it gives rows.

examples:
  mpisign bench robust                                     all, some two minutes (idle)
  mpisign bench robust --rules median,nnm+krum --framework torch
  mpisign bench robust --rows 64 --size 100k --threads 2
  mpisign bench robust --json robust.json --markdown docs/measurements.md

rules:
  """


def add_parser(kinds: Any) -> None:
    """Adds ``robust`` to the subparsers ``kinds``."""
    parser = kinds.add_parser(
        "robust",
        help="robust rules against ByzFL's and the limit of memory",
        description=_DESCRIPTION,
        epilog=_EPILOG + ", ".join(RULES[:6]) + ",\n  " + ", ".join((*RULES[6:], *MIXINGS)),
    )
    add = parser.add_argument
    add(
        "--rows",
        metavar="N",
        type=lambda text: numbers.number(text, 1, 4096, "rows"),
        default=20,
        help="vectors (default: 20)",
    )
    add("--size", metavar="N", type=numbers.size, default=10**6, help="coordinates (default: 1M)")
    add(
        "--f",
        metavar="N",
        type=lambda text: numbers.number(text, 0, 4096, "hostile rows"),
        help="hostile rows that rules are made for (default: as many as Bulyan takes, 4 of 20)",
    )
    add(
        "--rules",
        metavar="NAMES",
        type=_names,
        default=(*RULES, *MIXINGS),
        help="these only, by commas",
    )
    add("--framework", choices=("numpy", "torch"), help="one of them (default: both)")
    add("--dtype", choices=("float32", "float64"), default="float32", help="(default: %(default)s)")
    add(
        "--threads",
        metavar="N",
        type=lambda text: numbers.number(text, 1, 1024, "threads"),
        default=1,
        help="of mpisign and torch (default: 1)",
    )
    add(
        "--runs",
        metavar="N",
        type=lambda text: numbers.number(text, 1, 10**6, "runs"),
        default=9,
        help="samples of each (default: 9)",
    )
    add("--json", metavar="FILE", type=Path, help="write every figure, and the machine, to FILE")
    add(
        "--markdown",
        metavar="FILE",
        type=Path,
        help="write the tables in Markdown to a new FILE, or between two lines of FILE that read "
        "<!-- mpisign bench robust -->",
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
    options = {
        k: v for k, v in vars(args).items() if k not in ("run", "parser", "command", "framework")
    }
    options["f"] = max(0, (args.rows - 3) // 4) if args.f is None else args.f
    try:
        from mpisign.bench.stock import torch_there

        both = ("numpy", "torch") if torch_there() else ("numpy",)
        options["frameworks"] = (args.framework,) if args.framework else both
        from mpisign.bench.robust.run import Settings
        from mpisign.bench.robust.run import run as bench

        return bench(Settings(**options), args.command)
    except KeyboardInterrupt:
        print("\nmpisign: interrupted", file=sys.stderr)
        return 130
    except BenchError as error:
        parser.error(str(error))


def _names(text: str) -> tuple[str, ...]:
    """Rules, and mixings alone or before a rule."""
    found = tuple(dict.fromkeys(text.split(",")))
    for name in found:
        *before, last = name.split("+")
        if any(part not in MIXINGS for part in before) or last not in (
            RULES if before else (*RULES, *MIXINGS)
        ):
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {', '.join((*RULES, *MIXINGS))}, nor mixings and a rule "
                "joined by +"
            )
    return found
