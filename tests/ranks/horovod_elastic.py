"""Elastic training: a third rank comes while two train, and votes with them from then on.

The first argument is the file that the launcher's host discovery script prints; "dies" after it has
the third rank die, of which Horovod over Gloo learns after half a minute.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch
from horovod_checks import check, digest, finish, same_everywhere

from mpisign.horovod import Compression, DistributedOptimizer

COME, DIE, STEPS = 20, 45, 50
WAYS = {"counters": "signum", "planes": "signum", "ours": "signum", "shared": "ef_sparsign"}
hosts = Path(sys.argv[1])
momenta = {}  # of "ours" after this rank's last step
sizes = set()


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
    sizes.add(hvd.size())
    while state.step < STEPS:
        if state.step == COME // 2 and hvd.rank() == 0:
            hosts.write_text("localhost:2\n127.0.0.1:1\n")  # a host of its own to Horovod
        for way, model in models.items():
            optimizers[way].zero_grad()
            model(torch.randn(8, 20)).square().sum().backward()
            optimizers[way].step()
        momenta.update({name: s["momentum"] for name, s in own_state("ours").items()})
        if 3 in sizes or state.step < COME:
            state.step += 1
        else:
            time.sleep(0.1)
        if "dies" in sys.argv and state.step == DIE and hvd.size() == 3:
            compare()
            if hvd.rank() == 2:
                os._exit(1)
        state.commit()
    compare()


def compare():
    """Replicas, what they share, and how many steps they have counted."""
    size = hvd.size()
    for way, model in models.items():
        same_everywhere(f"{way}: replicas of {size}", digest(model.parameters()))
    residuals = [s["residual"] for s in own_state("shared").values()]
    same_everywhere(f"shared: residuals of {size}", digest(residuals))
    steps = [optimizers[way].state_dict()["mpisign"]["steps"] for way in ("ours", "shared")]
    same_everywhere(f"ours: steps of {size}", str(steps))


hvd.init()
torch.set_num_threads(1)
models = {way: torch.nn.Linear(20, 30) for way in WAYS}
optimizers = {way: optimizer_of(way, model) for way, model in models.items()}
handed = {f"{way}_optimizer": optimizer for way, optimizer in optimizers.items()}
train(hvd.elastic.TorchState(**models, **handed, step=0))
finish()
