"""A study's file: dataclasses from TOML tables of methods and of the grids that they run on."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from mpisign.attacks import ATTACKS
from mpisign.experiments.cell import AXES
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.recipes import RECIPES
from mpisign.experiments.tasks import ALSO, IMAGES
from mpisign.policies import Algorithm

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a predicate, and what it is converted to."""

    words: str
    fits: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value

    def read(self, given: Any, many: bool, wrong: Callable[[str, Any], SettingsError]) -> Any:
        """``given`` converted; ``many``: one or a list of distinct values, to a tuple."""
        words = f"{self.words}, or a list of such" if many else self.words
        listed = given if many and isinstance(given, list) else [given]
        if not all(map(self.fits, listed)):
            raise wrong(words, given)
        if many and len(set(listed)) < max(1, len(listed)):
            raise wrong(f"{words}, distinct and at least one", listed)
        converted = tuple(map(self.convert, listed))
        return converted if many else converted[0]


TEXT = Kind("a text", lambda v: isinstance(v, str) and bool(v))
LABEL = Kind("a text without commas", lambda v: TEXT.fits(v) and "," not in v)
TABLE = Kind("a table", lambda v: isinstance(v, dict))


def whole(low: int, high: int = 1 << 62) -> Kind:
    """A whole number in [low, high]."""
    return Kind(f"a whole number from {low}", lambda v: type(v) is int and low <= v <= high)


def number(words: str, low: float, high: float = math.inf, least: bool = False) -> Kind:
    """A number above ``low``, or ``low`` too if ``least``, and below ``high``."""
    return Kind(
        words, lambda v: type(v) in (int, float) and (low < v < high or least and v == low), float
    )


def among(*names: str) -> Kind:
    """One of ``names``."""
    return Kind(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def key(kind: Any, default: Any = MISSING, *, many: bool = False, name: str = "") -> Any:
    """A field read from a TOML key: of a Kind (``many``: or a list), or a dataclass's tables."""
    more: dict[str, Any] = {"default": default}
    if isinstance(default, dict):
        more = {"default_factory": dict}
    return field(metadata={"kind": kind, "many": many, "name": name}, **more)


def read(cls: type[T], source: str, path: str, table: Any) -> T:
    """``cls`` from ``table`` at ``path`` of ``source``; SettingsError, also from its ``check``."""

    def wrong(name: str, expected: str, got: Any) -> SettingsError:
        where = f"{path}.{name}".strip(".") or "the file"
        text = "nothing" if got is MISSING else repr(got)
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        return SettingsError(f"{source}: {where}: expected {expected}, got {shown}")

    if not isinstance(table, dict):
        raise wrong("", "a table", table)
    known = {f.metadata["name"] or f.name: f for f in fields(cls) if f.metadata}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise wrong(name, f"no such key (known: {', '.join(known)})", name)
    values: dict[str, Any] = {}
    for name, f in known.items():
        kind, given = f.metadata["kind"], table.get(name, MISSING)
        if isinstance(kind, type):
            if not isinstance(given, list) or not given:
                raise wrong(name, f"tables, [[{name}]]", given)
            at = f"{path}.{name}".strip(".")
            made: tuple[Any, ...] = tuple(
                read(kind, source, f"{at}[{i}]", each) for i, each in enumerate(given)
            )
            labels = [each.label for each in made]
            if len(set(labels)) < len(labels):
                raise wrong(name, "a label of its own for each", labels)
            values[f.name] = made
        elif given is not MISSING or f.default is f.default_factory is MISSING:
            values[f.name] = kind.read(given, f.metadata["many"], partial(wrong, name))
    whole_table = cls(**values)
    if hasattr(whole_table, "check"):
        whole_table.check(wrong)
    return whole_table


TASKS = ("digits", "fashion-mnist", "quadratic", "text")
#: What a picture may have along its horizontal axis.
ALONG = (
    *("batch_size", "ranks", "adversaries", "dirichlet"),
    *("step", "round", "sent", "bits", "bytes", "digit", "method"),
)
#: How hostile ranks are spread over groups: drawn anew in every epoch, drawn once, the worst case.
PLACEMENTS = ("random", "once", "worst")
_SHUFFLED = "none"
_RATE = number("a number above 0", 0)
_ALPHA = Kind(
    f"a number above 0, or {_SHUFFLED!r}",
    lambda v: v == _SHUFFLED or _RATE.fits(v),
    lambda v: None if v == _SHUFFLED else float(v),
)
_SHARE_OF_RANKS = number("a share of the ranks above 0 and below 1", 0, 1)
_SHARE = number("a share from 0 to below 1", 0, 1, least=True)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A compressor, its optimizer and recipe, the rates to choose from.

    The last six replace the grid's.
    """

    lr: tuple[float, ...] = key(_RATE, many=True)
    compressor: str = key(Kind("a compressor's name, or none", TEXT.fits))
    label: str = key(LABEL, "")
    curve: str = key(LABEL, "")
    options: dict[str, Any] = key(TABLE, {})
    optimizer: str = key(among("sgd", "adamw", "muon"), "sgd")
    optimizer_options: dict[str, Any] = key(TABLE, {})
    skip: str = key(among("none", "auto"), "none")
    recipe: str = key(among(*RECIPES), "exchange")
    recipe_options: dict[str, Any] = key(TABLE, {})
    steps: int | None = key(whole(1), None)
    batch_size: int | None = key(whole(1), None)
    lying_owners: int | None = key(whole(0), None)
    byzantine_f: int | None = key(whole(0), None)
    algorithm: str | None = key(among(*get_args(Algorithm)), None)
    participation: float | None = key(_SHARE_OF_RANKS, None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.compressor)
        object.__setattr__(self, "curve", self.curve or self.label)

    @property
    def instead(self) -> dict[str, Any]:
        """Fields of its cells in place of the grid's."""
        names = ("steps", "batch_size", "lying_owners", "byzantine_f", "algorithm", "participation")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every method at every point of ``AXES``; rates are chosen on ``tune_seeds`` alone."""

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
    schedule: str = key(among("constant", "cosine", "stairs"), "cosine")
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
        if self.steps is None and any(m.steps for m in self.methods):
            raise wrong("method.steps", "none in a grid of epochs", [m.steps for m in self.methods])
        if max(self.adversaries) and any(m.participation for m in self.methods):
            named = [m.participation for m in self.methods]
            raise wrong("method.participation", "none beside adversaries", named)
        if self.epochs is not None and self.task == "quadratic":
            raise wrong("epochs", "steps: the quadratic has no epochs", self.epochs)
        if max(self.adversaries) >= min(self.ranks) and max(self.adversaries):
            raise wrong("adversaries", f"fewer than {min(self.ranks)} ranks", self.adversaries)
        if self.task not in IMAGES and self.dirichlet != (None,):
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
    """A study that comes with the package, by its name, or another one, by its file's."""
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
