"""Processor time of a step, of the full model and of the same of low rank, in one process.

python docs/examples/lowrank.py
"""

import copy
import statistics
import time

import torch
from torch import nn

import mpisign

ROUNDS, STEPS = 9, 3
LENET = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
LENET += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84)]


def perceptron(width: int) -> nn.Module:
    inner = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), *inner, nn.Linear(width, 10))


def transformer(width: int) -> nn.Module:
    block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
    inner = [copy.deepcopy(block) for _ in range(2)]
    return nn.Sequential(nn.Linear(96, width), *inner, nn.Linear(width, 96))


#: Models, and the shapes of their batches.
MODELS = {
    "LeNet": (nn.Sequential(*LENET, nn.ReLU(), nn.Linear(84, 10)), (16, 1, 28, 28)),
    "perceptron of width 256": (perceptron(256), (16, 64)),
    "perceptron of width 1024": (perceptron(1024), (16, 64)),
    "transformer of width 64": (transformer(64), (8, 64, 96)),
    "transformer of width 256": (transformer(256), (4, 64, 96)),
}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    start = time.process_time()  # of this process: others do not count
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()  # on one rank: signs are packed and voted on, and nothing is sent
    return (time.process_time() - start) / STEPS


def main() -> None:
    torch.set_num_threads(1)
    print("| model | parameters | of low rank | bytes of a vote | of low rank | time |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (full, shape) in MODELS.items():
        x, runs, sizes = torch.randn(shape), [], []
        for model in (full, copy.deepcopy(full)):
            if runs:
                mpisign.lowrank.factorize(model, min_size=1024)
            optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
            mpisign.DistributedOptimizer(optimizer, compression="signum", skip=None)
            runs.append((model, optimizer, x))
            sizes.append(sum(p.numel() for p in model.parameters()))
        # In turn, and the median of the ratios: what others do to caches and clocks slows both.
        ratios = [steps(*runs[1]) / steps(*runs[0]) for _ in range(ROUNDS)]
        cells = [f"{n:,}" for n in sizes] + [f"{-(-n // 8):,}" for n in sizes]
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(ratios):.2f} |", flush=True)


if __name__ == "__main__":
    main()
