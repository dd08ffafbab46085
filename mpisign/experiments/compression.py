"""The compressor of a cell, whose options may depend on its hostile ranks, and its groups."""

from __future__ import annotations

from typing import Any

from mpisign import robust
from mpisign.compressors import COMPRESSORS, Compressor
from mpisign.detox import Groups
from mpisign.detox.worst_case import worst_case
from mpisign.experiments.cell import GROUPED, Cell
from mpisign.experiments.errors import SettingsError

_REDUNDANCY = 3
_EVERY_EPOCH = 1


def compressor(cell: Cell, groups: Groups | None = None) -> Compressor:
    """The compressor; SettingsError for a name or options that no compressor has.

    ``groups``: ``groups_of`` this rank, or None where nothing is run. An option f of "robust" may
    be "adversaries", their number, or "groups", the number of groups that they can own at worst;
    both are reduced to what the rule allows of its rows. ``inner`` of "detox" is a name, or a table
    of a compressor's name and its options.
    """
    return _made(cell, cell.compressor, cell.compressor_options, cell.ranks, groups)


def groups_of(cell: Cell, rank: int) -> Groups | None:
    """The groups of a cell whose compressor has some, as ``rank`` sees them; else None."""
    if cell.compressor != GROUPED:
        if cell.placement is not None:
            raise SettingsError(f"placement: only {GROUPED!r} has groups, not {cell.compressor!r}")
        return None
    redundancy = cell.compressor_options.get("redundancy", _REDUNDANCY)
    try:
        if cell.placement == "worst":
            worst = worst_case(cell.ranks, redundancy, cell.hostile)
            return Groups.of(cell.ranks, rank, redundancy, worst)
        return Groups.of(
            cell.ranks,
            rank,
            redundancy,
            reshuffle_every=None if cell.placement == "once" else _EVERY_EPOCH,
            seed=cell.seed,
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"options of compressor {GROUPED!r}: {error}") from error


def owned(cell: Cell) -> tuple[int, int]:
    """How many groups the hostile ranks own at worst, and how many groups there are."""
    redundancy = cell.compressor_options.get("redundancy", _REDUNDANCY)
    bad = set(cell.hostile)
    groups = worst_case(cell.ranks, redundancy, sorted(bad))
    return sum(2 * len(bad.intersection(g)) > len(g) for g in groups), len(groups)


def _made(
    cell: Cell, name: str, options: dict[str, Any], rows: int, groups: Groups | None
) -> Compressor:
    make = COMPRESSORS.get(name)
    if make is None:
        known = ", ".join(COMPRESSORS)
        raise SettingsError(f"compressor: expected one of {known}, got {name!r}")
    options = dict(options)
    try:
        if name == GROUPED:
            inner = options.get("inner")
            if isinstance(inner, dict):
                table = dict(inner)
                named = table.pop("compressor", "")
                options["inner"] = _made(cell, named, table, owned(cell)[1], None)
            if groups is not None:
                options["groups"] = groups
        elif isinstance(options.get("f"), str):
            options["f"] = _faulty(cell, options["f"], options.get("rule", "median"), rows)
        return make(**options)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"options of compressor {name!r}: {error}") from error


def _faulty(cell: Cell, who: str, rule: str, rows: int) -> int:
    """``who`` in rows, at most what ``rule`` allows of ``rows``."""
    if who == "adversaries":
        f = cell.adversaries
    elif who == "groups":
        f = owned(cell)[0]
    else:
        raise ValueError(f"f must be a number, 'adversaries' or 'groups', got {who!r}")
    for fewer in range(f, 0, -1):
        try:
            robust.by_name(rule, fewer).check(rows)
        except ValueError:
            continue
        return fewer
    return 0
