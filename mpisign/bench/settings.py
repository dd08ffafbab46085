"""What each bench can be asked for: the command line's options are made from these dataclasses.

Nothing here imports NumPy, torch or MPI: ``--help`` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mpisign.bench.training import names

KERNELS = (
    "pack", "pack_many", "pack_signum", "pack_lion", "pack_error_feedback", "pack_sparsign",
    "majority", "group_distances", "tally", "weighted_sum", "mean_of_counts", "unpack",
    "unpack_add", "update", "encode", "decode", "calls",
)  # fmt: skip
VIAS = ("mpi", "torch", "horovod")
ALL_VIAS = "all-that-run"
ALGORITHMS = ("auto", "allgather", "alltoall", "hierarchical", "vote_of_votes")
#: Kinds of rows of ``bench collectives``, in the order of the table.
KINDS = ("vote", "bare", "fp32", "fp16", "packbits", "powersgd", "deepspeed")
#: The rules and mixings of ``mpisign.robust``.
RULES = (
    "mean", "median", "trimmed_mean", "meamed", "geometric_median", "centered_clipping", "krum",
    "multi_krum", "bulyan",
)  # fmt: skip
MIXINGS = ("nnm", "bucketing", "clipping")
Parse = Callable[[Any, str], Any]
Mode = Literal["step", "accuracy", "tune", "memory"]

_HANGS, _HANGS_FROM = 10.0, 60.0  # time limits, seconds after which a collective is given up
_DAY = 86401.0
_TINY = 5e-324  # the smallest float above 0
_MANY = 10**6
_MOST_RANKS = 1024


def option(metavar: str | None, parse: Any, help: str, default: Any = None, **more: Any) -> Any:
    """A field that is an option too.

    ``parse``: ``bool`` for a flag, a tuple of choices, ``Path``, or a function of the module
    ``mpisign.cli.numbers`` and the text.
    """
    return field(
        default=default, metadata={"metavar": metavar, "parse": parse, "help": help, **more}
    )


def _number(low: int, high: int, what: str) -> Parse:
    return lambda n, text: n.number(text, low, high, what)


def _names(known: tuple[str, ...]) -> Parse:
    return lambda n, text: n.names(text, known)


def _size(n: Any, text: str) -> int:
    return int(n.size(text))


def _each(n: Any, text: str, low: int, high: int, what: str) -> tuple[int, ...]:
    """Numbers by commas, each once."""
    return tuple(dict.fromkeys(n.number(part, low, high, what) for part in text.split(",")))


def _seconds(n: Any, text: str) -> float:
    return float(n.bounded(text, float, _TINY, _DAY, "a number of seconds above 0"))


def _rate(n: Any, text: str) -> tuple[str, float]:
    def rate(text: str) -> float:
        return float(text.partition("=")[2])

    what = "a method and its learning rate, such as ddp-signum=1e-4"
    return text.partition("=")[0], n.bounded(text, rate, _TINY, 1e6, what)


def _redundancy(n: Any, text: str) -> int:
    value = int(n.number(text, 3, _MOST_RANKS, "ranks, odd"))
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an odd number of ranks")
    return value


def _rules(n: Any, text: str) -> tuple[str, ...]:
    """Rules, and mixings alone or before a rule."""
    found = tuple(dict.fromkeys(text.split(",")))
    for name in found:
        *before, last = name.split("+")
        known = RULES if before else (*RULES, *MIXINGS)
        if any(part not in MIXINGS for part in before) or last not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {', '.join((*RULES, *MIXINGS))}, nor mixings and a rule "
                "joined by +"
            )
    return found


def _methods(n: Any, text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    try:
        names.methods(found, ("signum",))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go; the mark in ``markdown`` is written by ``mpisign.bench.record``."""

    NAME: ClassVar[str]
    JSON: ClassVar[str] = "write every figure, and the machine, to FILE"
    PLOT: ClassVar[str] = ""
    MARK: ClassVar[str] = ""

    json: Path | None = None
    plot: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True, kw_only=True)
class KernelsSettings(Output):
    """``mpisign bench kernels``."""

    NAME = "kernels"
    PLOT = (
        "draw the shares of the limits into FILE (or .svg, .pdf): those of the largest size, "
        "with the first number of --threads"
    )
    #: By device.
    SIZES: ClassVar = {"cpu": "1k,32k,1M,25.6M", "cuda": "1M,2^28"}

    sizes: tuple[int, ...] = option(
        "N,N",
        lambda n, text: n.sizes(text),
        f"coordinates (default: {SIZES['cpu']}; on a GPU {SIZES['cuda']})",
    )
    only: tuple[str, ...] = option("NAMES", _names(KERNELS), "these kernels only, by commas", ())
    device: str = option(None, ("cpu", "cuda"), "(default: %(default)s)", "cpu")
    threads: tuple[int, ...] = option(
        "N,N", lambda n, text: _each(n, text, 1, 1024, "threads"), "of the CPU (default: 1)", (1,)
    )
    runs: int = option("N", _number(1, _MANY, "runs"), "samples of each (default: 15)", 15)
    warm: bool = option(None, bool, "the same data again and again, from the caches", False)
    all: bool = option(None, bool, "every option of every kernel at every size", False)
    isa: str | None = option(
        None, ("avx512", "avx2", "portable"), "instructions (default: the best)"
    )


