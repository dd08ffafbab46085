"""Signum under Horovod: mpisign's DistributedOptimizer in the place of Horovod's.

    horovodrun -np 4 python docs/examples/horovod_optimizer.py

(A script named horovod.py would hide the package of that name.)
"""

import hashlib

import horovod.torch as hvd
import torch
from sklearn.datasets import load_digits

import mpisign.horovod

STEPS, BATCH = 150, 32


def main() -> None:
    hvd.init()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    mine = torch.arange(hvd.rank(), 1500, hvd.size())  # this rank's share of the training images

    torch.manual_seed(hvd.rank())
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = mpisign.horovod.DistributedOptimizer(  # where hvd.DistributedOptimizer was
        torch.optim.SGD(model.parameters(), lr=2e-3),  # no momentum: signum has its own
        named_parameters=model.named_parameters(),
        compression="signum",
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)  # the same start on every rank
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)

    draw = torch.Generator().manual_seed(1 + hvd.rank())
    for step in range(STEPS):
        batch = mine[torch.randint(len(mine), (BATCH,), generator=draw)]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()  # full buckets are in flight while backward() computes other gradients
        optimizer.step()
        schedule.step()
        if hvd.rank() == 0 and step % 40 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    digests = hvd.allgather_object(digest.hexdigest())
    assert len(set(digests)) == 1, "replicas differ"
    if hvd.rank() == 0:
        print(f"accuracy {accuracy:.1%}; {hvd.size()} replicas are bit-identical")
    hvd.shutdown()


if __name__ == "__main__":
    main()
