"""Attacks by the names that ``--attack``, studies and ``Adversaries`` take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpisign.attacks.backdoor import Backdoor, ProjectedBackdoor, ReplacementBackdoor
from mpisign.attacks.base import Attack
from mpisign.attacks.blind import Constant, Gaussian, Inf, LabelFlipping, Random
from mpisign.attacks.of_rows import (
    ALittleIsEnough,
    InnerProductManipulation,
    Mimic,
    NearTies,
    Reversed,
    SignFlipping,
)

#: Makes an attack from the number of hostile ranks and a seed.
Factory = Callable[[int, int | Sequence[int]], Attack]

ATTACKS: dict[str, Factory] = {
    "sign-flip": lambda f, seed: SignFlipping(),
    "reverse": lambda f, seed: Reversed(),
    "constant": lambda f, seed: Constant(),
    "random": lambda f, seed: Random(seed=seed),
    "gaussian": lambda f, seed: Gaussian(seed=seed),
    "alie": lambda f, seed: ALittleIsEnough(),
    "ipm": lambda f, seed: InnerProductManipulation(),
    "mimic": lambda f, seed: Mimic(),
    "inf": lambda f, seed: Inf(),
    "omniscient": lambda f, seed: NearTies(f),
    "label-flip": lambda f, seed: LabelFlipping(),
    "backdoor": lambda f, seed: Backdoor(f, seed=seed),
    "backdoor-projected": lambda f, seed: ProjectedBackdoor(f, seed=seed),
    "backdoor-replacement": lambda f, seed: ReplacementBackdoor(f, seed=seed),
}


def by_name(name: str, f: int = 0, seed: int | Sequence[int] = 0) -> Attack:
    """The attack of a name, with its defaults.

    Args:
        name: A name of ``ATTACKS``; ValueError for another one.
        f: Number of hostile ranks.
        seed: Seed of random attacks.

    Returns:
        The attack.

    Example:
        >>> by_name("omniscient", f=2)
        NearTies(f=2)
    """
    if name not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {name!r}")
    return ATTACKS[name](f, seed)
