"""torch.distributed.checkpoint: one folder holds the model once, and every rank's residuals.

torchrun --nproc-per-node 2 docs/examples/distributed_checkpoint.py
"""

import hashlib
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import mpisign

STEPS, STOP, BATCH = 40, 20, 32


def fresh():
    """A model and its wrapped optimizer as they are before the first step."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mpisign.DistributedOptimizer(optimizer, net.named_parameters(), compression="ef_sign")
    return net, optimizer


def train(net, optimizer, x, y, steps) -> bytes:
    for step in steps:
        draw = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        batch = torch.randint(1500, (BATCH,), generator=draw)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).digest()


def parts_of(net, optimizer):
    """What is saved: the residuals are part of the optimizer's state, under each rank's name."""
    return dict(zip(("net", "optimizer"), get_state_dict(net, optimizer), strict=True))


def load(net, optimizer, folder, **options) -> None:
    parts = parts_of(net, optimizer)
    dcp.load(parts, checkpoint_id=folder, **options)
    found = {"model_state_dict": parts["net"], "optim_state_dict": parts["optimizer"]}
    set_state_dict(net, optimizer, **found)


def main() -> None:
    dist.init_process_group("gloo")
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    folder = [sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)

    net, optimizer = fresh()
    train(net, optimizer, x, y, range(STOP))
    dcp.save(parts_of(net, optimizer), checkpoint_id=folder[0])
    whole = train(net, optimizer, x, y, range(STOP, STEPS))

    net, optimizer = fresh()  # as in a new process
    load(net, optimizer, folder[0])
    resumed = train(net, optimizer, x, y, range(STOP, STEPS))

    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, (resumed, whole))
    assert len({d for pair in digests for d in pair}) == 1, "the resumed run ended elsewhere"
    if dist.get_rank() == 0:
        print(f"stopped at step {STOP} and resumed: bit-identical on {len(digests)} ranks")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
