"""Sign descent under torch's FSDP2: each rank votes on the shard of the parameters that it holds.

torchrun --nproc-per-node 4 docs/examples/fsdp.py
"""

import hashlib

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mpisign.fsdp

STEPS, BATCH = 250, 32


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    mine = torch.arange(rank, 1500, size)  # this rank's share of the training images

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    mesh = init_device_mesh("cpu", (size,))
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Only compressors without state: a momentum would be a whole gradient kept on every rank.
    state = mpisign.fsdp.MajorityVoteState(compression="sign")
    mpisign.fsdp.register_comm_hook(model, state)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)

    draw = torch.Generator().manual_seed(1 + rank)
    for step in range(STEPS):
        batch = mine[torch.randint(len(mine), (BATCH,), generator=draw)]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()  # the reduce-scatter is a vote: +1 or -1 in each rank's shard
        optimizer.step()
        schedule.step()
        if rank == 0 and step % 40 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
    whole = [p.full_tensor().detach().numpy().tobytes() for p in model.parameters()]
    digests = [None] * size
    dist.all_gather_object(digests, hashlib.sha256(b"".join(whole)).hexdigest())
    assert len(set(digests)) == 1, "ranks gathered different parameters"
    if rank == 0:
        print(f"accuracy {accuracy:.1%}; {size} ranks gather bit-identical parameters")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
