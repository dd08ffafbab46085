"""Attacks: what hostile ranks send, as functions of honest rows and as ranks of a real job.

ByzFL's convention: ``ALittleIsEnough(tau=1.5)(honest)``, honest (n, d), gives (d,), NumPy, CuPy or
torch. ``Adversaries`` makes ranks of a job follow one. Loads no torch and starts no MPI.
"""

from __future__ import annotations

from mpisign.attacks.backdoor import Backdoor, ProjectedBackdoor, ReplacementBackdoor
from mpisign.attacks.base import Attack
from mpisign.attacks.blind import Constant, Gaussian, Inf, LabelFlipping, Random
from mpisign.attacks.job import Adversaries
from mpisign.attacks.names import ATTACKS, Factory, by_name
from mpisign.attacks.of_rows import (
    ALittleIsEnough,
    InnerProductManipulation,
    Mimic,
    NearTies,
    Reversed,
    SignFlipping,
)

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
