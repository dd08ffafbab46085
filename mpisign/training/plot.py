"""Training curves as a PNG: accuracy against steps, and against bytes sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpisign.training.errors import missing
from mpisign.training.loop import Result

# Okabe and Ito's colours, which colour-blind people tell apart too; dashed: what is compared with,
# in dashes that fill each other's gaps, as all averages give one curve. Votes over MPI and torch do
# so too.
_LOOKS: dict[str, tuple[str, Any]] = {
    "mpi-fp32": ("#56B4E9", (0, (3, 6))),
    "mpi-vote": ("#0072B2", "-"),
    "torch-fp32": ("#000000", (3, (3, 6))),
    "torch-vote": ("#009E73", (0, (2, 2))),
    "horovod-fp32": ("#E69F00", (6, (3, 6))),
    "horovod-counters": ("#CC79A7", "-"),
    "horovod-planes": ("#D55E00", "-"),
}


def check() -> None:
    """Raises SettingsError if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing("matplotlib", error) from error


def write(path: Path, results: Sequence[Result], title: str) -> None:
    """Draws all ways into ``path``; the panel of bytes needs more than one rank."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    sent = any(r.sent > 0 for r in results)
    figure = Figure(figsize=(11 if sent else 6, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if sent else 1, sharey=True, squeeze=False)[0]
    for r in results:
        colour, line = _LOOKS.get(r.way, ("#000000", "-"))
        points = [(p["step"], p["sent"], p["accuracy"]) for p in r.curve]
        steps, bytes_sent, accuracy = zip(*points, strict=True)
        style = {"color": colour, "linestyle": line, "linewidth": 2, "label": r.label}
        panels[0].plot(steps, accuracy, **style)
        if sent:
            # Nothing is sent before the first step, and a logarithm has no place for that.
            panels[1].plot(bytes_sent[1:], accuracy[1:], **style)
            panels[1].plot(bytes_sent[-1:], accuracy[-1:], "o", color=colour, markersize=6)
    panels[0].set(xlabel="steps", ylabel="test accuracy")
    panels[0].set_xlim(left=0)
    panels[0].set_ylim(0, 1)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if sent:
        panels[1].set(xlabel="bytes sent per rank", xscale="log")
        panels[1].xaxis.set_major_formatter(_bytes)
    for panel in panels:
        panel.grid(True, color="#dddddd", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    panels[0].legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


def _bytes(value: float, _position: int | None = None) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:g} {unit}"
        value /= 1000
    return f"{value:g} TB"
