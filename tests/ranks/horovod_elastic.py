"""Elastic training: a third rank comes while two train, and votes with them from then on.

The argument is the file that the launcher's host discovery script prints.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch
from horovod_checks import digest, finish, same_everywhere

from mpisign.horovod import Compression

STEPS = 50
hosts = Path(sys.argv[1])


def optimizer_of(way, model):
    named = [(f"{way}.{name}", p) for name, p in model.named_parameters()]
    return hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        named_parameters=named,
        compression=Compression.signum(named) if way == "planes" else Compression.signum,
    )


@hvd.elastic.run
def train(state):
    while state.step < STEPS:
        if state.step == 10 and hvd.rank() == 0:
            hosts.write_text("localhost:3\n")
        for way, model in models.items():
            optimizers[way].zero_grad()
            model(torch.randn(8, 20)).square().sum().backward()
            optimizers[way].step()
        if hvd.size() == 3 or state.step < 20:
            state.step += 1
        else:
            time.sleep(0.1)
        state.commit()
    for way, model in models.items():
        same_everywhere(f"{way}: replicas of {hvd.size()}", digest(model.parameters()))


hvd.init()
torch.set_num_threads(1)
models = {way: torch.nn.Linear(20, 30) for way in ("counters", "planes")}
optimizers = {way: optimizer_of(way, model) for way, model in models.items()}
handed = {f"{way}_optimizer": optimizer for way, optimizer in optimizers.items()}
train(hvd.elastic.TorchState(**models, **handed, step=0))
finish()
