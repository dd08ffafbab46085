"""The compressor of a cell, its groups, and the code length of its messages."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mpisign import robust
from mpisign.compressors import COMPRESSORS, Accordion, Compressor, resolve
from mpisign.detox import Groups
from mpisign.detox.worst_case import worst_case
from mpisign.experiments.cell import GROUPED, Cell
from mpisign.experiments.errors import SettingsError
from mpisign.planes import sparse

_REDUNDANCY = 3
_EVERY_EPOCH = 1


def compressor(cell: Cell, groups: Groups | None = None) -> Compressor:
    """The compressor; option f may be "adversaries" or "groups", at most what the rule allows."""
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
        elif isinstance(others := options.get("others"), dict):
            table = dict(others)
            named = table.pop("compressor", "")
            options["others"] = _made(cell, named, table, rows, None)
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


_SCALE = 32  # bits
_FP32 = 32


class CodeLength:
    """Bits of one rank's messages so far, without headers and copies for other ranks."""

    def __init__(self) -> None:
        self.bits = 0

    def of(self, compressor: Compressor) -> Compressor:
        """``compressor``, whose messages count from now on: a bit a coordinate, a scale 32."""
        if isinstance(compressor, Accordion):
            return self._of_both(compressor)
        kind, count = type(compressor), self
        parts: dict[Compressor, Compressor] = {}

        class Counted(kind):  # type: ignore[misc, valid-type]
            def pack(self, grads: Any, states: Any, out: Any, offsets: Any, context: Any) -> Any:
                nans = super().pack(grads, states, out, offsets, context)
                count._add(self, out, [g.numel() for g in grads], offsets)
                return nans

            def of_parameter(self, *of: Any) -> Compressor:
                own: Compressor = super().of_parameter(*of)
                if own is self:
                    return self
                # One object for equal ones: they are in one bucket.
                return parts.setdefault(own, count.of(own))

        Counted.__name__ = Counted.__qualname__ = kind.__name__  # of its repr, which ranks compare
        return Counted(
            **{f.name: getattr(compressor, f.name) for f in fields(compressor) if f.init}
        )

    def _of_both(self, accordion: Accordion) -> Compressor:
        """What votes, and the means: 16 or 32 bits a coordinate."""
        low, count = type(accordion.averaging()), self
        bits = _FP32 if accordion.low == "none" else _FP32 // 2

        class CountedMean(low):  # type: ignore[misc, valid-type]
            def send(self, grad: Any, parameter: Any, state: Any, rate: float) -> Any:
                count.bits += bits * parameter.numel()
                return super().send(grad, parameter, state, rate)

        CountedMean.__name__ = CountedMean.__qualname__ = low.__name__

        class CountedAccordion(Accordion):
            mean = CountedMean

        given = {f.name: getattr(accordion, f.name) for f in fields(accordion) if f.init}
        return CountedAccordion(**given | {"high": self.of(resolve("high", accordion.high))})

    def unpacked(self, compressor: Compressor, lengths: list[int]) -> None:
        """Books a step of a compressor whose messages are no planes that ``pack`` makes."""
        if compressor.aggregate in ("average", "robust", "detox_robust"):
            self.bits += _FP32 * sum(lengths)
        elif compressor.aggregate == "compressed_mean":
            n = sum(lengths)
            self.bits += n + _SCALE * -(-n // (compressor.block or n))

    def _add(self, compressor: Any, out: Any, lengths: list[int], offsets: Any) -> None:
        if not lengths:
            return
        self.bits += _SCALE * sum(map(compressor.scales_of, lengths))
        if out.ndim == 1:
            self.bits += sum(lengths)
            return
        end = 8 * (offsets[-1] - offsets[0]) + lengths[-1]
        planes = out[:, offsets[0] : offsets[-1] + (lengths[-1] + 7) // 8]
        self.bits += 8 * len(sparse.encode(planes.copy(), length=end))
