"""matched_average: the mean of networks whose units stand in different orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mpisign.federated import layers as chain
from mpisign.federated import matching
from mpisign.federated.layers import Weights
from mpisign.federated.matching import Array, Units

_FUNCTION = "matched_average"


@dataclass(frozen=True)
class Matched:
    """What ``matched_average`` returns.

    Args:
        model: The global model, a copy of the first with the widths that the matching has given.
        permutations: By client, by hidden layer: the global unit of each of its units, int64 (n,).

    Example:
        >>> import torch
        >>> one = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> matched_average([one]).permutations[0][0].tolist()
        [0, 1, 2]
    """

    model: nn.Module
    permutations: list[list[Units]]


@dataclass(frozen=True)
class Matcher:
    """The settings of a matching, the same for all layers."""

    sigma: float = 1.0
    sigma0: float = 1.0
    gamma: float = 1.0
    iterations: int = 5
    relative: bool = True

    def hidden(self, atoms: Sequence[Array], weights: Sequence[float]) -> tuple[Array, list[Units]]:
        """The global units (L, d), and of each client's units which they are."""
        unit = matching.root_mean_square(atoms) if self.relative else 1.0
        places = matching.match(
            atoms,
            sigma=self.sigma * unit,
            sigma0=self.sigma0 * unit,
            gamma=self.gamma,
            iterations=self.iterations,
        )
        size = 1 + max(int(own.max(initial=-1)) for own in places)
        total, by = np.zeros((size, atoms[0].shape[1])), np.zeros((size, 1))
        for a, own, weight in zip(atoms, places, weights, strict=True):
            total[own] += weight * a
            by[own] += weight
        return total / by, places


def output(atoms: Sequence[Array], weights: Sequence[float], counts: Array | None) -> Array:
    """The mean of the output layers (K, d), whose units are the same for all clients.

    ``counts`` (clients, K): a class's unit is averaged by how many examples of it clients have; a
    class that no client has by ``weights``, as all are without.
    """
    by = np.repeat(np.asarray(weights, dtype=np.float64)[:, None], len(atoms[0]), axis=1)
    if counts is not None:
        by = np.where(counts.sum(axis=0) > 0, counts, by)
    by = by / by.sum(axis=0)
    total = np.zeros(atoms[0].shape)
    for a, share in zip(atoms, by, strict=True):
        total += share[:, None] * a
    return total


