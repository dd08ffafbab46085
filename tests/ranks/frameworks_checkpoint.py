"""Votes' state in torch.distributed.checkpoint: started by tests/test_frameworks.py."""

from __future__ import annotations

import runpy
import sys

import frameworks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from frameworks_data import SHARED, world
from job import digest
from launchers import ROOT
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.api import CheckpointException

EXAMPLE = runpy.run_path(str(ROOT / "docs/examples/distributed_checkpoint.py"))
FOLDER = SHARED / "dcp"


def check():
    sys.argv = ["example", str(FOLDER)]
    dist.destroy_process_group, end = lambda: None, dist.destroy_process_group
    EXAMPLE["main"]()
    dist.destroy_process_group = end


def three_ranks_continue():
    """With a folder of two: an error, or with a partial load residuals that begin at zero."""
    dist.init_process_group("gloo")
    w = world()
    net, optimizer = EXAMPLE["fresh"]()
    load = EXAMPLE["load"]
    try:
        load(net, optimizer, FOLDER)
        raise AssertionError("a folder of two ranks was loaded by three")
    except CheckpointException as error:  # by torch, on all ranks
        assert f"mpisign_rank{w.rank}_of_3_residual" in str(error)
    partial = dcp.DefaultLoadPlanner(allow_partial_load=True)
    load(net, optimizer, FOLDER, planner=partial)
    state = optimizer.state_dict()["mpisign"]
    assert state["steps"] == EXAMPLE["STOP"]
    assert not any(x.any() for kept in state["state"].values() for x in kept.values())
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    EXAMPLE["train"](net, optimizer, x, y, range(20, 23))
    assert len(set(w.gather(digest(net.parameters())))) == 1


def main():
    frameworks.on_ranks(check, 2)
    frameworks.on_ranks(three_ranks_continue, 3)