@dataclass(frozen=True, kw_only=True)
class Job(Output):
    """Benches between ranks. ``started``: the library that the launcher started ranks for."""

    JSON = "write every figure, and the ranks, to FILE"
    COMMAND: ClassVar[str] = "mpisign bench"

    started: str = ""
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class CollectivesSettings(Job):
    """``mpisign bench collectives``."""

    NAME = "collectives"
    PLOT = "draw times and limits into FILE (or .svg, .pdf)"

    via: tuple[str, ...] = option(
        "NAMES", lambda n, text: (text,) if text == ALL_VIAS else n.names(text, VIAS),
        f"{', '.join(VIAS)}, by commas, or {ALL_VIAS} (default: what the launcher started)",
    )  # fmt: skip
    sizes: tuple[int, ...] = option(
        "N,N", lambda n, text: n.sizes(text), "coordinates (default: 1k,10k,100k,1M,6.5M,25.6M)",
        (1000, 10_000, 100_000, 10**6, 6_500_000, 25_600_000),
    )  # fmt: skip
    algorithms: tuple[str, ...] = option(
        "NAMES", _names(ALGORITHMS), f"of votes, by commas (default: {','.join(ALGORITHMS)})",
        ALGORITHMS,
    )  # fmt: skip
    tensors: int | str = option(
        "N", lambda n, text: text if text == "resnet50" else n.number(text, 1, 100_000, "tensors"),
        "cut the coordinates into N tensors, or as ResNet-50's 161: resnet50 (default: 1)", 1,
    )  # fmt: skip
    only: tuple[str, ...] = option(
        "NAMES", _names(KINDS), f"these rows only, by commas: {', '.join(KINDS)}", ()
    )
    repeat: int = option(
        "N", _number(1, _MANY, "turns"), "turns of each, of 1 to 25 calls (default: 9)", 9
    )
    time_limit: float = option(
        "S", _seconds,
        "seconds that a row may take, after which it takes no more turns; what hangs for ten times "
        "as long, a minute at least, ends the run (default: 10)", 10.0,
    )  # fmt: skip
    cost: Path | None = option(
        "FILE", Path,
        "write what exchanges cost over the first wire to FILE; with MPISIGN_COSTS=FILE "
        'algorithm="auto" uses it, and no communicator measures it again',
    )  # fmt: skip
    beside: Path | None = option(
        "FILE", Path, "show times beside those of an earlier run, which --json wrote to FILE"
    )

    @property
    def hangs(self) -> float:
        """Seconds after which a collective is given up."""
        return max(_HANGS_FROM, _HANGS * self.time_limit)


@dataclass(frozen=True, kw_only=True)
class RobustSettings(Output):
    """``mpisign bench robust``. ``frameworks``: those that are measured."""

    NAME = "robust"

    rows: int = option("N", _number(1, 4096, "rows"), "vectors (default: 20)", 20)
    size: int = option("N", _size, "coordinates (default: 1M)", 10**6)
    f: int = option(
        "N", _number(0, 4096, "hostile rows"),
        "hostile rows that rules are made for (default: as many as Bulyan takes, 4 of 20)",
    )  # fmt: skip
    rules: tuple[str, ...] = option("NAMES", _rules, "these only, by commas", (*RULES, *MIXINGS))
    framework: str | None = option(None, ("numpy", "torch"), "one of them (default: both)")
    dtype: str = option(None, ("float32", "float64"), "(default: %(default)s)", "float32")
    threads: int = option("N", _number(1, 1024, "threads"), "of mpisign and torch (default: 1)", 1)
    runs: int = option("N", _number(1, _MANY, "runs"), "samples of each (default: 9)", 9)
    frameworks: tuple[str, ...] = ("numpy",)


@dataclass(frozen=True, kw_only=True)
class DetoxSettings(Output):
    """``mpisign bench detox``."""

    NAME = "detox"
    PLOT = "draw work over ranks into FILE (or .svg, .pdf)"

    ranks: tuple[int, ...] = option(
        "P,P", lambda n, text: tuple(sorted(_each(n, text, 2, _MOST_RANKS, "ranks"))),
        "numbers of ranks (default: 9,15,27,45,64)", (9, 15, 27, 45, 64),
    )  # fmt: skip
    size: int = option("N", _size, "parameters of the model, about (default: 100k)", 100_000)
    rules: tuple[str, ...] = option(
        "NAMES", _names(RULES), "robust rules, by commas (default: median,multi_krum,bulyan)",
        ("median", "multi_krum", "bulyan"),
    )  # fmt: skip
    redundancy: int = option("R", _redundancy, "ranks of a group, odd (default: 3)", 3)
    steps: int = option("N", _number(1, 10_000, "turns"), "steps of a turn (default: 3)", 3)
    repeat: int = option("N", _number(1, 10_000, "turns"), "turns of each (default: 5)", 5)


