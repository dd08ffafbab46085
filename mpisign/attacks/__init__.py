"""Attacks: what hostile ranks send, as objects on honest rows, and as ranks of a real job.

ByzFL's convention: ``ALittleIsEnough(tau=1.5)(honest)``, honest (n, d), gives (d,), NumPy, CuPy or
torch as it came. ``Adversaries`` lets ranks of a job act so. Loads no torch and starts no MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpisign.attacks.backdoor import Backdoor, ProjectedBackdoor, ReplacementBackdoor
from mpisign.attacks.base import Attack
from mpisign.attacks.blind import Constant, Gaussian, Inf, Random
from mpisign.attacks.labels import LabelFlipping
from mpisign.attacks.mimic import Mimic
from mpisign.attacks.names import ATTACKS, Factory, by_name
from mpisign.attacks.near_ties import NearTies
from mpisign.attacks.of_the_mean import (
    ALittleIsEnough,
    InnerProductManipulation,
    Reversed,
    SignFlipping,
)

if TYPE_CHECKING:
    from mpisign.attacks.job import Adversaries

__all__ = [
    "ATTACKS",
    "ALittleIsEnough",
    "Adversaries",
    "Attack",
    "Backdoor",
    "Constant",
    "Factory",
    "Gaussian",
    "Inf",
    "InnerProductManipulation",
    "LabelFlipping",
    "Mimic",
    "NearTies",
    "ProjectedBackdoor",
    "Random",
    "ReplacementBackdoor",
    "Reversed",
    "SignFlipping",
    "by_name",
]

_LAZY = {"Adversaries": "mpisign.attacks.job"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mpisign.attacks' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
