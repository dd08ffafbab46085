"""ByzFL's rules, called as its users call them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from mpisign.experiments.errors import SettingsError

_NAMES = {
    "mean": "Average",
    "median": "Median",
    "trimmed_mean": "TrMean",
    "meamed": "Meamed",
    "geometric_median": "GeometricMedian",
    "centered_clipping": "CenteredClipping",
    "krum": "Krum",
    "multi_krum": "MultiKrum",
    "nnm": "NNM",
    "bucketing": "Bucketing",
    "clipping": "Clipping",
}
_WITH_F = ("TrMean", "Meamed", "Krum", "MultiKrum", "NNM")
HINT = "pip install --no-deps byzfl==0.0.11 scipy"


def aggregators() -> Any:
    """The module of ByzFL's rules, or None without ByzFL.

    ByzFL's package imports torchvision and seaborn, its rules do not: they are imported from a
    stand-in for the package, with the same path.
    """
    if "byzfl" not in sys.modules:
        found = importlib.util.find_spec("byzfl")
        if found is None or any(
            importlib.util.find_spec(name) is None for name in ("scipy", "torch")
        ):
            return None
        package = types.ModuleType("byzfl")
        package.__path__ = list(found.submodule_search_locations or [])
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def rule(module: Any, name: str, f: int) -> Callable[[Any], Any] | None:
    """ByzFL's rule, or chain of rules, of a name of ``mpisign.robust``; None if it has none."""
    parts = name.split("+")
    if any(not hasattr(module, _NAMES.get(part, "")) for part in parts):
        return None
    steps = [_made(module, part, f) for part in parts]

    def chain(rows: Any) -> Any:
        for step in steps:
            rows = step(rows)
        return rows

    return steps[0] if len(steps) == 1 else chain


def installed_rule(name: str, f: int) -> Callable[[Any], Any]:
    """ByzFL's rule of a name; SettingsError without one, or without ByzFL."""
    module = aggregators()
    if module is None:
        raise SettingsError(f"not installed: {HINT}")
    found = rule(module, name, f)
    if found is None:
        raise SettingsError("not in ByzFL 0.0.11")
    return found


def _made(module: Any, name: str, f: int) -> Callable[[Any], Any]:
    theirs = _NAMES[name]
    kind = getattr(module, theirs)
    made: Callable[[Any], Any] = (
        kind(f) if theirs in _WITH_F else kind(2) if theirs == "Bucketing" else kind()
    )
    return made
