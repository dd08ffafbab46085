"""A run that is stopped and resumed ends at the same bits as one that is not.

mpirun -n 4 python -m mpi4py docs/examples/checkpoint_resume.py
"""

import hashlib
import tempfile

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits

import mpisign

STEPS, STOP, BATCH = 60, 25, 32
WORLD = MPI.COMM_WORLD


def fresh():
    """A model and its wrapped optimizer as they are before the first step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # ef_sign keeps a residual: what its one-bit messages left out so far, another one on each rank.
    mpisign.DistributedOptimizer(optimizer, model.named_parameters(), compression="ef_sign")
    return model, optimizer


def train(model, optimizer, x, y, steps) -> float:
    """Trains for the ``steps`` of a range; batches depend on rank and step alone."""
    for step in steps:
        draw = torch.Generator().manual_seed(1000 * step + WORLD.rank)
        batch = torch.randint(1500, (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
    return loss.item()


def digest(model) -> str:
    """SHA-256 of all parameters."""
    parameters = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(parameters).hexdigest()


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    folder = WORLD.bcast(tempfile.mkdtemp() if WORLD.rank == 0 else None)

    whole, optimizer = fresh()
    loss = train(whole, optimizer, x, y, range(STEPS))

    model, optimizer = fresh()
    train(model, optimizer, x, y, range(STOP))
    # A file of each rank, since residuals differ, and one of what all share.
    mpisign.checkpoint.save(folder, STOP, {"model": model, "optimizer": optimizer})

    model, optimizer = fresh()  # as in a new process
    steps = mpisign.checkpoint.load(folder, {"model": model, "optimizer": optimizer})
    train(model, optimizer, x, y, range(steps, STEPS))

    digests = WORLD.allgather(digest(model)) + WORLD.allgather(digest(whole))
    assert len(set(digests)) == 1, "the resumed run ended elsewhere"
    if WORLD.rank == 0:
        accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
        print(f"loss {loss:.3f}, accuracy {accuracy:.1%}")
        print(f"stopped at step {STOP} and resumed: bit-identical on {WORLD.size} ranks")


if __name__ == "__main__":
    main()
