"""ByzFL's rules, as anyone would call them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from mpisign.bench.errors import BenchError

_NAMES = {
    "mean": "Average",
    "median": "Median",
    "trimmed_mean": "TrMean",
    "meamed": "Meamed",
    "geometric_median": "GeometricMedian",
    "centered_clipping": "CenteredClipping",
    "krum": "Krum",
    "multi_krum": "MultiKrum",
}
_WITH_F = ("TrMean", "Meamed", "Krum", "MultiKrum")


def rule(name: str, f: int) -> Callable[[Any], Any]:
    """ByzFL's rule of that name in ``mpisign.robust``; BenchError without one, or without ByzFL.

    Its package imports torchvision and seaborn, its rules do not: they are imported from a package
    that has its path alone.
    """
    theirs = _NAMES.get(name)
    if theirs is None:
        raise BenchError("not in ByzFL 0.0.11")
    found = importlib.util.find_spec("byzfl") if "byzfl" not in sys.modules else None
    if "byzfl" not in sys.modules:
        if found is None or importlib.util.find_spec("scipy") is None:
            raise BenchError("not installed: pip install --no-deps byzfl==0.0.11 scipy")
        package = types.ModuleType("byzfl")
        package.__path__ = list(found.submodule_search_locations or [])
        sys.modules["byzfl"] = package
    aggregators = importlib.import_module("byzfl.aggregators")
    kind = getattr(aggregators, theirs)
    made: Callable[[Any], Any] = kind(f) if theirs in _WITH_F else kind()
    return made
