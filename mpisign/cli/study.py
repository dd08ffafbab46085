"""``mpisign study``: grids of trainings, resumable, with tables and pictures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.cli import guard, numbers
from mpisign.experiments.errors import SettingsError, missing

_DESCRIPTION = """\
Train one task by many methods over a grid: ranks, batch sizes, splits of the data, hostile ranks,
seeds.

Ranks are simulated: threads of one process, each with its own replica, optimizer and share of the
data, which run the code that real ranks run, so that both end at the same bits."""

_EPILOG = """\
examples:
  mpisign study list                               the studies that come with mpisign
  mpisign study show batch-sizes --toml            what one consists of: a file to copy and change
  mpisign study run batch-sizes                    run it, results in batch-sizes.jsonl
  mpisign study run batch-sizes                    ... again after Ctrl-C: only what is missing
  mpisign study show batch-sizes                   tables of what is there so far
  mpisign study show batch-sizes --plot sizes.png --markdown sizes.md
  mpisign study run my-own.toml --jobs 4           a file of one's own, 4 cells at a time
docs/studies.md explains how to write one, and has the results of those that come with mpisign."""

_RUN_EPILOG = """\
A cell is one training: a method, a rate, a point of the grid, a seed. Where a method has several
rates, all are tried with tune_seeds first and the one that validates best runs with seeds. Each
cell that ends is added to the results at once; cells that are there are not run again. A change of
the file's settings makes new cells, the old ones stay.

examples:
  mpisign study run adversaries --only "quadratic by 7 ranks"     one grid, by its label
  mpisign study run batch-sizes --only sign,none --seeds 0,1,2,3,4
  mpisign study run heterogeneous --results docs/studies/heterogeneous.jsonl
  mpirun -n 4 mpisign study run batch-sizes --real         by the ranks of this job, instead of
                                                           simulated ones: cells of 4 ranks"""


def add_parser(commands: Any) -> None:
    """Adds ``study`` to the subparsers ``commands``."""
    parser = commands.add_parser(
        "study",
        help="run a grid of trainings by simulated or real ranks, and show what came out",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the studies that come with mpisign")
    listing.set_defaults(run=_run, action=_list, parser=listing)
    running = actions.add_parser(
        "run",
        help="run what is missing of a study",
        description="Run the cells of a study that are not in its results yet.",
        epilog=_RUN_EPILOG,
    )
    _add_study(running, _train)
    running.add_argument(
        "--jobs",
        metavar="N",
        type=lambda text: numbers.number(text, 0, 4096, "processes"),
        default=os.cpu_count() or 1,
        help="cells at a time, a process each (default: %(default)s, this machine's cores); 0: in "
        "this process, for a debugger",
    )
    about = "by the ranks that mpirun started, not simulated ones"
    running.add_argument("--real", action="store_true", help=about)
    showing = actions.add_parser(
        "show",
        help="tables and pictures of a study's results",
        description="Show what is in a study's results so far.",
    )
    _add_study(showing, _show)
    add = showing.add_argument
    add("--table", action="store_true", help="print the tables (the default without other options)")
    add("--toml", action="store_true", help="print the study's file")
    add("--plot", metavar="FILE.png", type=Path, help="draw into FILE (or .svg, .pdf)")
    about = (
        "write the tables in Markdown, with the command, the dates and the machine, to a new "
        "FILE, or between two lines of FILE that read <!-- mpisign study NAME -->"
    )
    add("--markdown", metavar="FILE", type=Path, help=about)


def _add_study(parser: argparse.ArgumentParser, action: Callable[..., int]) -> None:
    add = parser.add_argument
    add("study", metavar="NAME|FILE.toml", help="see mpisign study list, or a file of your own")
    about = "lines of JSON, one a cell (default: NAME.jsonl here)"
    add("--results", metavar="FILE", type=Path, help=about)
    about = "these grids or methods, by label"
    add("--only", metavar="A,B", type=lambda text: text.split(","), default=(), help=about)
    add("--seeds", metavar="N,N", type=_seeds, default=(), help="instead of the file's")
    parser.set_defaults(run=_run, action=action, parser=parser)


def _run(args: argparse.Namespace) -> int:
    """Does what was asked for; the exit status."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core a cell
    os.environ.setdefault("MPISIGN_NUM_THREADS", "1")
    parser: argparse.ArgumentParser = args.parser
    try:
        return int(args.action(args))
    except SettingsError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(str(missing(error.name or "a package", error)))
    except KeyboardInterrupt:
        print("\nmpisign: interrupted: what ended is in the results", file=sys.stderr)
        return 130


def _list(args: argparse.Namespace) -> int:
    from mpisign.experiments import file, plan

    for name in file.shipped():
        study = file.load(name)
        print(f"{name:<15} {study.title} ({plan.total(plan.groups(study))} cells)")
    return 0


def _train(args: argparse.Namespace) -> int:
    from mpisign.experiments import study

    if args.real:
        guard.end_on_signals(speaker=not launcher.rank())
        return guard.abort_on_error(lambda: study.real(args), launcher.rank)
    if (launcher.launched_size() or 1) > 1:
        raise SettingsError("a launcher started several ranks: --real runs the study by them")
    return study.simulated(args)


def _show(args: argparse.Namespace) -> int:
    from mpisign.experiments import study

    return study.shown(args)


def _seeds(text: str) -> tuple[int, ...]:
    found = tuple(numbers.number(part, 0, 1 << 62, "a seed") for part in text.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} has a seed twice")
    return found
