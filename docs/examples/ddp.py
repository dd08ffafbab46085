"""Signum under torch's DistributedDataParallel: a communication hook replaces its allreduce.

torchrun --nproc-per-node 4 docs/examples/ddp.py
"""

import hashlib

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import mpisign.ddp

EPOCHS, BATCH = 8, 32


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    dataset = TensorDataset(x[:1500], y[:1500])
    sampler = DistributedSampler(dataset, seed=0, drop_last=True)  # equal shards, equal steps
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, drop_last=True)

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)  # no momentum: signum has its own
    state = mpisign.ddp.MajorityVoteState(
        compression="signum", named_parameters=net.named_parameters(), optimizer=optimizer
    )
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.05, total_iters=EPOCHS * len(loader)
    )

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for batch, target in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(batch), target)
            loss.backward()  # the hook votes here: every grad is the vote of all ranks
            optimizer.step()
            schedule.step()
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}")

    accuracy = (net(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
    assert len(set(digests)) == 1, "replicas differ"
    if rank == 0:
        print(f"accuracy {accuracy:.1%}; {len(digests)} replicas are bit-identical")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
