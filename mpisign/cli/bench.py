"""``mpisign bench``: options made from the settings of each bench, and how each one starts."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.bench import settings as s
from mpisign.bench.training import names
from mpisign.cli import bench_help, guard, numbers
from mpisign.experiments.errors import missing

_BENCHES = (
    s.KernelsSettings,
    s.CollectivesSettings,
    s.RobustSettings,
    s.DetoxSettings,
    s.ScaleSettings,
    s.TrainingSettings,
    s.PredictCheckSettings,
)


def add_parser(commands: Any) -> None:
    """Adds ``bench`` to the subparsers ``commands``."""
    bench = commands.add_parser(
        "bench",
        help="measure: kernels, collectives, robust rules, DETOX, scale, training, predictions",
        description="Measure what mpisign does on this machine.",
        epilog="mpisign bench WHAT --help tells more about each.",
    )
    kinds = bench.add_subparsers(metavar="WHAT", required=True)
    for kind in _BENCHES:
        short, description, epilog = bench_help.TEXTS[kind.NAME]
        parser = kinds.add_parser(kind.NAME, help=short, description=description, epilog=epilog)
        add_options(parser, kind)
        parser.set_defaults(run=run, parser=parser, kind=kind)


def add_options(parser: argparse.ArgumentParser, kind: type[s.Output]) -> None:
    """Adds an option for each field of ``kind`` that is one, and those of the output."""
    exclusive = None
    for field in dataclasses.fields(kind):
        group: Any = parser
        if field.metadata.get("exclusive"):
            group = exclusive = exclusive or parser.add_mutually_exclusive_group()
        if field.metadata:
            _add_option(group, field)
    add = parser.add_argument
    add("--json", metavar="FILE", type=Path, help=kind.JSON)
    if kind.PLOT:
        add("--plot", metavar="FILE.png", type=Path, help=kind.PLOT)
    mark = kind.MARK or f"<!-- mpisign bench {kind.NAME} -->"
    into = "write the tables in Markdown to a new FILE, or between two lines of FILE that read "
    add("--markdown", metavar="FILE", type=Path, help=into + mark)


def _add_option(group: Any, field: dataclasses.Field[Any]) -> None:
    meta = field.metadata
    name, parse = meta.get("flag") or f"--{field.name.replace('_', '-')}", meta["parse"]
    given: dict[str, Any] = {"help": meta["help"], "default": field.default}
    if parse is bool:
        given["action"] = "store_true"
    elif isinstance(parse, tuple):
        given["choices"] = parse
    else:
        given["metavar"] = meta["metavar"]
        given["type"] = parse if parse is Path else lambda text: parse(numbers, text)
    if meta.get("repeated"):
        given.update(action="append", default=[])
    group.add_argument(name, dest=field.name, **given)


def run(args: argparse.Namespace) -> int:
    """Measures; the exit status."""
    kind: type[s.Output] = args.kind
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(kind) if f.name in args}
    resolve = {
        s.KernelsSettings: _kernels,
        s.RobustSettings: _robust,
        s.DetoxSettings: _detox,
        s.TrainingSettings: _training,
    }
    if issubclass(kind, s.Job):
        return _job(args, resolve.get(kind), given)
    parser: argparse.ArgumentParser = args.parser
    ranks, own = launcher.launched_size() or 1, launcher.rank()
    if ranks > 1 and own:  # rank 0 prints the error
        return 0
    if ranks > 1 and kind is s.DetoxSettings:
        parser.error("simulates its ranks in one process: start it without a launcher")
    if ranks > 1:
        parser.error(f"{ranks} processes would disturb each other: run it alone, without launcher")
    from mpisign.experiments.errors import SettingsError

    try:
        if kind in resolve:
            resolve[kind](args, given)
        return _module(kind).run(kind(**given), args.command)
    except KeyboardInterrupt:
        print("\nmpisign: interrupted", file=sys.stderr)
        return 130
    except SettingsError as error:
        parser.error(str(error))


def _module(kind: type[s.Output]) -> Any:
    """Where a bench's ``run(settings, command)`` is: imported late, as it imports torch or MPI."""
    inner = (
        kind.NAME if kind.NAME in ("robust", "detox", "scale", "predict") else f"{kind.NAME}.run"
    )
    return importlib.import_module(f"mpisign.bench.{inner}")


