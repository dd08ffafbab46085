"""A study's file: what is trained, by which methods, over which grid."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from mpisign.policies import Algorithm
from mpisign.study import fields
from mpisign.study.cell import ATTACKS, AXES, PLACEMENTS, SCHEDULES
from mpisign.study.fields import Fields
from mpisign.study.tasks.metric import ALSO
from mpisign.training.errors import SettingsError

TASKS = ("digits", "quadratic", "text")
OPTIMIZERS = ("sgd", "adamw")
SKIPS = ("none", "auto")
#: What a picture may have along its horizontal axis.
ALONG = ("batch_size", "ranks", "adversaries", "dirichlet", "step", "sent", "digit", "method")
_SHUFFLED = "none"


@dataclass(frozen=True)
class Method:
    """A compressor, the optimizer that it hands votes or means to, and the rates to choose from.

    ``instead``: fields of its cells in place of the grid's, or of their defaults.
    """

    label: str
    compressor: str
    options: dict[str, Any]
    optimizer: str
    optimizer_options: dict[str, Any]
    lr: tuple[float, ...]
    skip: str
    instead: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Every method at every point of ranks x batch_size x dirichlet x adversaries x attack x ...

    Rates are chosen on ``tune_seeds``, by what the task validates with; what is told is of
    ``seeds`` alone. ``also``: what is told beside the task's metric, of ``metric.ALSO``.
    """

    label: str
    task: str
    task_options: dict[str, Any]
    methods: tuple[Method, ...]
    axes: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    steps: int | None
    epochs: int | None
    schedule: str
    warmup: float
    evaluations: int
    along: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A file, read and checked."""

    name: str
    title: str
    about: str
    grids: tuple[Grid, ...]


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    found = resources.files("mpisign.study").joinpath("studies").iterdir()
    return sorted(f.name[:-5] for f in found if f.name.endswith(".toml"))


def load(name: str) -> Study:
    """A study that comes with the package, by its name, or of one's own, by its file's.

    Raises SettingsError that names the file, the key, what was expected and what was there.
    """
    return parse(source(name), Path(name).stem)


def source(name: str) -> str:
    """The text of the file."""
    if name in shipped():
        return (
            resources.files("mpisign.study").joinpath("studies", f"{name}.toml").read_text("utf-8")
        )
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
        top = Fields(source, "", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: no TOML: {error}") from error
    title = top.one("title", "a text", fields.text)
    about = top.one("about", "a text", fields.text, "")
    grids = tuple(_grid(Fields(source, path, table)) for path, table in top.tables("grid"))
    top.done()
    labels = [g.label for g in grids]
    if len(set(labels)) < len(labels):
        raise top.wrong("grid", "a label of its own for each", labels)
    return Study(name, title, about, grids)


def _grid(f: Fields) -> Grid:
    task = f.one("task", f"one of {', '.join(TASKS)}", fields.among(TASKS))
    whole, attacks = "a whole number from", ", ".join(ATTACKS)
    steps = f.one("steps", f"{whole} 1", fields.whole(1), None)
    epochs = f.one("epochs", f"{whole} 1", fields.whole(1), None)
    if (steps is None) == (epochs is None):
        raise f.wrong("steps", "either steps or epochs", {"steps": steps, "epochs": epochs})
    if epochs is not None and task == "quadratic":
        raise f.wrong("epochs", "steps: the quadratic has no epochs", epochs)
    seeds = f.many("seeds", f"{whole} 0", fields.whole(0), [0, 1, 2])
    axes = {
        "ranks": f.many("ranks", f"{whole} 1", fields.whole(1)),
        "batch_size": f.many("batch_size", f"{whole} 1", fields.whole(1), [1]),
        "dirichlet": f.many("dirichlet", f"a number above 0, or {_SHUFFLED!r}", _alpha, _SHUFFLED),
        "adversaries": f.many("adversaries", f"{whole} 0", fields.whole(0), [0]),
        "attack": f.many("attack", f"one of {attacks}", fields.among(ATTACKS), ATTACKS[0]),
        "placement": f.many(
            "placement", f"one of {', '.join(PLACEMENTS)}", fields.among(PLACEMENTS), PLACEMENTS[0]
        ),
    }
    axes["dirichlet"] = tuple(None if a == _SHUFFLED else float(a) for a in axes["dirichlet"])
    assert tuple(axes) == AXES
    if max(axes["adversaries"]) >= min(axes["ranks"]) and max(axes["adversaries"]):
        raise f.wrong("adversaries", f"fewer than {min(axes['ranks'])} ranks", axes["adversaries"])
    if task != "digits" and axes["dirichlet"] != (None,):
        raise f.wrong("dirichlet", f"{_SHUFFLED!r}: {task} has no labels", axes["dirichlet"])
    methods = tuple(_method(Fields(f._source, path, table)) for path, table in f.tables("method"))
    labels = [m.label for m in methods]
    if len(set(labels)) < len(labels):
        raise f.wrong("method", "a label of its own for each", labels)
    also = f.many("also", f"one of {', '.join(ALSO)}", fields.among(tuple(ALSO)), [None])
    also = tuple(name for name in also if name)
    if task != "digits" and also:
        raise f.wrong("also", f"nothing: {task} has nothing else to tell", also)
    grid = Grid(
        label=f.one("label", "a text without commas", fields.label, task),
        task=task,
        task_options=f.one("task_options", "a table", fields.table, {}),
        methods=methods,
        axes=axes,
        seeds=seeds,
        tune_seeds=f.many("tune_seeds", f"{whole} 0", fields.whole(0), [1000]),
        steps=steps,
        epochs=epochs,
        schedule=f.one(
            "schedule", f"one of {', '.join(SCHEDULES)}", fields.among(SCHEDULES), "cosine"
        ),
        warmup=float(f.one("warmup", "a share from 0 to below 1", _share, 0.0)),
        evaluations=f.one("evaluations", f"{whole} 1", fields.whole(1, 1000), 6),
        along=f.one("along", f"one of {', '.join(ALONG)}", fields.among(ALONG), "step"),
        also=also,
    )
    f.done()
    return grid


def _method(f: Fields) -> Method:
    rates = f.many("lr", "a number above 0", fields.number(0))
    compressor = f.one("compressor", "a compressor's name, or none", fields.text)
    method = Method(
        label=f.one("label", "a text without commas", fields.label, compressor),
        compressor=compressor,
        options=f.one("options", "a table", fields.table, {}),
        optimizer=f.one(
            "optimizer", f"one of {', '.join(OPTIMIZERS)}", fields.among(OPTIMIZERS), "sgd"
        ),
        optimizer_options=f.one("optimizer_options", "a table", fields.table, {}),
        lr=tuple(float(r) for r in rates),
        skip=f.one("skip", f"one of {', '.join(SKIPS)}", fields.among(SKIPS), "none"),
        instead=_instead(f),
    )
    f.done()
    return method


def _instead(f: Fields) -> dict[str, Any]:
    algorithms = get_args(Algorithm)
    told = {
        "batch_size": f.one("batch_size", "a whole number from 1", fields.whole(1), None),
        "lying_owners": f.one("lying_owners", "a whole number from 0", fields.whole(0), None),
        "byzantine_f": f.one("byzantine_f", "a whole number from 0", fields.whole(0), None),
        "algorithm": f.one(
            "algorithm", f"one of {', '.join(algorithms)}", fields.among(algorithms), None
        ),
    }
    return {k: v for k, v in told.items() if v is not None}


def _alpha(value: Any) -> bool:
    return value == _SHUFFLED or fields.number(0)(value)


def _share(value: Any) -> bool:
    return value == 0 or fields.number(0, 1)(value)
