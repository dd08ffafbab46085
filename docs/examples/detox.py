"""DETOX: ranks in groups of three compute the same batch and outvote the hostile member.

    mpirun -n 9 python -m mpi4py docs/examples/detox.py

The last rank sends -g in place of its gradient g. It also runs with 3 ranks, which are one group.
"""

import hashlib

import torch
from mpi4py import MPI
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import mpisign
from mpisign.detox import Groups, GroupSampler

EPOCHS, BATCH = 3, 32


def main() -> None:
    world = MPI.COMM_WORLD
    hostile = world.size - 1
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    dataset = TensorDataset(x[:1500], y[:1500])

    groups = Groups(redundancy=3)  # collective: every rank makes it
    sampler = GroupSampler(dataset, groups, seed=0)  # where DistributedSampler was
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, drop_last=True)

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    compression = mpisign.Compression.detox(inner="signum", groups=groups)
    mpisign.DistributedOptimizer(optimizer, model.named_parameters(), compression=compression)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for batch, target in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(batch), target)
            loss.backward()
            if world.rank == hostile:
                for p in model.parameters():
                    p.grad.neg_()
            optimizer.step()  # each group votes, then the groups vote
        if world.rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}")

    accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    digests = world.allgather(digest.hexdigest())
    assert len(set(digests)) == 1, "replicas differ"
    suspects = mpisign.stats().suspects  # how far each rank was from its group's vote
    assert max(suspects, key=lambda rank: suspects[rank].share) == hostile
    if world.rank == 0:
        print(f"accuracy {accuracy:.1%}; {world.size} replicas are bit-identical")
        print(mpisign.stats().suspects_table())


if __name__ == "__main__":
    main()
