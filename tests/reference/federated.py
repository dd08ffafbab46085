"""Matched averaging: the Beta-Bernoulli process's costs, and the mean that follows from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


def cost(atoms: Any, others: Any, clients: int, sigma: float, sigma0: float, gamma: float) -> Any:
    """(n, L + n) of a client's atoms (n, d); ``others[i]``: the atoms (m, d) at global unit i.

    Yurochkin et al. 2019, Bayesian nonparametric federated learning, equations 8 and 9, mu0 = 0.
    """

    def energy(vectors: Any) -> float:
        total = sum(np.asarray(v) / sigma**2 for v in vectors)
        return float((total**2).sum() / (1 / sigma0**2 + len(vectors) / sigma**2))

    found = np.zeros((len(atoms), len(others) + len(atoms)))
    for row, v in enumerate(atoms):
        for i, at in enumerate(others):
            popular = 2 * np.log(len(at) / (clients - len(at)))
            found[row, i] = -(energy([*at, v]) - energy(at) + popular)
        for t in range(1, len(atoms) + 1):
            added = -2 * np.log(t / (gamma / clients))
            found[row, len(others) + t - 1] = -(energy([v]) + added)
    return found


def match(
    clients: Sequence[Any], sigma: float, sigma0: float, gamma: float, iterations: int
) -> Any:
    """Each client's global units: the best assignment of each in turn, by trying all of them."""
    J, at = len(clients), {}  # a unit's name to {client: its row}
    names = itertools.count()

    def join(j: int) -> None:
        known = list(at)
        others = [[clients[k][row] for k, row in at[i].items()] for i in known]
        costs = cost(clients[j], others, J, sigma, sigma0, gamma)
        n = len(clients[j])
        best = min(
            itertools.permutations(range(costs.shape[1]), n),
            key=lambda columns: sum(costs[range(n), columns]),
        )
        for row, column in enumerate(best):
            name = known[column] if column < len(known) else next(names)
            at.setdefault(name, {})[j] = row

    for j in sorted(range(J), key=lambda j: -len(clients[j])):
        join(j)
    for _ in range(iterations):
        for j in range(J):
            for name in list(at):
                at[name].pop(j, None)
                if not at[name]:
                    del at[name]
            join(j)
    order = sorted(at.values(), key=lambda rows: min(rows.items()))
    return [
        [i for row in range(len(clients[j])) for i, rows in enumerate(order) if rows.get(j) == row]
        for j in range(J)
    ]


def average(clients: Sequence[Any], places: Any, weights: Sequence[float]) -> Any:
    """Each global unit's weighted mean over the clients that have it."""
    found = []
    for i in range(1 + max(map(max, places))):
        of = zip(weights, clients, places, strict=True)
        has = [(w, c[list(p).index(i)]) for w, c, p in of if i in p]
        found.append(sum(w * v for w, v in has) / sum(w for w, _ in has))
    return np.stack(found)
