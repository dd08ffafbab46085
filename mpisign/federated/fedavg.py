"""FedAvg: rounds in which clients' changes are averaged, or voted on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import mpisign
from mpisign import policies
from mpisign.compressors import Compressor, resolve
from mpisign.federated.fedma import RoundReport
from mpisign.federated.matched_average import output
from mpisign.federated.matching import Array, Units, check
from mpisign.federated.server import settings_of, through_server, weights_of
from mpisign.functions import communicator_for
from mpisign.optimizer import DistributedOptimizer

_FUNCTION = "FedAvg"


class FedAvg:
    """Federated averaging, each rank a client with its own data.

    A round: each client trains a copy of the global model. Uncompressed, rank 0 averages the copies
    by weight, in the order of the ranks, and sends the mean to all; global - mean is the gradient
    of a step of SGD at the rate ``lr``, so that at rate 1 the mean is the next model. Compressed,
    with w_j this client's weight of W in all and p clients, (p w_j / W) (global - local) is its
    gradient for ``mpisign.DistributedOptimizer``: "sign" is a vote on the signs of their changes,
    "sparsign" one that large changes take part in more often; and so any compressor, with its
    residuals and momenta. A weight changes no sign: votes count one a client.

    Source: McMahan et al. 2017, Communication-efficient learning of deep networks from
    decentralized data; Reddi et al. 2021, Adaptive federated optimization (the server's step).

    Args:
        model: the global model, the same on all ranks, without buffers. Changed by each round.
        train: ``train(model, layer)`` trains a copy in place; ``layer`` is 0, as nothing is frozen.
        comm: what ``mpisign.Communicator`` takes; default: what the launcher started.
        weight: of this client, such as how many examples it has.
        compression: what of the changes is sent: a name or a Compressor.
        lr: of the server's step.
        algorithm: of a vote, see ``mpisign.majority_vote``.
        seed: of the random bits, equal on all ranks.

    Attributes:
        model: The global model.
        optimizer: The server's, of which ``param_groups`` has the rate.
        rounds: How many rounds there were.
        up, down: Bytes that this process sent and received, by ``mpisign.stats``.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1)
        >>> def train(model, layer):
        ...     torch.nn.init.zeros_(model.weight)
        >>> FedAvg(model, train).round().number, model.weight.item()
        (1, 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module, int], object],
        comm: Any = None,
        *,
        weight: float = 1.0,
        compression: str | Compressor = "none",
        lr: float = 1.0,
        algorithm: policies.Algorithm = "auto",
        seed: int = 0,
    ) -> None:
        check(_FUNCTION, 1.0, 1.0, 1.0, 0, [weight])
        buffers = [name for name, _ in model.named_buffers()]
        if buffers:
            raise ValueError(
                f"{_FUNCTION}: the model must have no buffers, which no round averages, got "
                f"{buffers[0]}: take layers without running statistics"
            )
        compressor = resolve(_FUNCTION, compression)
        if compressor.local_steps > 1:
            raise ValueError(
                f"{_FUNCTION}: compression must have local_steps=1, got {compressor.local_steps}: "
                "train takes the local steps"
            )
        self.model, self._train, self._weight = model, train, float(weight)
        self._engine = communicator_for(_FUNCTION, comm).engine
        self._scale: float | None = None
        self._plain = compressor.aggregate == "average"
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        if not self._plain:
            DistributedOptimizer(
                self.optimizer,
                model.named_parameters(),
                comm=communicator_for(_FUNCTION, comm),
                compression=compressor,
                algorithm=algorithm,
                seed=seed,
                skip=None,
            )
        self.rounds = self.up = self.down = 0

    def round(self) -> RoundReport:
        """One round, as the class says. Collective.

        Returns:
            What this process sent and received; ``widths`` is empty.

        Raises:
            NaNError, DisagreementError, CollectiveError, CollectiveTimeout, WireError: as
                ``mpisign.DistributedOptimizer``, on every rank.
        """
        before = mpisign.stats().as_dict()["exchange"]
        local = copy.deepcopy(self.model)
        self._train(local, 0)
        own = [p.detach() for p in local.parameters()]
        if self._plain:
            own, scale = self._mean(own), 1.0
        else:
            scale = self._share()
        with torch.no_grad():
            for p, new in zip(self.model.parameters(), own, strict=True):
                p.grad = (p - new).mul_(scale)
        self.optimizer.step()
        self.optimizer.zero_grad()
        after = mpisign.stats().as_dict()["exchange"]
        up, down = (int(after[k] - before[k]) for k in ("sent", "received"))
        self.rounds, self.up, self.down = self.rounds + 1, self.up + up, self.down + down
        return RoundReport(self.rounds, up, down, ())

    def _share(self) -> float:
        """This client's weight in multiples of the mean of all. Collective at first."""
        if self._scale is None:
            weights = weights_of(self._engine, _FUNCTION, self._weight, settings_of(_FUNCTION))
            self._scale = self._weight * len(weights) / sum(weights)
        return self._scale

    def _mean(self, own: list[torch.Tensor]) -> list[torch.Tensor]:
        """The clients' mean by weight."""
        flat = torch.cat([p.to("cpu", torch.float32).reshape(-1) for p in own]).numpy()

        def decide(rows: list[Array], weights: list[float]) -> tuple[Array, list[Units]]:
            return output(rows, weights, None), [np.zeros(1, dtype=np.int64)] * len(rows)

        got = through_server(
            self._engine,
            _FUNCTION,
            flat[None],
            decide,
            layer=0,
            round_=self.rounds,
            settings=settings_of(_FUNCTION),
            weight=self._weight,
        )
        mean = torch.from_numpy(got.units[0].astype(np.float32))
        parts = mean.split([p.numel() for p in own])
        return [part.view(p.shape).to(p) for part, p in zip(parts, own, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` continues from, on this rank.

        Returns:
            The model's state, the optimizer's with the compressor's, and counts.
        """
        return {
            "rounds": self.rounds,
            "up": self.up,
            "down": self.down,
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues bit for bit from ``state_dict`` of the same rank.

        Args:
            state_dict: what ``state_dict`` returned.
        """
        self.model.load_state_dict(state_dict["model"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.rounds = state_dict["rounds"]
        self.up, self.down = state_dict["up"], state_dict["down"]
