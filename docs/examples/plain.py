"""Signum over MPI: scikit-learn's digits, one optimizer wrapped, no wrapper around the model.

mpirun -n 4 python -m mpi4py docs/examples/plain.py
"""

import hashlib

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits

import mpisign

STEPS, BATCH = 150, 32


def main() -> None:
    world = MPI.COMM_WORLD
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    test_x, test_y = x[1500:], y[1500:]
    mine = torch.arange(world.rank, 1500, world.size)  # this rank's share of the training images

    torch.manual_seed(0)  # the same start on every rank
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    # Votes are +1 or -1: a small learning rate, and no momentum, which signum has of its own.
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    mpisign.DistributedOptimizer(optimizer, model.named_parameters(), compression="signum")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)

    draw = torch.Generator().manual_seed(1 + world.rank)  # each rank draws its own batches
    for step in range(STEPS):
        batch = mine[torch.randint(len(mine), (BATCH,), generator=draw)]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()  # packs the signs, votes with the other ranks, steps on the vote
        schedule.step()
        if world.rank == 0 and step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    digests = world.allgather(digest.hexdigest())
    assert len(set(digests)) == 1, "replicas differ"
    if world.rank == 0:
        sent = mpisign.stats().stages["exchange"].sent / STEPS
        print(f"accuracy {accuracy:.1%}; {world.size} replicas are bit-identical")
        print(f"rank 0 sent {sent:,.0f} bytes per step")


if __name__ == "__main__":
    main()
