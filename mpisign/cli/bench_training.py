"""``mpisign bench training``: whole training steps, with our front ends, with others', without."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpisign.bench.training import names
from mpisign.cli import guard, numbers
from mpisign.cli.bench_collectives import rank, seconds, started_by

_STEPS = {"step": 8, "accuracy": 80, "tune": 80, "memory": 0}
_WAYS = {
    "step": names.OF_STEPS,
    "accuracy": names.OF_ACCURACY,
    "tune": names.OF_ACCURACY,
    "memory": names.OF_MEMORY,
}

_DESCRIPTION = """\
Measure whole training steps between the ranks of this job: what communication costs on top of
forward, backward and update, and how soon a fixed accuracy is reached.

A perceptron learns scikit-learn's digits, as wide as --parameters asks for. All ways take turns in
one run, mpisign's beside what others send and beside the same training without communication.
Start it with your job's launcher; scripts/netlab makes one machine a cluster."""

_EPILOG = """\
ways (--ways takes any of them; a front end alone means one row for each --compression):
  none                 no communication at all: every rank trains for itself
  mpi                  mpisign.DistributedOptimizer(overlap=True): votes during backward, over MPI
  mpi-at-step          the same without overlap: one vote when step() is called
  horovod              mpisign.horovod.DistributedOptimizer
  horovod-unmodified   hvd.DistributedOptimizer(compression=mpisign.horovod.Compression...)
  ddp                  torch's DistributedDataParallel with mpisign.ddp's hook, over Gloo
  horovod-fp32, horovod-fp16               hvd.DistributedOptimizer as it comes
  ddp-fp32, ddp-fp16, ddp-powersgd         DistributedDataParallel, torch's own hooks
  mpi-lion, ddp-ef_sign, horovod-sign ...  a front end with one compressor
compressors: %s

the table of steps:
  step       seconds of a step of the slowest rank, median of the rounds; +- is half the quartiles'
             distance. Ways take turns, another goes first in each round, each begins a new model
             and warms up; the first round does not count
  x none     to the step without communication of the same round, median: 1.00 is free
  x fp16     how many times faster than Horovod's fp16 step of the same round
  on link    bytes counted at each node's interface, mean of both directions (only in netlab)
  sent       bytes that a rank sent of a step, as mpisign.stats() books them
  cpu        processor time of a rank, all of its threads
  replicas   whether all ranks end with the same parameters, bit for bit

the table of --accuracy:
  steps to, seconds to   until the test accuracy is reached, mean over seeds; evaluating is not
                         counted, all else is measured, every step of it
  x fp16                 how many times less time than Horovod with fp16
  final                  accuracy at the end of the schedule, mean; +- half best minus worst seed

the table of --memory:
  state      bytes that a checkpoint holds of momenta and residuals
  traced     peak during a step of what Python's tracemalloc sees, NumPy's memory with it, beyond
             the step without communication; planes: the same in planes, d / 8 bytes
  resident   the same by the kernel, state left out: every library's memory
  limit      one plane and one bucket of gradients, which this project allows itself

examples:
  scripts/netlab run --nodes 4 --rate 1gbit -- mpirun -n 4 mpisign bench training
  ... --ways none,horovod,horovod-fp16 --parameters 20M --batch-size 32
  ... --ways none,mpi,ddp --compression signum,lion,ef_sign
  ... --accuracy 0.95 --seeds 3 --json accuracy.json --plot accuracy.png
  mpirun -n 4 mpisign bench training --tune --ways horovod-fp16,ddp    which learning rates
  ... --accuracy 0.95 --lr ddp-signum=1e-4                            and to take another
  mpirun -n 4 mpisign bench training --memory
(more ranks than cores: mpirun --oversubscribe --bind-to none)

exit status: 0; 1 if replicas differ; 2 for what you can put right"""


