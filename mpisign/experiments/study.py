"""``mpisign study run`` and ``show`` from their options to their results."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from pathlib import Path

from mpisign.experiments import file, files, plan, plot, progress, results, tables
from mpisign.experiments.errors import SettingsError, need
from mpisign.experiments.tables import TextTable, page, show
from mpisign.experiments.world import agreed, join

_WIDTH = 160  # columns where standard output is no terminal


def simulated(args: argparse.Namespace) -> int:
    """Runs what is missing by simulated ranks; 0, or 1 if cells failed."""
    from mpisign.experiments import run  # torch: not for whoever only shows results

    study = _selected(args)
    groups = plan.groups(study)
    need("rich")
    check_methods(groups)
    with results.opened(_path(args, study)) as found:
        total, left = plan.total(groups), plan.missing(groups, found.records)
        if not left:
            print(f"{found.path}: all {total} cells are there", file=sys.stderr)
        with progress.of_cells(total - left, total) as report:
            try:
                failed = run.run_simulated(groups, found, args.jobs, report)
            except BrokenExecutor as error:
                raise SettingsError(
                    "a worker process was killed, by the system if memory ran out: run it again "
                    "with fewer --jobs; what ended is in the results"
                ) from error
        _print(study, results.summaries(groups, found.records))
    print(f"results: {found.path}")
    for why in sorted(set(failed.values())):
        print(f"mpisign study: failed: {why}", file=sys.stderr)
    return 1 if failed else 0


def real(args: argparse.Namespace) -> int:
    """Runs what is missing by the ranks of this job, cells of as many ranks only. Collective."""
    import torch

    from mpisign.experiments import run

    world = join({"mpi"})
    with ExitStack() as stack:

        def prepare() -> tuple[file.Study, results.Results | None]:
            study = plan.of_ranks(_selected(args), world.size)
            check_methods(plan.groups(study))
            if world.rank:
                return study, None
            need("rich")
            return study, stack.enter_context(results.opened(_path(args, study)))

        try:
            study, found = agreed(world, prepare)
        except SettingsError as error:
            if world.rank == 0:
                print(f"mpisign study: error: {error}", file=sys.stderr)
            world.barrier()
            return 2
        torch.set_num_threads(1)
        groups = plan.groups(study)
        total, left = plan.total(groups), plan.missing(groups, found.records if found else {})
        with progress.of_cells(total - left, total, shown=found is not None) as report:
            run.run_real(groups, found, world, report)
        if found is not None:
            _print(study, results.summaries(groups, found.records))
            print(f"results: {found.path}", flush=True)
        world.barrier()
    return 0


def shown(args: argparse.Namespace) -> int:
    """Prints, draws and writes what the results have so far; the exit status."""
    if args.toml:
        print(file.source(args.study), end="")
        return 0
    study = _selected(args)
    need("rich")
    path = _path(args, study)
    found = results.summaries(plan.groups(study), results.read(path))
    if not any(s.records for s in found):
        raise SettingsError(
            f"{path}: no cell that is reported has ended yet: mpisign study run {args.study}"
        )
    if args.table or not (args.plot or args.markdown):
        _print(study, found)
    if args.plot:
        files.check_path("--plot", args.plot)
        need("matplotlib")
        plot.write_study(args.plot, study, found)
        print(f"wrote {args.plot}", file=sys.stderr)
    if args.markdown:
        files.check_path("--markdown", args.markdown)
        parts: list[TextTable | str] = [tables.caption(study, found), *tables.tables(study, found)]
        text = page(f"mpisign study run {args.study}", parts, tables.where(found))
        files.write_between_marks(args.markdown, f"<!-- mpisign study {study.name} -->", text)
        print(f"wrote {args.markdown}", file=sys.stderr)
    return 0


def _selected(args: argparse.Namespace) -> file.Study:
    return plan.selected(file.load(args.study), args.only, args.seeds)


def _print(study: file.Study, found: list[results.Summary]) -> None:
    title = f"[bold]{study.title}[/bold]"
    show([title, *tables.tables(study, found), tables.caption(study, found)], _WIDTH)


def _path(args: argparse.Namespace, study: file.Study) -> Path:
    path: Path = args.results or Path(f"{study.name}.jsonl")
    files.check_path("--results", path)
    return path


def check_methods(groups: list[plan.Group]) -> None:
    """Raises SettingsError for a compressor, an optimizer or a task that cannot be made."""
    from mpisign.experiments import compression, loop, tasks

    checked: set[tuple[str, int]] = set()
    for group in groups:
        cell = group.reported(group.method.lr[0])[0]
        where = f"{group.grid.label}, {group.method.label}"
        if (where, cell.adversaries) in checked:
            continue
        try:
            compression.compressor(cell)
            if where not in {place for place, _ in checked}:
                tasks.build(cell, 0, compression.groups_of(cell, 0))
                loop.check_optimizer(cell)
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from error
        checked.add((where, cell.adversaries))
