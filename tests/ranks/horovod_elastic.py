"""Elastic training: a third rank comes while two train, and votes with them from then on.

The argument is the file that the launcher's host discovery script prints.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch
from horovod_checks import check, digest, finish, same_everywhere

from mpisign.horovod import Compression, DistributedOptimizer

STEPS = 50
WAYS = {"counters": "signum", "planes": "signum", "ours": "signum", "shared": "ef_sparsign"}
hosts = Path(sys.argv[1])
momenta = {}  # of "ours" after this rank's last step


def optimizer_of(way, model):
    named = [(f"{way}.{name}", p) for name, p in model.named_parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    if way in ("ours", "shared"):
        return DistributedOptimizer(sgd, named, compression=WAYS[way], bucket_size=400)
    compression = Compression.signum(named) if way == "planes" else Compression.signum
    return hvd.DistributedOptimizer(sgd, named_parameters=named, compression=compression)


def own_state(way):
    return optimizers[way].state_dict()["mpisign"]["state"]


def kept():
    """After a sync a rank holds the momenta that it had; a new one holds none."""
    state = own_state("ours")
    same = all(torch.equal(state[name]["momentum"], m) for name, m in momenta.items())
    check(
        f"momenta of {len(momenta)} parameters stay their rank's",
        same and set(state) == set(momenta),
    )


@hvd.elastic.run
def train(state):
    kept()
    while state.step < STEPS:
        if state.step == 10 and hvd.rank() == 0:
            hosts.write_text("localhost:3\n")
        for way, model in models.items():
            optimizers[way].zero_grad()
            model(torch.randn(8, 20)).square().sum().backward()
            optimizers[way].step()
        momenta.update({name: s["momentum"] for name, s in own_state("ours").items()})
        if hvd.size() == 3 or state.step < 20:
            state.step += 1
        else:
            time.sleep(0.1)
        state.commit()
    for way, model in models.items():
        same_everywhere(f"{way}: replicas of {hvd.size()}", digest(model.parameters()))
    residuals = [s["residual"] for s in own_state("shared").values()]
    same_everywhere(f"shared: residuals of {hvd.size()}", digest(residuals))
    steps = [optimizers[way].state_dict()["mpisign"]["steps"] for way in ("ours", "shared")]
    same_everywhere(f"ours: steps of {hvd.size()}", str(steps))


hvd.init()
torch.set_num_threads(1)
models = {way: torch.nn.Linear(20, 30) for way in WAYS}
optimizers = {way: optimizer_of(way, model) for way, model in models.items()}
handed = {f"{way}_optimizer": optimizer for way, optimizer in optimizers.items()}
train(hvd.elastic.TorchState(**models, **handed, step=0))
finish()
