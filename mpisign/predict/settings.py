"""What ``mpisign predict`` can be asked for; nothing here imports NumPy, torch or MPI."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mpisign.bench.settings import Job, option

#: Of mpisign.predict.models.
NAMES = ("resnet50", "bert-large", "gpt2-xl", "llama-8b")
_THOUSANDS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_MOST_RANKS = 1 << 16
_HOUR = 3.6e6  # ms


def bandwidth(text: str) -> float:
    """``10gbit``, ``10Gb/s`` or ``1.25GB/s`` in bytes per second: b is a bit, B a byte.

    Raises:
        argparse.ArgumentTypeError: it is none of these.

    Example:
        >>> bandwidth("10gbit"), bandwidth("2 GB/s")
        (1250000000.0, 2000000000.0)
    """
    found = re.fullmatch(r"(\d+\.?\d*) ?([kmgtKMGT]?)([bB]it|b|B)(/s|ps)?", text.strip())
    value = float(found[1]) * _THOUSANDS[found[2].lower()] if found else 0.0
    if not found or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a bandwidth, such as 10gbit or 2GB/s")
    return value if found[3] == "B" else value / 8


def latency(text: str) -> float:
    """``20us`` or ``0.1ms`` in seconds.

    Raises:
        argparse.ArgumentTypeError: it is none of these.

    Example:
        >>> latency("20us")
        2e-05
    """
    found = re.fullmatch(r"(\d+\.?\d*) ?(ns|us|ms|s)", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a latency, such as 20us or 0.1ms")
    return float(f"{float(found[1]) * _TIMES[found[2]]:.12g}")


def _bandwidths(n: Any, text: str) -> tuple[float, ...]:
    return tuple(sorted({bandwidth(part) for part in text.split(",")}))


def _ranks(n: Any, text: str) -> tuple[int, ...]:
    found = {n.number(part, 2, _MOST_RANKS, "ranks") for part in text.split(",")}
    return tuple(sorted(found))


def _model(n: Any, text: str) -> str | int:
    if text in NAMES:
        return text
    try:
        return int(n.size(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(NAMES)}, and no number of parameters such as 25.6M"
        ) from None


def _ms(n: Any, text: str) -> float:
    return float(n.bounded(text, float, 0.0, _HOUR, "a number of milliseconds"))


def _at_least_one(n: Any, text: str) -> float:
    return float(n.bounded(text, float, 1.0, 100.0, "a factor from 1"))


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Job):
    """``mpisign predict``. ``started``: the library that the launcher started ranks for, if any."""

    NAME: ClassVar[str] = "predict"
    COMMAND = "mpisign"
    JSON = "write every figure to FILE"
    PLOT = "draw seconds per step over bandwidths into FILE (or .svg, .pdf)"
    MARK = "<!-- mpisign predict -->"

    model: str | int | None = option(
        "MODEL", _model,
        f"{', '.join(NAMES)}, or a number of parameters such as 350M (default: resnet50, or the "
        "model of --script)",
    )  # fmt: skip
    ranks: tuple[int, ...] = option(
        "P,P", _ranks, "numbers of ranks (default: 8,32,128)", (8, 32, 128)
    )
    ranks_per_node: int = option(
        "L", lambda n, text: n.number(text, 1, 1024, "ranks"),
        "ranks that share a node's link (default: 1)", 1,
    )  # fmt: skip
    bandwidth: tuple[float, ...] = option(
        "B,B", _bandwidths,
        "of a node's link, each way: 10gbit, 2GB/s (default: 1gbit,10gbit,100gbit, and what is "
        "measured between the nodes of this job)",
    )  # fmt: skip
    latency: float | None = option(
        "T", lambda n, text: latency(text),
        "of an exchange between nodes: 20us (default: measured)",
    )  # fmt: skip
    compute_ms: float | None = option(
        "MS", _ms, "a step of the model on one rank without communication (default: 0: only the "
        "exchange is predicted)",
    )  # fmt: skip
    backward_ms: float | None = option(
        "MS", _ms, "of it the backward pass, which --overlap hides exchanges behind (default: two "
        "thirds: it has two products for each one of the forward pass)",
    )  # fmt: skip
    script: str | None = option(
        "'FILE ARGS'", lambda n, text: text,
        "measure three steps of this training script instead of --model and --compute-ms",
    )  # fmt: skip
    overlap: bool = option(
        None, bool, "buckets travel while backward computes others, as DDP's do", False
    )
    gamma: float = option(
        "G", _at_least_one,
        "how many times longer backward takes beside an exchange (default: 1; the paper measured "
        "1.04 to 1.1)", 1.0,
    )  # fmt: skip
    powersgd_rank: int = option(
        "R", lambda n, text: n.number(text, 1, 1024, "rows"), "of PowerSGD (default: 4)", 4
    )
    device: str = option(
        None, ("cpu", "cuda"), "where gradients are packed (default: %(default)s)", "cpu"
    )
    results: list[Path] = option(
        "FILE", Path,
        "take what FILE has instead of measuring it: --json of mpisign bench kernels or mpisign "
        "bench collectives, or --cost of the latter; may be given again", (), repeated=True,
        flag="--from",
    )  # fmt: skip
