"""What ``factorize`` did, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpisign.lowrank.choice import Layer


@dataclass(frozen=True)
class FactorizedWeight:
    """A weight that became thin, or a layer that stayed.

    Args:
        name: of the weight, or of the layer, within the model.
        shape: of the weight, as "3 x (64, 64)" where it is several matrices; "" of what stayed.
        rank: of the factors; 0 of what stayed.
        before, after: parameters, without those that stayed, such as biases.
        reason: why it stayed.

    Example:
        >>> from mpisign.lowrank import FactorizedWeight
        >>> FactorizedWeight("fc.weight", "(64, 64)", 16, 4096, 2048).after
        2048
    """

    name: str
    shape: str = ""
    rank: int = 0
    before: int = 0
    after: int = 0
    reason: str = ""


@dataclass(frozen=True)
class FactorizeReport:
    """What ``factorize`` did; ``str()`` of it is a table.

    Args:
        weights: in the model's order.
        before, after: parameters of the whole model.
        new_states: of weights that are thin: names of those of which an optimizer or compressor
            kept what has no rule, so that their factors start without it.

    Example:
        >>> from mpisign.lowrank import FactorizedWeight, FactorizeReport
        >>> print(FactorizeReport((FactorizedWeight("out", reason="last"),), 650, 650))
        weight  shape  rank  parameters  thin
        out                              stays: last
        model                       650  650 (100.0 %)
    """

    weights: tuple[FactorizedWeight, ...]
    before: int
    after: int
    new_states: tuple[str, ...] = ()

    @property
    def thin(self) -> tuple[FactorizedWeight, ...]:
        """The weights that became thin."""
        return tuple(w for w in self.weights if w.rank)

    def __str__(self) -> str:
        rows = [["weight", "shape", "rank", "parameters", "thin"]]
        for w in self.weights:
            if w.rank:
                rows.append([w.name, w.shape, str(w.rank), f"{w.before:,}", f"{w.after:,}"])
            else:
                rows.append([w.name, "", "", "", f"stays: {w.reason}"])
        share = f"{100 * self.after / max(1, self.before):.1f} %"
        rows.append(["model", "", "", f"{self.before:,}", f"{self.after:,} ({share})"])
        width = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(
                [
                    row[0].ljust(width[0]),
                    row[1].ljust(width[1]),
                    row[2].rjust(width[2]),
                    row[3].rjust(width[3]),
                    row[4],
                ]
            ).rstrip()
            for row in rows
        ]
        if self.new_states:
            lines.append(f"start without state: {', '.join(self.new_states)}")
        return "\n".join(lines)


def report_of(
    layers: Iterable[Layer], before: int, after: int, new_states: Iterable[str]
) -> FactorizeReport:
    """The report on ``layers``."""
    weights: list[FactorizedWeight] = []
    for layer in layers:
        if not layer.matrices:
            weights.append(FactorizedWeight(layer.name or "(model)", reason=layer.reason))
        for x in layer.matrices:
            shape = tuple(x.weight.shape)
            text = str(shape)
            if x.parts > 1:
                text = f"{x.parts} x {(shape[0] // x.parts, *shape[1:])}"
            weights.append(FactorizedWeight(x.name, text, x.rank, x.weight.numel(), x.parameters))
    return FactorizeReport(tuple(weights), before, after, tuple(new_states))