@dataclass(frozen=True, kw_only=True)
class ScaleSettings(Output):
    """``mpisign bench scale``."""

    NAME = "scale"
    JSON = "write every figure to FILE"
    PLOT = "draw messages, memory and what auto takes into FILE (or .svg, .pdf)"

    ranks: tuple[int, ...] = option(
        "P,P", lambda n, text: tuple(sorted(_each(n, text, 1, 1 << 16, "ranks"))),
        "numbers of ranks (default: 8,64,512,4096,16384)", (8, 64, 512, 4096, 16_384),
    )  # fmt: skip
    sizes: tuple[int, ...] = option(
        "N,N", lambda n, text: n.sizes(text), "coordinates (default: 1M,10M,100M,1G,10G)",
        (10**6, 10**7, 10**8, 10**9, 10**10),
    )  # fmt: skip
    node: int = option("L", _number(1, 1024, "ranks"), "ranks a node (default: 8)", 8)
    rack: int = option("N", _number(1, 1024, "nodes"), "nodes a rack (default: 16)", 16)
    costs: Path | None = option(
        "FILE", Path, "what exchanges cost, as mpisign bench collectives --cost writes it"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Job):
    """``mpisign bench training``. ``batch_size`` is per rank, ``lr`` by the names of methods."""

    NAME = "training"
    PLOT = "draw them into FILE (or .svg, .pdf)"
    MARK = "<!-- mpisign bench training: step -->, accuracy, tune or memory in place of step"
    #: By mode.
    STEPS: ClassVar = {"step": 8, "accuracy": 80, "tune": 80, "memory": 0}
    METHODS: ClassVar = {
        "step": names.OF_STEPS,
        "accuracy": names.OF_ACCURACY,
        "tune": names.OF_ACCURACY,
        "memory": names.OF_MEMORY,
    }

    ways: tuple[str, ...] = option("A,B", _methods, "these rows only, by commas")
    compression: tuple[str, ...] = option(
        "A,B", _names(names.COMPRESSORS),
        "compressors of front ends that name none (default: signum)", ("signum",),
    )  # fmt: skip
    tune: bool = option(
        None, bool, "compare learning rates by steps to --accuracy", False, exclusive=True
    )
    memory: bool = option(None, bool, "measure memory instead of time", False, exclusive=True)
    accuracy: float = option(
        "A", lambda n, text: n.bounded(text, float, _TINY, 1, "an accuracy above 0 and below 1"),
        "measure the time to this test accuracy, such as 0.95",
    )  # fmt: skip
    parameters: int = option("N", _size, "of the model, at least (default: 10M)", 10**7)
    layers: int = option("N", _number(1, 100, "layers"), "hidden (default: 4)", 4)
    batch_size: int = option("N", _number(1, _MANY, "images"), "per rank (default: 32)", 32)
    init: str = option(
        None, ("he", "torch"),
        "of weights: he suits deep perceptrons; torch: nn.Linear's own (default: he)", "he",
    )  # fmt: skip
    steps: int = option(
        "N", _number(1, _MANY, "steps"),
        "of a turn (default: 8), or of the schedule of --accuracy (default: 80)",
    )  # fmt: skip
    warm_up: int = option(
        "N", _number(1, _MANY, "steps"), "steps before those that count (default: 3)", 3
    )
    repeat: int = option("N", _number(1, _MANY, "rounds"), "(default: 5)", 5)
    seeds: int = option("N", _number(1, 1000, "seeds"), "(default: 3; --tune: 1)")
    every: int = option(
        "N", _number(1, _MANY, "steps"), "steps between evaluations (default: 2)", 2
    )
    lr: dict[str, float] = option(
        "WAY=RATE", _rate,
        "another learning rate for one row, such as ddp-signum=1e-4; may be given again", (),
        repeated=True,
    )  # fmt: skip
    time_limit: float = option(
        "S", _seconds,
        "seconds after which a step that does not end ends the run (default: 120)", 120.0,
    )  # fmt: skip
    mode: Mode = "step"

    @property
    def hangs(self) -> float:
        """Seconds after which a step is given up."""
        return self.time_limit


@dataclass(frozen=True, kw_only=True)
class PredictCheckSettings(Job):
    """``mpisign bench predict``. ``batch_size`` is per rank."""

    NAME = "predict"
    PLOT = "draw predicted over measured steps into FILE (or .svg, .pdf)"

    sizes: tuple[int, ...] = option(
        "N,N", lambda n, text: n.sizes(text), "parameters of models (default: 1M,6.5M,25M)",
        (10**6, 6_500_000, 25_000_000),
    )  # fmt: skip
    layers: int = option("N", _number(1, 100, "layers"), "hidden (default: 4)", 4)
    batch_size: int = option("N", _number(1, 400, "images"), "per rank (default: 32)", 32)
    repeat: int = option("N", _number(1, _MANY, "steps"), "of each, at most (default: 5)", 5)
    time_limit: float = option(
        "S", _seconds, "seconds of steps of a row, after which it has no more (default: 10)", 10.0
    )

    @property
    def hangs(self) -> float:
        """Seconds after which a step is given up."""
        return max(_HANGS_FROM, _HANGS * self.time_limit)