def _kernels(args: argparse.Namespace, given: dict[str, Any]) -> None:
    if args.device == "cuda" and args.threads != (1,):
        args.parser.error("--threads is of the CPU: not with --device cuda")
    if args.device == "cuda" and args.isa:
        args.parser.error("--isa is of the CPU: not with --device cuda")
    given["sizes"] = args.sizes or numbers.sizes(s.KernelsSettings.SIZES[args.device])


def _robust(args: argparse.Namespace, given: dict[str, Any]) -> None:
    from mpisign.bench.kernels.stock import torch_there

    given["f"] = max(0, (args.rows - 3) // 4) if args.f is None else args.f
    both = ("numpy", "torch") if torch_there() else ("numpy",)
    given["frameworks"] = (args.framework,) if args.framework else both


def _detox(args: argparse.Namespace, given: dict[str, Any]) -> None:
    if min(args.ranks) < args.redundancy:
        fewest = min(args.ranks)
        args.parser.error(f"--redundancy {args.redundancy} needs as many ranks, got {fewest}")


def _training(args: argparse.Namespace, given: dict[str, Any]) -> None:
    error = args.parser.error
    mode = "tune" if args.tune else "memory" if args.memory else "step"
    if mode == "step" and args.accuracy is not None:
        mode = "accuracy"
    if mode == "memory" and args.accuracy is not None:
        error("argument --accuracy: not allowed with argument --memory")
    wanted = args.ways or s.TrainingSettings.METHODS[mode]
    if mode == "memory":
        wanted = (names.NONE, *wanted)  # the base of the memory of the others
    methods = names.methods(wanted, args.compression)
    if mode == "tune":
        methods = tuple(method for method in methods if method.via)
    rates = dict(args.lr)
    unknown = sorted(rates.keys() - {method.name for method in methods})
    if unknown:
        error(f"argument --lr: no method of this run is {unknown[0]!r}")
    if not methods:
        error("argument --ways: none of them communicates")
    given.update(
        mode=mode,
        lr=rates,
        ways=tuple(method.name for method in methods),
        steps=args.steps or s.TrainingSettings.STEPS[mode],
        seeds=args.seeds or (1 if mode == "tune" else 3),
        accuracy=args.accuracy or 0.95,
    )


def _job(args: argparse.Namespace, resolve: Any, given: dict[str, Any]) -> int:
    """A bench between the ranks that a launcher started."""
    if resolve is not None:
        resolve(args, given)
    started = started_by()
    if started is None:
        name = args.kind.NAME
        args.parser.error(f"needs two ranks or more: mpirun -n 4 mpisign bench {name}")
    if args.kind is s.CollectivesSettings:
        given["via"] = args.via or (started,)
    guard.end_on_signals(speaker=not rank())

    def job() -> int:
        settings = args.kind(**given, started=started, rank=rank() or 0)
        try:
            module = _module(args.kind)
        except ModuleNotFoundError as error:
            args.parser.error(str(missing(error.name or "a package", error)))
        return int(module.run(settings, args.command))

    return guard.abort_on_error(job, rank)


def started_by() -> str | None:
    """The library that the launcher started this process for; None without a launcher."""
    if os.environ.get("HOROVOD_CONTROLLER") == "gloo":
        return "horovod"
    if launcher.rank() is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return "mpi"
    return "torch" if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else None


def rank() -> int | None:
    """This process's rank in the job; None if it is unknown."""
    found = launcher.rank()
    if found is None and os.environ.get("RANK", "").isdecimal():
        found = int(os.environ["RANK"])
    return found
