"""A study's file: what is trained, by which methods, over which grid."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from mpisign.attacks import ATTACKS
from mpisign.experiments.cell import AXES
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.schema import LABEL, TABLE, TEXT, Kind, among, key, number, read, whole
from mpisign.experiments.tasks.metric import ALSO
from mpisign.policies import Algorithm

TASKS = ("digits", "quadratic", "text")
#: What a picture may have along its horizontal axis.
ALONG = ("batch_size", "ranks", "adversaries", "dirichlet", "step", "sent", "digit", "method")
#: How hostile ranks are spread over groups: drawn anew in every epoch, drawn once, the worst case.
PLACEMENTS = ("random", "once", "worst")
_SHUFFLED = "none"
_RATE = number("a number above 0", 0)
_ALPHA = Kind(
    f"a number above 0, or {_SHUFFLED!r}",
    lambda v: v == _SHUFFLED or _RATE.fits(v),
    lambda v: None if v == _SHUFFLED else float(v),
)
_SHARE = number("a share from 0 to below 1", 0, 1, least=True)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A compressor, the optimizer that it hands votes or means to, and the rates to choose from.

    The last four replace those of the grid, or the defaults, in the method's cells.
    """

    lr: tuple[float, ...] = key(_RATE, many=True)
    compressor: str = key(Kind("a compressor's name, or none", TEXT.fits))
    label: str = key(LABEL, "")
    options: dict[str, Any] = key(TABLE, {})
    optimizer: str = key(among("sgd", "adamw"), "sgd")
    optimizer_options: dict[str, Any] = key(TABLE, {})
    skip: str = key(among("none", "auto"), "none")
    batch_size: int | None = key(whole(1), None)
    lying_owners: int | None = key(whole(0), None)
    byzantine_f: int | None = key(whole(0), None)
    algorithm: str | None = key(among(*get_args(Algorithm)), None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.compressor)

    @property
    def instead(self) -> dict[str, Any]:
        """Fields of its cells in place of the grid's."""
        names = ("batch_size", "lying_owners", "byzantine_f", "algorithm")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every method at every point of ranks x batch_size x dirichlet x adversaries x attack x ...

    Rates are chosen on ``tune_seeds``, by the task's validation; results are of ``seeds`` alone.
    ``also``: what is reported beside the task's metric, of ``metric.ALSO``.
    """

    task: str = key(among(*TASKS))
    steps: int | None = key(whole(1), None)
    epochs: int | None = key(whole(1), None)
    seeds: tuple[int, ...] = key(whole(0), (0, 1, 2), many=True)
    ranks: tuple[int, ...] = key(whole(1), many=True)
    batch_size: tuple[int, ...] = key(whole(1), (1,), many=True)
    dirichlet: tuple[float | None, ...] = key(_ALPHA, (None,), many=True)
    adversaries: tuple[int, ...] = key(whole(0), (0,), many=True)
    attack: tuple[str, ...] = key(among(*ATTACKS), (next(iter(ATTACKS)),), many=True)
    placement: tuple[str, ...] = key(among(*PLACEMENTS), PLACEMENTS[:1], many=True)
    methods: tuple[Method, ...] = key(Method, name="method")
    also: tuple[str, ...] = key(among(*ALSO), (), many=True)
    label: str = key(LABEL, "")
    task_options: dict[str, Any] = key(TABLE, {})
    tune_seeds: tuple[int, ...] = key(whole(0), (1000,), many=True)
    schedule: str = key(among("constant", "cosine"), "cosine")
    warmup: float = key(_SHARE, 0.0)
    evaluations: int = key(whole(1, 1000), 6)
    along: str = key(among(*ALONG), "step")

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.task)

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values along each of ``AXES``."""
        return {axis: getattr(self, axis) for axis in AXES}

    def check(self, wrong: Callable[..., SettingsError]) -> None:
        """Raises SettingsError for values that do not go together."""
        if (self.steps is None) == (self.epochs is None):
            both = {"steps": self.steps, "epochs": self.epochs}
            raise wrong("steps", "either steps or epochs", both)
        if self.epochs is not None and self.task == "quadratic":
            raise wrong("epochs", "steps: the quadratic has no epochs", self.epochs)
        if max(self.adversaries) >= min(self.ranks) and max(self.adversaries):
            raise wrong("adversaries", f"fewer than {min(self.ranks)} ranks", self.adversaries)
        if self.task != "digits" and self.dirichlet != (None,):
            raise wrong("dirichlet", f"{_SHUFFLED!r}: {self.task} has no labels", self.dirichlet)
        if self.task != "digits" and self.also:
            raise wrong("also", f"nothing: {self.task} has nothing else to report", self.also)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A file, read and checked."""

    title: str = key(TEXT)
    about: str = key(TEXT, "")
    grids: tuple[Grid, ...] = key(Grid, name="grid")
    name: str = ""


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    found = resources.files("mpisign.experiments").joinpath("studies").iterdir()
    return sorted(f.name[:-5] for f in found if f.name.endswith(".toml"))


def load(name: str) -> Study:
    """A study that comes with the package, by its name, or another one, by its file's.

    Raises SettingsError that names the file, the key, what was expected and what was there.
    """
    return parse(source(name), Path(name).stem)


def source(name: str) -> str:
    """The text of the file."""
    if name in shipped():
        folder = resources.files("mpisign.experiments").joinpath("studies")
        return folder.joinpath(f"{name}.toml").read_text("utf-8")
    path = Path(name)
    if path.suffix != ".toml":
        raise SettingsError(
            f"study {name!r}: expected one of {', '.join(shipped())}, or a file FILE.toml"
        )
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"study {name}: cannot be read: {error}") from error


def parse(text: str, name: str) -> Study:
    """A study from TOML."""
    source = f"{name}.toml"
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: no TOML: {error}") from error
    return replace(read(Study, source, "", table), name=name)
