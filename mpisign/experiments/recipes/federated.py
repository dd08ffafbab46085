"""Rounds of clients: FedMA, and FedAvg with any compressor; a step of the cell is a round.

``recipe_options``: ``method`` "fedavg" or "fedma"; ``local_steps`` of SGD in each training of a
client, of which a round of FedMA has one for each layer; ``local_rate``, its learning rate where
``lr`` is the server's, as with votes; ``own_start``: clients start from models of their own;
``by_label``: FedMA averages the output layer by labels. The others are arguments of ``FedMA``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import mpisign
from mpisign.errors import NaNError
from mpisign.experiments import compression, data, loop, model, tasks
from mpisign.experiments.cell import Cell
from mpisign.experiments.compression import CodeLength
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.loop import Evaluation, Trained
from mpisign.experiments.tasks.images import Digits, digits_of_study
from mpisign.federated import FedAvg, FedMA

_CLASSES = 10


class _Client:
    """One rank's model, data and training."""

    def __init__(
        self, cell: Cell, rank: int, local_steps: int, local_rate: float | None, own_start: bool
    ) -> None:
        task = tasks.build(cell, rank, None)
        if not isinstance(task, Digits):
            raise SettingsError(f"recipe federated: expected the task digits, got {cell.task!r}")
        self.task, self.net, self.rate = task, task.net, local_rate or cell.lr
        self.fixed, self._steps, self._step = local_rate is not None, local_steps, 0
        hidden = cell.task_options.get("hidden", (64,))
        self.own: nn.Module | None = None
        if own_start:
            seed = 1 + rank + cell.ranks * cell.seed
            self.own = model.seeded(seed, lambda: model.perceptron(64, hidden))

    def train(self, local: nn.Module, layer: int) -> None:
        """Trains ``local``; the first time from this client's own start, if it has one."""
        if self.own is not None:
            local.load_state_dict(self.own.state_dict())
            self.own = None
        self.task.net = local
        optimizer = torch.optim.SGD([p for p in local.parameters() if p.requires_grad], self.rate)
        for _ in range(self._steps):
            optimizer.zero_grad()
            self.task.backward(self._step)
            optimizer.step()
            self._step += 1

    def evaluate(self, net: nn.Module) -> tuple[float, float]:
        """Of the global model."""
        self.task.net = net
        return self.task.evaluate()


def train(comm: mpisign.Communicator, cell: Cell) -> tuple[Trained, int]:
    """Trains in ``cell.steps`` rounds. Collective."""
    options = dict(cell.recipe_options)
    method = options.pop("method", "fedavg")
    if method not in ("fedavg", "fedma") or cell.adversaries or not cell.steps:
        raise SettingsError(
            "recipe federated: expected method fedavg or fedma, steps and no adversaries, got "
            f"{method!r}, {cell.steps} and {cell.adversaries}"
        )
    local_steps, own_start = options.pop("local_steps", 20), options.pop("own_start", False)
    by_label = options.pop("by_label", False)
    client = _Client(cell, comm.rank, local_steps, options.pop("local_rate", None), own_start)
    length, lengths = CodeLength(), [p.numel() for p in client.net.parameters()]
    sends = compression.compressor(cell, None)
    clients: FedMA | FedAvg
    if method == "fedma":
        counts = None
        if by_label:
            images, _ = digits_of_study()
            labels = data.share(images, comm.rank, cell.ranks, cell.seed, cell.dirichlet)[1]
            counts = np.bincount(labels, minlength=_CLASSES)
        clients = FedMA(client.net, client.train, comm, label_counts=counts, **options)
    else:
        if options:
            raise SettingsError(f"recipe_options of fedavg: unknown are {', '.join(options)}")
        compressor = length.of(sends)
        rate = cell.lr if client.fixed else 1.0
        clients = FedAvg(
            client.net,
            client.train,
            comm,
            compression=compressor,
            lr=rate,
            algorithm=cell.algorithm,  # type: ignore[arg-type]
            seed=cell.seed,
        )
    done = Trained(sum(lengths), cell.steps)
    parts = cell.evaluations
    marks = {max(1, round(cell.steps * (i + 1) / parts)) for i in range(parts)}
    try:
        for number in range(cell.steps):
            rate = cell.rate(number, cell.steps)
            if not client.fixed:
                client.rate = rate
            elif isinstance(clients, FedAvg):
                clients.optimizer.param_groups[0]["lr"] = rate
            clients.round()
            if isinstance(clients, FedAvg):
                length.unpacked(sends, lengths)
            if not all(bool(p.isfinite().all()) for p in clients.model.parameters()):
                done.diverged = number  # on all ranks: the global models are equal
                break
            if comm.rank == 0 and number + 1 in marks:
                _evaluate(done, client, clients.model, number + 1)
    except NaNError:  # the same on all ranks
        done.diverged = number
    if comm.rank == 0 and done.diverged is None:
        done.more = {"widths": [len(p) for p in clients.model.parameters() if p.dim() > 1]}
    done.digest = model.digest(clients.model)
    return done, length.bits + (8 * clients.up if isinstance(clients, FedMA) else 0)


def _evaluate(done: Trained, client: _Client, net: nn.Module, step: int) -> None:
    done.validation, done.test = map(loop.finite, client.evaluate(net))
    sent = mpisign.stats().as_dict()["exchange"]["sent"]
    done.curve.append(Evaluation(step, sent, done.test, None, None))
