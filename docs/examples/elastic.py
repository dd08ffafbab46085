"""Signum under torchrun's restarts: a rank dies, all begin again at the last checkpoint.

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else restarts find the first start's addresses
torchrun --standalone --nproc-per-node 2 --max-restarts 1 docs/examples/elastic.py
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

import mpisign.ddp

STEPS, EVERY, DIES_AT, BATCH = 40, 10, 25, 32
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else f"/tmp/elastic-{os.getppid()}")  # torchrun's


def train(x, y, steps, folder=None):
    """Trains up to ``steps``, from the last checkpoint that every rank has."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=2e-3)
    state = mpisign.ddp.MajorityVoteState(
        compression="signum", named_parameters=net.named_parameters(), optimizer=optimizer
    )
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)

    parts = {"net": net, "optimizer": optimizer, "votes": state}
    mine = {int(f.stem): f for f in folder.glob(f"rank{rank}/*.pt")} if folder else {}
    last = torch.tensor(max(mine, default=0))
    dist.all_reduce(last, dist.ReduceOp.MIN)  # a rank may have died before it saved the newest
    if begin := int(last):
        saved = torch.load(mine[begin], weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        print(f"rank {rank} resumes at step {begin}", flush=True)

    for step in range(begin, steps):
        draw = torch.Generator().manual_seed(1000 * step + rank)
        batch = torch.randint(1500, (BATCH,), generator=draw)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if folder and (step + 1) % EVERY == 0:  # every rank saves: momenta differ
            file = folder / f"rank{rank}" / f"{step + 1}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({n: part.state_dict() for n, part in parts.items()}, f"{file}.part")
            os.replace(f"{file}.part", file)  # whole or not at all
        if (
            folder
            and step == DIES_AT
            and rank == 1
            and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        ):
            os.kill(os.getpid(), signal.SIGKILL)
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).digest()


def main() -> None:
    dist.init_process_group("gloo")
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, (train(x, y, STEPS, FOLDER), train(x, y, STEPS)))
    assert len({d for pair in digests for d in pair}) == 1, "the restarted run ended elsewhere"
    if dist.get_rank() == 0:
        print(f"{len(digests)} replicas are bit-identical, as if no rank had died")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
