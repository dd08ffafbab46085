"""FedMA: rounds in which clients' models are matched layer by layer, frozen and trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mpisign.federated import layers as chain
from mpisign.federated import matching
from mpisign.federated.layers import Weights
from mpisign.federated.matched_average import Matcher, checked_counts, output
from mpisign.federated.matching import Array, Units
from mpisign.federated.server import settings_of, through_server
from mpisign.functions import engine_of

_FUNCTION = "FedMA"


@dataclass(frozen=True)
class RoundReport:
    """One round of one client.

    Args:
        number: Of the round, from 1.
        up: Bytes that it sent in the round.
        down: Bytes that it received.
        widths: Units of each layer of the global model.

    Example:
        >>> RoundReport(1, 100, 120, (64, 10)).up
        100
    """

    number: int
    up: int
    down: int
    widths: tuple[int, ...]


class FedMA:
    """Federated matched averaging with communication, each rank a client with its own data.

    A round: the client trains its model; then for each hidden layer from the input up rank 0
    matches the clients' layers (``matched_average``) and sends the global one to all, who put it
    into their models, freeze it, give the next layer inputs for the units that they lacked, at
    weight 0, and train the rest; the output layer is averaged. So a model of N layers is trained N
    times in a round, and travels once up and once down. The next round starts from the client's own
    part of the global model: the units that its units were matched to. The global models are
    bit-identical. Making one is not collective; ``round`` is.

    Source: Wang et al. 2020, Federated learning with matched averaging, Algorithm 1 and section
    2.3. Differences: see ``matched_average``.

    Args:
        model: this client's model, as ``matched_average`` takes it. Hidden widths and values may
            differ from client to client: no client needs to know another's start. Not changed.
        train: ``train(model, layer)`` trains the client's ``model`` in place: its layers before
            number ``layer`` are frozen (``requires_grad`` is False).
        comm: what ``mpisign.Communicator`` takes; default: what the launcher started.
        weight: of this client in averages, such as how many examples it has.
        label_counts: how many examples of each class this client has, one number an output; all
            clients have it or none.
        sigma, sigma0, gamma, iterations, relative: as ``matched_average``.

    Attributes:
        model: The global model after the last round, before the first this client's own.
        rounds: How many rounds there were.
        up, down: Bytes that this client sent and received, as one that is not the server: rank 0
            counts its own layer too.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Example:
        >>> import torch
        >>> hidden, out = torch.nn.Linear(1, 4), torch.nn.Linear(4, 1)
        >>> model = torch.nn.Sequential(hidden, torch.nn.Tanh(), out)
        >>> def train(model, layer):
        ...     trained = [p for p in model.parameters() if p.requires_grad]
        ...     optimizer = torch.optim.SGD(trained, lr=0.1)
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 1)).sub(1).square().sum().backward()
        ...     optimizer.step()
        >>> clients = FedMA(model, train)
        >>> clients.round()
        RoundReport(number=1, up=84, down=88, widths=(4, 1))
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module, int], object],
        comm: Any = None,
        *,
        weight: float = 1.0,
        label_counts: Any = None,
        sigma: float = 1.0,
        sigma0: float = 1.0,
        gamma: float = 1.0,
        iterations: int = 5,
        relative: bool = True,
    ) -> None:
        matching.check(_FUNCTION, sigma, sigma0, gamma, iterations, [weight])
        found = chain.layers(_FUNCTION, model)
        self._known: list[Weights] = chain.read(found)
        self._counts = checked_counts(_FUNCTION, label_counts, (len(self._known[-1].weight),))
        self._matcher = Matcher(sigma, sigma0, gamma, iterations, relative)
        self._places: list[Units] | None = None  # this client's, of each hidden layer
        self._train, self._comm, self._weight = train, comm, float(weight)
        shared = (chain.signature(model), self._matcher, self._counts is None)
        self._settings = settings_of(*shared)
        self.model = copy.deepcopy(model)
        self.rounds = self.up = self.down = 0

    def round(self) -> RoundReport:
        """One round, as the class says. Collective.

        Returns:
            What this client sent and received, and the widths of the global model.

        Raises:
            NaNError: a client's model is no longer finite. As those below, on every rank.
            DisagreementError: clients differ in their models' layers or in settings.
            CollectiveError: scipy is not installed on rank 0, or as ``mpisign.Communicator``.
            CollectiveTimeout, WireError: as ``mpisign.Communicator``.
        """
        up, down, places = 0, 0, []
        merged: list[Weights] = []
        local = self._client()
        for n in range(len(self._known)):
            self._train(local, n)
            weights = chain.read(chain.layers(_FUNCTION, local))
            got = self._exchange(n, weights[n])
            up, down = up + got.up, down + got.down
            inputs = weights[n].weight.shape[1]
            biased = weights[n].bias is not None
            merged.append(Weights.of_atoms(got.units, inputs, biased))
            if n + 1 < len(weights):
                places.append(got.places)
                wider = weights[n + 1].widened(got.places, len(got.units))
                chain.write(_FUNCTION, local, [*merged, wider, *weights[n + 2 :]])
                for layer in chain.layers(_FUNCTION, local)[: n + 1]:
                    layer.requires_grad_(False)
        self._known, self._places = merged, places
        self.model = chain.built(_FUNCTION, self.model, merged)
        self.rounds, self.up, self.down = self.rounds + 1, self.up + up, self.down + down
        return RoundReport(self.rounds, up, down, tuple(len(w.weight) for w in merged))

    def _client(self) -> nn.Module:
        """This client's part of the global model."""
        if self._places is None:
            return chain.built(_FUNCTION, self.model, self._known)
        ends = [None, *self._places, None]
        parts = [w.restricted(ends[n + 1], ends[n]) for n, w in enumerate(self._known)]
        return chain.built(_FUNCTION, self.model, parts)

    def _exchange(self, n: int, own: Weights) -> Any:
        last = n == len(self._known) - 1
        extra = int(last and self._counts is not None)
        atoms = own.atoms
        if last and self._counts is not None:
            atoms = np.hstack([atoms, self._counts[:, None]])

        def decide(rows: list[Array], weights: list[float]) -> tuple[Array, Sequence[Units]]:
            if not last:
                return self._matcher.hidden(rows, weights)
            counts = np.stack([row[:, -1] for row in rows]) if extra else None
            same = np.arange(len(rows[0]))
            return output(rows, weights, counts), [same] * len(rows)

        return through_server(
            engine_of(_FUNCTION, self._comm),
            _FUNCTION,
            atoms.astype(np.float32),
            decide,
            layer=n,
            round_=self.rounds,
            settings=self._settings,
            weight=self._weight,
            extra=extra,
            needs=matching.hungarian,
        )

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` continues from, on this rank.

        Returns:
            Numbers and tensors: the global model's layers, which units are this client's, counts.
        """
        return {
            "rounds": self.rounds,
            "up": self.up,
            "down": self.down,
            "layers": [
                (torch.from_numpy(w.weight), None if w.bias is None else torch.from_numpy(w.bias))
                for w in self._known
            ],
            "places": None if self._places is None else [*map(torch.from_numpy, self._places)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues bit for bit from ``state_dict`` of the same rank.

        Args:
            state_dict: what ``state_dict`` returned, of a model with the same layers.

        Raises:
            ValueError: it is of another model.
        """
        known = [
            Weights(w.numpy().copy(), None if b is None else b.numpy().copy())
            for w, b in state_dict["layers"]
        ]
        if [(w.weight.shape[2], w.bias is None) for w in known] != [
            (w.weight.shape[2], w.bias is None) for w in self._known
        ]:
            raise ValueError(f"{_FUNCTION}: state_dict is of a model with other layers")
        places = state_dict["places"]
        self._known = known
        self._places = None if places is None else [p.numpy().copy() for p in places]
        self.model = chain.built(_FUNCTION, self.model, known)
        self.rounds = state_dict["rounds"]
        self.up, self.down = state_dict["up"], state_dict["down"]