def matched_average(
    models: Sequence[nn.Module],
    weights: Sequence[float] | None = None,
    *,
    label_counts: Any = None,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    gamma: float = 1.0,
    iterations: int = 5,
    relative: bool = True,
) -> Matched:
    """The average of networks, unit by unit that compute the same, layer by layer from the input.

    Hidden units (neurons, channels) have no order: networks that learned the same may differ in
    it, and their plain average then computes neither. Here units are matched by the Beta-Bernoulli
    process's posterior mode: a unit's atom is its incoming weights, in the global order of the
    layer before, and its bias. With S_i the sum of the atoms at global unit i times 1 / sigma^2,
    q_i = 1 / sigma0^2 + m_i / sigma^2 and m_i of J clients at it, the cost of atom v there is

        |S_i|^2 / q_i - |S_i + v / sigma^2|^2 / (q_i + 1 / sigma^2) - 2 log(m_i / (J - m_i))

    and as t-th new unit -|v / sigma^2|^2 / (1 / sigma0^2 + 1 / sigma^2) + 2 log(t J / gamma); the
    Hungarian method finds each client's best assignment in turn. A unit that matches none is added,
    so layers may become wider, up to the sum of all. A global unit is the mean over the clients
    that have it (FedMA's Algorithm 1 divides by all clients); a weight to a unit that a client
    lacks counts as its 0. In float64, rounded to float32 at the end.

    Source: Yurochkin et al. 2019, Bayesian nonparametric federated learning of neural networks,
    equations 8 and 9; Wang et al. 2020, Federated learning with matched averaging.

    Args:
        models: nn.Sequential of Linear, Conv2d, activations, pooling, dropout and Flatten, float32,
            alike but for the widths of hidden layers. At least one.
        weights: of the clients, such as how many examples they have; default: equal.
        label_counts: (clients, outputs), how many examples of each class clients have: the output
            layer is averaged by them, class by class.
        sigma: standard deviation of a client's unit from the global one, per coordinate. Smaller:
            fewer units match. But for the logarithms two units match where the cosine between their
            atoms is above 1 / (1 + sigma^2 / sigma0^2).
        sigma0: standard deviation of global units from 0.
        gamma: of the process; larger: more units are added.
        iterations: times that each client's units are matched again, once all are there.
        relative: sigma and sigma0 are multiples of the root mean square of the layer's numbers, so
            that they do not depend on how large weights are; False: as in the papers.

    Returns:
        ``Matched(model, permutations)``.

    Raises:
        ImportError: scipy is not installed.
        TypeError, ValueError: models that are no such chain, differ, or hold what is not finite;
            settings that do not fit.

    Example:
        >>> import torch
        >>> a = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> b = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> order = torch.tensor([2, 0, 1])  # b is a with its units in another order
        >>> with torch.no_grad():
        ...     _ = b[0].weight.copy_(a[0].weight[order]), b[0].bias.copy_(a[0].bias[order])
        ...     _ = b[2].weight.copy_(a[2].weight[:, order]), b[2].bias.copy_(a[2].bias)
        >>> found = matched_average([a, b])
        >>> found.permutations[1][0].tolist(), torch.equal(found.model[2].weight, a[2].weight)
        ([2, 0, 1], True)
    """
    models = list(models)
    if not models:
        raise ValueError(f"{_FUNCTION}: models must be at least one, got none")
    shares = [1.0] * len(models) if weights is None else [*weights]
    if len(shares) != len(models):
        raise ValueError(
            f"{_FUNCTION}: weights must be {len(models)}, one a model, got {len(shares)}"
        )
    matching.check(_FUNCTION, sigma, sigma0, gamma, iterations, shares)
    known = [chain.read(chain.layers(_FUNCTION, m)) for m in models]
    alike = [chain.signature(m) for m in models]
    for j, text in enumerate(alike):
        if text != alike[0]:
            raise ValueError(
                f"{_FUNCTION}: models must differ in the widths of hidden layers alone, got "
                f"{alike[0]} and, of model {j}, {text}"
            )
        if not all(np.isfinite(w.atoms).all() for w in known[j]):
            raise ValueError(f"{_FUNCTION}: model {j} holds a number that is not finite")
    counts = checked_counts(_FUNCTION, label_counts, (len(models), len(known[0][-1].weight)))
    matcher = Matcher(sigma, sigma0, gamma, iterations, relative)
    merged: list[Weights] = []
    found: list[list[Units]] = [[] for _ in models]
    width = known[0][0].weight.shape[1]
    for n, own in enumerate(zip(*known, strict=True)):
        wide = [w.widened(p[-1] if p else None, width) for w, p in zip(own, found, strict=True)]
        atoms = [w.atoms for w in wide]
        if n < len(known[0]) - 1:
            units, places = matcher.hidden(atoms, shares)
            for p, place in zip(found, places, strict=True):
                p.append(place)
        else:
            units = output(atoms, shares, counts)
        merged.append(Weights.of_atoms(units, width, wide[0].bias is not None))
        width = len(units)
    return Matched(chain.built(_FUNCTION, models[0], merged), found)


def checked_counts(function: str, counts: Any, shape: tuple[int, ...]) -> Array | None:
    """``counts`` as float64 of ``shape``; ValueError if they are none."""
    if counts is None:
        return None
    values = np.asarray(counts, dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"{function}: label_counts must be numbers from 0, {shape}, got {values.shape}"
        )
    return values
