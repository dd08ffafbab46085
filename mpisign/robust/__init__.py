"""Robust rules: one vector of many, some of them hostile. X (n, d) in, same framework out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpisign.robust.base import Mixing, Rule
    from mpisign.robust.bulyan import Bulyan
    from mpisign.robust.centered_clipping import CenteredClipping
    from mpisign.robust.coordinate import Average, Meamed, Mean, Median, TrMean
    from mpisign.robust.geometric_median import GeometricMedian
    from mpisign.robust.krum import Krum, MultiKrum
    from mpisign.robust.mixing import NNM, Bucketing, Clipping
    from mpisign.robust.names import MIXINGS, RULES, by_name
    from mpisign.robust.pipeline import Pipeline

__all__ = [
    "MIXINGS",
    "NNM",
    "RULES",
    "Average",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clipping",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Meamed",
    "Median",
    "Mixing",
    "MultiKrum",
    "Pipeline",
    "Rule",
    "TrMean",
    "by_name",
]

_LAZY = {
    "MIXINGS": "mpisign.robust.names",
    "NNM": "mpisign.robust.mixing",
    "RULES": "mpisign.robust.names",
    "Average": "mpisign.robust.coordinate",
    "Bucketing": "mpisign.robust.mixing",
    "Bulyan": "mpisign.robust.bulyan",
    "CenteredClipping": "mpisign.robust.centered_clipping",
    "Clipping": "mpisign.robust.mixing",
    "GeometricMedian": "mpisign.robust.geometric_median",
    "Krum": "mpisign.robust.krum",
    "Mean": "mpisign.robust.coordinate",
    "Meamed": "mpisign.robust.coordinate",
    "Median": "mpisign.robust.coordinate",
    "Mixing": "mpisign.robust.base",
    "MultiKrum": "mpisign.robust.krum",
    "Pipeline": "mpisign.robust.pipeline",
    "Rule": "mpisign.robust.base",
    "TrMean": "mpisign.robust.coordinate",
    "by_name": "mpisign.robust.names",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mpisign.robust' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
