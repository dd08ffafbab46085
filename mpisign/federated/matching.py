"""Which units of several clients are one unit: the Beta-Bernoulli process's posterior mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]

#: What the extra brings, and how to get it.
SCIPY = 'scipy is not installed, whose Hungarian method does it: pip install "mpisign[federated]"'


def hungarian() -> Callable[..., Any]:
    """scipy.optimize.linear_sum_assignment; ImportError that says what to install."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(SCIPY) from error
    return linear_sum_assignment  # type: ignore[no-any-return]


class GlobalUnits:
    """The global units that some clients have formed so far.

    ``sums`` (L, d): each unit's posterior mean times its precision; ``counts`` (L,): how many
    clients have it. The prior is N(0, sigma0^2), a client's unit N(global unit, sigma^2).
    """

    def __init__(self, d: int, clients: int, sigma: float, sigma0: float, gamma: float) -> None:
        self.sums, self.counts = np.zeros((0, d)), np.zeros(0, dtype=np.int64)
        self._clients, self._gamma = clients, gamma
        self._own, self._prior = 1 / sigma**2, 1 / sigma0**2

    def costs(self, atoms: Array) -> Array:
        """PFNM's equations 8 and 9: (n, L + n), of client's unit l as global unit i.

        Column L + t - 1 stands for the t-th unit that the client adds. No client has all of its
        units counted here: ``counts`` is below the number of clients.
        """
        a, n = self._own, len(atoms)
        own = a * a * (atoms * atoms).sum(axis=1)
        pooled = (self.sums * self.sums).sum(axis=1)
        precision = self._prior + self.counts * a
        joined = own[:, None] + pooled + 2 * a * (atoms @ self.sums.T)
        popular = 2 * np.log(self.counts / (self._clients - self.counts))
        matched = joined / (precision + a) - pooled / precision + popular
        alone = own / (self._prior + a)
        added = 2 * np.log(np.arange(1, n + 1) / (self._gamma / self._clients))
        return -np.hstack([matched, alone[:, None] - added])

    def add(self, atoms: Array, places: Units) -> None:
        """The client's units become those at ``places``; new ones are at the end."""
        more = max(0, int(places.max(initial=-1)) + 1 - len(self.counts))
        self.sums = np.vstack([self.sums, np.zeros((more, self.sums.shape[1]))])
        self.counts = np.concatenate([self.counts, np.zeros(more, dtype=np.int64)])
        self.sums[places] += self._own * atoms
        self.counts[places] += 1

    def remove(self, atoms: Array, places: Units) -> Units:
        """Takes the client's units out; returns where the others' have moved to, -1 for gone."""
        self.sums[places] -= self._own * atoms
        self.counts[places] -= 1
        stays = self.counts > 0
        moved = np.where(stays, np.cumsum(stays) - 1, -1)
        self.sums, self.counts = self.sums[stays], self.counts[stays]
        return moved


def match(
    atoms: Sequence[Array], *, sigma: float, sigma0: float, gamma: float, iterations: int
) -> list[Units]:
    """The global unit of each client's units, by client: distinct numbers from 0, without gaps.

    ``atoms``: (n, d) each, a row a unit, finite. First the clients join one after the other, the
    widest first; then each in turn leaves and joins again, ``iterations`` times or until nothing
    changes. Where the first client has a unit, its number there is the global one.

    Source: Yurochkin et al. 2019 (PFNM), section 3.3; Wang et al. 2020 (FedMA), BBP-MAP. Clients
    take turns in their order, where PFNM draws it.
    """
    solve = hungarian()
    pool = GlobalUnits(atoms[0].shape[1], len(atoms), sigma, sigma0, gamma)
    places: list[Units] = [np.zeros(0, dtype=np.int64) for _ in atoms]

    def join(j: int) -> None:
        known = len(pool.counts)
        _, columns = solve(pool.costs(atoms[j]))
        new = columns >= known  # the columns of new units are not taken in a row
        columns[new] = known + np.arange(int(new.sum()))
        places[j] = columns.astype(np.int64)
        pool.add(atoms[j], places[j])

    for j in sorted(range(len(atoms)), key=lambda j: -len(atoms[j])):
        join(j)
    for _ in range(iterations if len(atoms) > 1 else 0):
        before = _numbered(places)
        for j in range(len(atoms)):
            moved = pool.remove(atoms[j], places[j])
            for k in range(len(atoms)):
                if k != j:
                    places[k] = moved[places[k]]
            join(j)
        if all(map(np.array_equal, before, _numbered(places))):
            break
    return _numbered(places)


def root_mean_square(atoms: Sequence[Array]) -> float:
    """Of all numbers; 1 if all are 0."""
    total = sum(float((a * a).sum()) for a in atoms)
    return math.sqrt(total / sum(a.size for a in atoms)) if total else 1.0


def _numbered(places: Sequence[Units]) -> list[Units]:
    """The same with units numbered in the order in which clients have them."""
    order = dict.fromkeys(int(i) for own in places for i in own)
    number = {i: n for n, i in enumerate(order)}
    return [np.array([number[int(i)] for i in own], dtype=np.int64) for own in places]


def check(
    function: str, sigma: float, sigma0: float, gamma: float, iterations: int, weights: Any = ()
) -> None:
    """TypeError, ValueError for what is no setting of ``match``, or no weights of clients."""
    for name, value in (("sigma", sigma), ("sigma0", sigma0), ("gamma", gamma)):
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{function}: {name} must be a positive number, got {value!r}")
    if type(iterations) is not int or iterations < 0:
        raise ValueError(
            f"{function}: iterations must be a whole number from 0, got {iterations!r}"
        )
    for weight in weights:
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(
                f"{function}: a client's weight must be a positive number, got {weight!r}"
            )
