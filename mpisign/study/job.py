"""``mpisign study run`` and ``show`` from their options to their results."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

from mpisign.bench.errors import BenchError
from mpisign.bench.files import check_path, write_between_marks
from mpisign.study import file, plan, plot, results, run, summary, table
from mpisign.study.progress import Progress
from mpisign.training.errors import SettingsError, missing
from mpisign.training.world import World, agreed, join


def simulated(args: argparse.Namespace) -> int:
    """Runs what is missing by simulated ranks; 0, or 1 if cells failed."""
    study = plan.selected(file.load(args.study), args.only, args.seeds)
    groups = plan.groups(study)
    _check_rich()
    _check_methods(groups)
    path = _path(args, study)
    with results.Results(path) as found:
        left = plan.missing(groups, found.records)
        if not left:
            print(f"{path}: all {plan.total(groups)} cells are there", file=sys.stderr)
        with Progress(plan.total(groups) - left, plan.total(groups)) as progress:
            try:
                failed = run.simulate(groups, found, args.jobs, progress)
            except BrokenExecutor as error:
                raise SettingsError(
                    "a worker process was killed, by the system if memory ran out: run it again "
                    "with fewer --jobs; what ended is in the results"
                ) from error
        table.show(study, summary.summaries(groups, found.records))
    print(f"results: {path}")
    for why in sorted(set(failed.values())):
        print(f"mpisign study: failed: {why}", file=sys.stderr)
    return 1 if failed else 0


def real(args: argparse.Namespace) -> int:
    """Runs what is missing by the ranks of this job, cells of as many ranks only. Collective."""
    world = join({"mpi"})

    def prepare() -> tuple[file.Study, results.Results | None]:
        study = plan.selected(file.load(args.study), args.only, args.seeds)
        study = plan.of_ranks(study, world.size)
        _check_methods(plan.groups(study))
        if world.rank:
            return study, None
        _check_rich()
        return study, results.Results(_path(args, study)).__enter__()

    try:
        study, found = agreed(world, prepare)
    except SettingsError as error:
        if world.rank == 0:
            print(f"mpisign study: error: {error}", file=sys.stderr)
        world.barrier()
        return 2
    return _real(study, found, world)


def _real(study: file.Study, found: results.Results | None, world: World) -> int:
    import torch

    torch.set_num_threads(1)
    groups = plan.groups(study)
    done, total = 0, plan.total(groups)
    if found is not None:
        done = total - plan.missing(groups, found.records)
    with Progress(done, total, shown=found is not None) as progress:
        run.run_real(groups, found, world, progress)
    if found is not None:
        table.show(study, summary.summaries(groups, found.records))
        print(f"results: {found.path}", flush=True)
    world.barrier()
    return 0


def show(args: argparse.Namespace) -> int:
    """Prints, draws and writes what the results have so far; the exit status."""
    if args.toml:
        print(file.source(args.study), end="")
        return 0
    study = plan.selected(file.load(args.study), args.only, args.seeds)
    _check_rich()
    path = _path(args, study)
    groups = plan.groups(study)
    found = summary.summaries(groups, results.read(path))
    if not any(s.records for s in found):
        raise SettingsError(
            f"{path}: no cell that is reported has ended yet: mpisign study run {args.study}"
        )
    if args.table or not (args.plot or args.markdown):
        table.show(study, found)
    if args.plot:
        _check_path("--plot", args.plot)
        plot.write(args.plot, study, found)
        print(f"wrote {args.plot}", file=sys.stderr)
    if args.markdown:
        _check_path("--markdown", args.markdown)
        text = table.markdown(study, found, f"mpisign study run {args.study}")
        try:
            write_between_marks(args.markdown, f"<!-- mpisign study {study.name} -->", text)
        except BenchError as error:
            raise SettingsError(str(error)) from error
        print(f"wrote {args.markdown}", file=sys.stderr)
    return 0


def _path(args: argparse.Namespace, study: file.Study) -> Path:
    path: Path = args.results or Path(f"{study.name}.jsonl")
    _check_path("--results", path)
    return path


def _check_path(option: str, path: Path) -> None:
    try:
        check_path(option, path)
    except BenchError as error:
        raise SettingsError(str(error)) from error


def _check_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise missing("rich", error) from error


def _check_methods(groups: list[plan.Group]) -> None:
    """Raises SettingsError for a compressor, an optimizer or a task that cannot be made."""
    from mpisign.study import tasks, train

    checked: dict[str, set[int]] = {}
    for group in groups:
        cell = group.told(group.method.lr[0])[0]
        where = f"{group.grid.label}, {group.method.label}"
        known = checked.setdefault(where, set())
        if cell.adversaries in known:
            continue
        try:
            train.compressor(cell)
            if not known:
                tasks.build(cell, 0, train.groups_of(cell, 0))
                train.check_optimizer(cell)
            known.add(cell.adversaries)
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from error
