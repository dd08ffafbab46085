"""Dataclasses from TOML tables: errors name the key, what was expected and what was there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from mpisign.experiments.errors import SettingsError

T = TypeVar("T")
_ABSENT: Any = object()  # what is given for a key that a table does not have


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a predicate, and what it is converted to."""

    words: str
    fits: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value


TEXT = Kind("a text", lambda v: isinstance(v, str) and bool(v))
LABEL = Kind("a text without commas", lambda v: TEXT.fits(v) and "," not in v)
TABLE = Kind("a table", lambda v: isinstance(v, dict))


def whole(low: int, high: int = 1 << 62) -> Kind:
    """A whole number in [low, high]."""
    return Kind(
        f"a whole number from {low}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def number(words: str, low: float, high: float = math.inf, least: bool = False) -> Kind:
    """A number above ``low``, or ``low`` too if ``least``, and below ``high``."""

    def fits(v: Any) -> bool:
        if isinstance(v, bool) or not isinstance(v, int | float):
            return False
        return low < v < high or (least and v == low)

    return Kind(words, fits, float)


def among(*names: str) -> Kind:
    """One of ``names``."""
    return Kind(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def key(kind: Any, default: Any = MISSING, *, many: bool = False, name: str = "") -> Any:
    """A field read from a TOML key, ``name`` if it is not the field's own.

    ``kind``: a Kind, or the dataclass of an array of tables. ``many``: a list of distinct values,
    or one value alone, becomes a tuple. ``default``: what the dataclass holds if the key is absent.
    """
    more: dict[str, Any] = {} if default is MISSING else {"default": default}
    if isinstance(default, dict):
        more = {"default_factory": dict}
    return field(metadata={"kind": kind, "many": many, "name": name}, **more)


def read(cls: type[T], source: str, path: str, table: Any) -> T:
    """``cls`` from ``table``, which stands at ``path`` of ``source``.

    A ``check`` of ``cls`` gets the table's values by name, and a function that makes the error of a
    key. Raises SettingsError.
    """

    def wrong(name: str, expected: str, got: Any) -> SettingsError:
        where = f"{path}.{name}".strip(".") or "the file"
        text = "nothing" if got is _ABSENT else repr(got)
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        return SettingsError(f"{source}: {where}: expected {expected}, got {shown}")

    if not isinstance(table, dict):
        raise wrong("", "a table", table)
    names: list[str] = []
    values: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if "kind" not in f.metadata:
            continue
        kind, many = f.metadata["kind"], f.metadata["many"]
        name = f.metadata["name"] or f.name
        names.append(name)
        given = table.get(name, _ABSENT)
        if isinstance(kind, type):
            if not isinstance(given, list) or not given:
                raise wrong(name, f"tables, [[{name}]]", given)
            at = f"{path}.{name}".strip(".")
            made: tuple[Any, ...] = tuple(
                read(kind, source, f"{at}[{i}]", of) for i, of in enumerate(given)
            )
            labels = [each.label for each in made]
            if len(set(labels)) < len(labels):
                raise wrong(name, "a label of its own for each", labels)
            values[f.name] = made
            continue
        words = f"{kind.words}, or a list of such" if many else kind.words
        if given is _ABSENT:
            if f.default is MISSING and f.default_factory is MISSING:
                raise wrong(name, words, given)
            continue
        if not many:
            if not kind.fits(given):
                raise wrong(name, words, given)
            values[f.name] = kind.convert(given)
            continue
        listed = given if isinstance(given, list) else [given]
        if not all(map(kind.fits, listed)):
            raise wrong(name, words, given)
        if not listed or len(set(listed)) < len(listed):
            raise wrong(name, f"{words}, distinct and at least one", listed)
        values[f.name] = tuple(map(kind.convert, listed))
    for name in table:
        if name not in names:
            raise wrong(name, f"no such key (known: {', '.join(names)})", name)
    whole_table = cls(**values)
    check: Callable[[Any], None] = getattr(whole_table, "check", lambda wrong: None)
    check(wrong)
    return whole_table
