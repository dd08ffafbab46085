"""Votes' state in torch.distributed.checkpoint: started by tests/test_frameworks.py."""

from __future__ import annotations

import runpy
import sys

import frameworks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from frameworks_data import LR, SHARED, loss_of, net, world
from job import digest
from launchers import ROOT
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.parallel import DistributedDataParallel

import mpisign.ddp

EXAMPLE = runpy.run_path(str(ROOT / "docs/examples/distributed_checkpoint.py"))
FOLDER = SHARED / "dcp"


def check():
    sys.argv = ["example", str(FOLDER)]
    dist.destroy_process_group, end = lambda: None, dist.destroy_process_group
    EXAMPLE["main"]()
    dist.destroy_process_group = end
    ddps_state(world())


def hooked():
    own = net()
    model = DistributedDataParallel(own)
    optimizer = torch.optim.SGD(own.parameters(), lr=LR)
    named = own.named_parameters()
    state = mpisign.ddp.MajorityVoteState(
        compression="ef_sign", named_parameters=named, optimizer=optimizer
    )
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return model, optimizer, state


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def ddps_state(w):
    """That of DDP's hook, given as it is: each rank's under its own name."""
    folder = SHARED / "dcp-hook"
    model, optimizer, state = hooked()
    train(model, optimizer, range(3))
    dcp.save({"net": model.module, "votes": state}, checkpoint_id=folder)
    train(model, optimizer, range(3, 6))

    again, optimizer, state = hooked()
    dcp.load({"net": again.module, "votes": state}, checkpoint_id=folder)
    assert state.steps == 3
    kept = digest(k["residual"] for k in state.state_dict()["state"].values())
    assert len(set(w.gather(kept))) == w.size, "ranks have loaded the same residuals"
    train(again, optimizer, range(3, 6))
    assert set(w.gather(digest(again.parameters()))) == {digest(model.parameters())}


def three_ranks_continue():
    """With a folder of two: an error, or with a partial load residuals that begin at zero."""
    dist.init_process_group("gloo")
    w = world()
    model, optimizer = EXAMPLE["fresh"]()
    load = EXAMPLE["load"]
    try:
        load(model, optimizer, FOLDER)
        raise AssertionError("a folder of two ranks was loaded by three")
    except CheckpointException as error:  # by torch, on all ranks
        assert f"mpisign_rank{w.rank}_of_3_residual" in str(error)
    partial = dcp.DefaultLoadPlanner(allow_partial_load=True)
    load(model, optimizer, FOLDER, planner=partial)
    state = optimizer.state_dict()["mpisign"]
    assert state["steps"] == EXAMPLE["STOP"]
    assert not any(x.any() for kept in state["state"].values() for x in kept.values())
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    EXAMPLE["train"](model, optimizer, x, y, range(20, 23))
    assert len(set(w.gather(digest(model.parameters())))) == 1


def main():
    frameworks.on_ranks(check, 2)
    frameworks.on_ranks(three_ranks_continue, 3)
