"""Reading a TOML table with checks: errors name the key, what was expected and what was there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpisign.training.errors import SettingsError

Check = Callable[[Any], bool]
_REQUIRED: Any = object()


class Fields:
    """One table at ``path`` of ``source``; every key must be asked for before ``done``."""

    def __init__(self, source: str, path: str, table: Any) -> None:
        self._source, self._path = source, path
        if not isinstance(table, dict):
            raise self.wrong("", "a table", table)
        self._table = table
        self._known: list[str] = []

    def wrong(self, key: str, expected: str, got: Any) -> SettingsError:
        """The error for a value that does not fit."""
        where = f"{self._path}.{key}".strip(".") or "the file"
        return SettingsError(f"{self._source}: {where}: expected {expected}, got {_shown(got)}")

    def given(self, key: str) -> bool:
        """Whether the table has ``key``."""
        return key in self._table

    def one(self, key: str, expected: str, fits: Check, default: Any = _REQUIRED) -> Any:
        """One value."""
        self._known.append(key)
        if key not in self._table:
            if default is _REQUIRED:
                raise SettingsError(
                    f"{self._source}: {f'{self._path}.{key}'.strip('.')}: expected {expected}, "
                    "got nothing"
                )
            return default
        value = self._table[key]
        if not fits(value):
            raise self.wrong(key, expected, value)
        return value

    def many(
        self, key: str, expected: str, fits: Check, default: Any = _REQUIRED
    ) -> tuple[Any, ...]:
        """A list of distinct values, or one value alone."""
        told = f"{expected}, or a list of such"

        def all_fit(value: Any) -> bool:
            return all(fits(v) for v in _listed(value))

        values = _listed(self.one(key, told, all_fit, default))
        if not values or len(set(values)) < len(values):
            raise self.wrong(key, f"{told}, distinct and at least one", values)
        return tuple(values)

    def tables(self, key: str, default: Any = _REQUIRED) -> list[tuple[str, Any]]:
        """An array of tables: path and table of each."""
        found = self.one(
            key, f"tables, [[{key}]]", lambda v: isinstance(v, list) and bool(v), default
        )
        return [(f"{self._path}.{key}[{i}]".strip("."), table) for i, table in enumerate(found)]

    def done(self) -> None:
        """Raises SettingsError if the table has a key that nobody asked for."""
        for key in self._table:
            if key not in self._known:
                raise self.wrong(key, f"no such key (known: {', '.join(self._known)})", key)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def text(value: Any) -> bool:
    """A text that is not empty."""
    return isinstance(value, str) and bool(value)


def label(value: Any) -> bool:
    """A name that a list by commas may hold."""
    return text(value) and "," not in value


def whole(low: int, high: int = 1 << 62) -> Check:
    """A whole number in [low, high]."""
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def number(low: float, high: float = float("inf")) -> Check:
    """A number above ``low`` and below ``high``."""
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and low < v < high


def among(names: tuple[str, ...]) -> Check:
    """One of ``names``."""
    return lambda v: isinstance(v, str) and v in names


def table(value: Any) -> bool:
    """A table."""
    return isinstance(value, dict)
