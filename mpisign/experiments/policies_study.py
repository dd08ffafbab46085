"""Which zeros and ties policies train best: ``python -m mpisign.experiments.policies_study``.

Simulated ranks in one process. The tables of docs/results/policies.md come from here. Three pixels
of the digits are 0 in every training image: the gradient of what they feed is exactly 0 for ever,
and whatever moves those weights is the policy.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence

import numpy as np
import torch

from mpisign import planes, policies
from mpisign.experiments import data, model
from mpisign.experiments.cell import Cell
from mpisign.experiments.settings import EPOCHS, VOTE_LR, Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table: mean, spread and worst of test accuracy over seeds, in percent.

    Behind it the mean way that weights fed by dead pixels moved, in units of their mean at first.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 7])
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--adversaries", type=int, default=0, help="the last K ranks flip signs")
    parser.add_argument("--lr", type=float, default=VOTE_LR)
    parser.add_argument("--momentum", type=float, default=Settings.momentum)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--steps", type=int, default=None, help="default: as mpisign train")
    parser.add_argument("--fp32-lr", type=float, default=Settings.fp32_lr)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    dataset = data.load()
    head = "| zeros | ties | " + " | ".join(f"{p} ranks" for p in args.ranks) + " |"
    print(head)
    print("|---" * (2 + len(args.ranks)) + "|")
    rows: list[tuple[policies.Zeros, policies.Ties] | None] = [None]
    rows += list(itertools.product(policies.ZEROS, policies.TIES))
    for row in rows:
        cells = []
        for size in args.ranks:
            runs = [simulate(dataset, size, seed, row, args) for seed in range(args.seeds)]
            right, drift = zip(*runs, strict=True)
            mean, spread = statistics.mean(right), statistics.pstdev(right)
            cells.append(
                f"{mean:.2f} ± {spread:.2f} ({min(right):.2f}), {statistics.mean(drift):.2f}"
            )
        names = row or ("fp32", "average")
        print(f"| {names[0]} | {names[1]} | " + " | ".join(cells) + " |", flush=True)
    return 0


def simulate(
    dataset: data.Dataset,
    size: int,
    seed: int,
    row: tuple[policies.Zeros, policies.Ties] | None,
    args: argparse.Namespace,
) -> tuple[float, float]:
    """Test accuracy in percent and drift of one run; ``row`` None averages gradients in fp32."""
    net = model.build(dataset.train_images.shape[1:], seed)
    parameters = list(net.parameters())
    length = sum(p.numel() for p in parameters)
    dead = torch.from_numpy(dataset.train_images.max(axis=0).reshape(-1) == 0)
    first = parameters[0].detach()[:, dead].clone()
    lr = args.fp32_lr if row is None else args.lr
    schedule = Cell("images", "sign", lr, schedule="cosine")
    momentum = args.momentum if row is None else 0.0
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    shards = [dataset.shard(r, size) for r in range(size)]
    feeds = [data.batches(x, y, args.batch_size, seed, r) for r, (x, y) in enumerate(shards)]
    per_epoch = max(1, len(shards[0][1]) // args.batch_size)
    steps = args.steps or EPOCHS * per_epoch
    moments = torch.zeros(size, length)
    for step in range(steps):
        votes, mean = [], torch.zeros(length)
        for r, feed in enumerate(feeds):
            images, labels = (torch.from_numpy(a) for a in next(feed))
            sign = -1.0 if r >= size - args.adversaries else 1.0
            loss = sign * torch.nn.functional.cross_entropy(net(images), labels)
            flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
            if row is None:
                mean += flat / size
            else:
                m = moments[r].mul_(args.momentum).add_(flat, alpha=1 - args.momentum)
                votes.append(planes.pack(m.numpy(), zeros=row[0], seed=seed, step=step, rank=r))
        if row is not None:
            result = planes.majority(
                np.stack(votes), length=length, ties=row[1], seed=seed, step=step
            )
            mean = torch.from_numpy(planes.unpack(result, length))
        for p, g in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view(p.shape)
        optimizer.param_groups[0]["lr"] = schedule.rate(step, steps)
        optimizer.step()
    test = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    moved = (parameters[0].detach()[:, dead] - first).abs().mean() / first.abs().mean()
    return 100 * model.accuracy(net, *test), float(moved)


if __name__ == "__main__":
    raise SystemExit(main())
