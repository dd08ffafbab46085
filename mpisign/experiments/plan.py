"""Which cells a study consists of, and which of them can be run by now."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mpisign.experiments.cell import GROUPED, Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.file import Grid, Method, Study
from mpisign.experiments.tasks import metric

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """One method at one point of a grid: cells that differ in rate and seed alone."""

    grid: Grid
    method: Method
    point: dict[str, Any]

    @cached_property
    def tuning(self) -> dict[float, list[Cell]]:
        """By rate, the cells that choose among rates; none where there is one rate."""
        rates = self.method.lr if len(self.method.lr) > 1 else ()
        return {lr: [self._cell(lr, s) for s in self.grid.tune_seeds] for lr in rates}

    def reported(self, lr: float) -> list[Cell]:
        """The cells that are reported, at the rate chosen."""
        return [self._cell(lr, seed) for seed in self.grid.seeds]

    def rate(self, records: Mapping[str, Record]) -> float | None:
        """The rate that validates best, on average over ``tune_seeds``; None: not known yet."""
        if not self.tuning:
            return self.method.lr[0]
        means = {}
        for lr, cells in self.tuning.items():
            if not all(c.key in records for c in cells):
                return None
            means[lr] = sum(_validated(self.grid.task, records[c.key]) for c in cells)
        best = max(means.values())
        return min(lr for lr, mean in means.items() if mean == best)

    def edge(self, lr: float) -> str:
        """Which end of the rates tried ``lr`` is: a better one may lie beyond."""
        if len(self.method.lr) < 2:
            return ""
        return {min(self.method.lr): "lowest", max(self.method.lr): "highest"}.get(lr, "")

    def _cell(self, lr: float, seed: int) -> Cell:
        point = dict(self.point)
        if self.method.compressor != GROUPED:  # one cell for all placements
            point["placement"] = None
        grid = ("task", "task_options", "steps", "epochs", "schedule", "warmup", "evaluations")
        method = (
            "compressor",
            "optimizer",
            "optimizer_options",
            "skip",
            "recipe",
            "recipe_options",
        )
        shared = {name: getattr(self.grid, name) for name in grid}
        shared |= {name: getattr(self.method, name) for name in method}
        shared["compressor_options"] = self.method.options
        if self.method.steps is not None:
            shared["epochs"] = None
        return Cell(**{**shared, "lr": lr, "seed": seed, **point, **self.method.instead})


def _validated(task: str, record: Record) -> float:
    """Larger is better; what diverged is worst."""
    value = record["result"]["validation"]
    if value is None or record["result"]["diverged"] is not None:
        return float("-inf")
    return float(value) if metric(task).higher_is_better else -float(value)


def groups(study: Study) -> list[Group]:
    """All of them, in the order of the file."""
    return [
        Group(grid, method, point)
        for grid in study.grids
        for point in points(grid)
        for method in grid.methods
    ]


def points(grid: Grid) -> Iterator[dict[str, Any]]:
    """All combinations of the axes; without adversaries there is one attack and placement: none."""
    for values in itertools.product(*grid.axes.values()):
        point = dict(zip(grid.axes, values, strict=True))
        if point["adversaries"] == 0:
            if any(point[axis] != grid.axes[axis][0] for axis in ("attack", "placement")):
                continue
            point["attack"] = point["placement"] = None
        yield point


def due(groups: Sequence[Group], records: Mapping[str, Record]) -> list[Cell]:
    """Cells that are not in ``records`` and depend on none that is missing; none twice."""
    found: dict[str, Cell] = {}
    for group in groups:
        cells = [c for of in group.tuning.values() for c in of]
        lr = group.rate(records)
        if lr is not None:
            cells += group.reported(lr)
        found |= {c.key: c for c in cells if c.key not in records}
    return list(found.values())


def missing(groups: Sequence[Group], records: Mapping[str, Record]) -> int:
    """How many of ``total`` are not in ``records``."""
    tuning = {c.key for g in groups for of in g.tuning.values() for c in of}
    rates = [(g, g.rate(records)) for g in groups]
    final = {c.key for g, lr in rates if lr is not None for c in g.reported(lr)}
    return total(groups) - len(tuning & records.keys()) - len(final & records.keys())


def total(groups: Sequence[Group]) -> int:
    """How many cells there are in all; groups share those that differ in placement alone."""
    tuning = {c.key for g in groups for of in g.tuning.values() for c in of}
    # Any rate will do for counting: groups that share cells choose the same.
    final = {c.key for g in groups for c in g.reported(g.method.lr[0])}
    return len(tuning) + len(final)


def selected(study: Study, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> Study:
    """What ``only`` names of ``study``, grids or methods by label or compressor; with ``seeds``."""
    named = {g.label for g in study.grids}
    named |= {n for g in study.grids for m in g.methods for n in (m.label, m.compressor)}
    for name in only:
        if name not in named:
            raise SettingsError(f"--only {name}: is none of {', '.join(sorted(named))}")
    grids = []
    for grid in study.grids:
        methods = tuple(
            m
            for m in grid.methods
            if not only or not {grid.label, m.label, m.compressor}.isdisjoint(only)
        )
        if methods:
            grids.append(replace(grid, methods=methods, seeds=tuple(seeds) or grid.seeds))
    return replace(study, grids=tuple(grids))


def of_ranks(study: Study, size: int) -> Study:
    """The part of ``study`` whose cells have ``size`` ranks; SettingsError if there is none."""
    grids = tuple(replace(grid, ranks=(size,)) for grid in study.grids if size in grid.ranks)
    if not grids:
        sizes = sorted({n for g in study.grids for n in g.ranks})
        raise SettingsError(
            f"--real: expected {' or '.join(map(str, sizes))} ranks, as the study has, got {size}"
        )
    return replace(study, grids=grids)
