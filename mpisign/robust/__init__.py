"""Robust rules: one vector of many, some of them hostile. X (n, d) in, same framework out."""

from __future__ import annotations

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