def add_parser(kinds: Any) -> None:
    """Adds ``training`` to the subparsers ``kinds``."""
    parser = kinds.add_parser(
        "training",
        help="whole training steps, and time to an accuracy, against fp16, DDP and none",
        description=_DESCRIPTION,
        epilog=_EPILOG % _folded(names.COMPRESSORS),
    )
    add = parser.add_argument
    add("--ways", metavar="A,B", type=_names, help="these rows only, by commas")
    add(
        "--compression",
        metavar="A,B",
        type=lambda text: numbers.names(text, names.COMPRESSORS),
        default=("signum",),
        help="compressors of front ends that name none (default: signum)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--tune", action="store_true", help="compare learning rates by steps to --accuracy"
    )
    mode.add_argument("--memory", action="store_true", help="measure memory instead of time")
    add(
        "--accuracy",
        metavar="A",
        type=_share,
        help="measure the time to this test accuracy, such as 0.95",
    )
    add(
        "--parameters",
        metavar="N",
        type=numbers.size,
        default=10**7,
        help="of the model, at least (default: 10M)",
    )
    add(
        "--layers",
        metavar="N",
        type=_count(1, 100, "layers"),
        default=4,
        help="hidden (default: 4)",
    )
    add(
        "--batch-size",
        metavar="N",
        type=_count(1, 10**6, "images"),
        default=32,
        help="per rank (default: 32)",
    )
    add(
        "--init",
        choices=("he", "torch"),
        default="he",
        help="of weights: he suits deep perceptrons; torch: as nn.Linear comes (default: he)",
    )
    add(
        "--steps",
        metavar="N",
        type=_count(1, 10**6, "steps"),
        help="of a turn (default: 8), or of the schedule of --accuracy (default: 80)",
    )
    add(
        "--warm-up",
        metavar="N",
        type=_count(1, 10**6, "steps"),
        default=3,
        help="steps before those that count (default: 3)",
    )
    add("--repeat", metavar="N", type=_count(1, 10**6, "rounds"), default=5, help="(default: 5)")
    add("--seeds", metavar="N", type=_count(1, 1000, "seeds"), help="(default: 3; --tune: 1)")
    add(
        "--every",
        metavar="N",
        type=_count(1, 10**6, "steps"),
        default=2,
        help="steps between evaluations (default: 2)",
    )
    add(
        "--lr",
        metavar="WAY=RATE",
        type=_rate,
        action="append",
        default=[],
        help="another learning rate for one way, such as ddp-signum=1e-4; may be given again",
    )
    add(
        "--time-limit",
        metavar="S",
        type=seconds,
        default=120.0,
        help="seconds after which a step that does not end ends the run (default: 120)",
    )
    add("--json", metavar="FILE", type=Path, help="write every figure, and the ranks, to FILE")
    add("--plot", metavar="FILE.png", type=Path, help="draw them into FILE (or .svg, .pdf)")
    add(
        "--markdown",
        metavar="FILE",
        type=Path,
        help="write the tables in Markdown to a new FILE, or between two lines of FILE that read "
        "<!-- mpisign bench training: step -->, accuracy, tune or memory in place of step",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measures; the exit status."""
    parser: argparse.ArgumentParser = args.parser
    mode = "tune" if args.tune else "memory" if args.memory else "step"
    if mode == "step" and args.accuracy is not None:
        mode = "accuracy"
    if mode == "memory" and args.accuracy is not None:
        parser.error("argument --accuracy: not allowed with argument --memory")
    given = args.ways or _WAYS[mode]
    if mode == "memory":
        given = (names.NONE, *given)  # beside which memory is told
    ways = names.ways(given, args.compression)
    if mode == "tune":
        ways = tuple(way for way in ways if way.via)
    rates = dict(args.lr)
    unknown = sorted(rates.keys() - {way.name for way in ways})
    if unknown:
        parser.error(f"argument --lr: no way of this run is {unknown[0]!r}")
    if not ways:
        parser.error("argument --ways: none of them communicates")
    started = started_by()
    if started is None:
        parser.error("needs two ranks or more: mpirun -n 4 mpisign bench training")
    guard.end_on_signals(speaker=not rank())

    def job() -> int:
        from mpisign.bench.training.run import run as bench
        from mpisign.bench.training.settings import Settings

        left = ("run", "parser", "command", "ways", "compression", "tune", "memory")
        options = {k: v for k, v in vars(args).items() if k not in left}
        options["mode"], options["lr"] = mode, rates
        options["ways"] = tuple(way.name for way in ways)
        options["steps"] = args.steps or _STEPS[mode]
        options["seeds"] = args.seeds or (1 if mode == "tune" else 3)
        options["accuracy"] = args.accuracy or 0.95
        settings = Settings(**options, started=started, rank=rank() or 0)
        return bench(settings, ways, args.command)

    return guard.abort_on_error(job, rank)


def _names(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    try:
        names.ways(found, ("signum",))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found


def _count(low: int, high: int, what: str) -> Any:
    return lambda text: numbers.number(text, low, high, what)


def _share(text: str) -> float:
    return _float(text, "an accuracy above 0 and below 1", 1.0)


def _rate(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, _float(value, "a way and its learning rate, such as ddp-signum=1e-4", 1e6, text)


def _float(text: str, what: str, high: float, whole: str | None = None) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < high:
        raise argparse.ArgumentTypeError(f"{whole or text!r} is not {what}")
    return value


def _folded(words: tuple[str, ...]) -> str:
    half = (len(words) + 1) // 2
    return ", ".join(words[:half]) + ",\n  " + ", ".join(words[half:])
