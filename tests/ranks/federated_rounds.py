"""Rounds of FedMA and FedAvg, with a save and a load between; prints digests of global models."""

from __future__ import annotations

import hashlib
import io

import torch
from torch import nn

import mpisign
from mpisign.federated import FedAvg, FedMA


def net(seed, hidden):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))


def trainer(rank):
    """Training on a client's own points: the same ones whenever it is called."""

    def train(model, layer):
        generator = torch.Generator().manual_seed(rank)
        x = torch.randn(16, 2, generator=generator) + rank
        y = (x[:, 0] > x[:, 1]).long()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        trained = [p.requires_grad for p in model.parameters()]
        assert trained == [layer == 0] * 2 + [True] * 2

    return train


def digest(model):
    data = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(data).hexdigest()[:12]


def play(comm):
    """The digests after each of four rounds: FedMA from unlike starts, averages, votes."""
    rank = comm.rank
    how = {"weight": 1.0 + rank, "label_counts": [rank, 2], "sigma": 0.8}
    common = {"weight": 1.0 + rank, "seed": 5}

    def fedma():
        return FedMA(net(rank, 3 + rank), trainer(rank), comm, **how)

    def fedavg(compression, lr):
        model = net(0, 4)
        return FedAvg(model, trainer(rank), comm, compression=compression, lr=lr, **common)

    found = []
    for make in (
        fedma,
        lambda: fedavg("none", 1.0),
        lambda: fedavg("ef_sign", 1.0),
        lambda: fedavg("sparsign", 0.05),
    ):
        clients, own = make(), []
        for number in range(4):
            if number == 2:  # saved, and loaded by new clients
                saved = io.BytesIO()
                torch.save(clients.state_dict(), saved)
                saved.seek(0)
                again = make()
                again.load_state_dict(torch.load(saved, weights_only=True))
                kept = [clients.round(), clients.round()]
                after = digest(clients.model)
                clients = again
            own.append(digest(clients.round() and clients.model))
        assert own[-1] == after and clients.rounds == 4 and kept[1].number == 4
        found.append(own)
    return found


if __name__ == "__main__":
    world = mpisign.Communicator("mpi")
    digests = play(world)
    if world.rank == 0:
        print(*(text for own in digests for text in own), flush=True)
