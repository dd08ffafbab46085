"""``save``: all ranks together write one checkpoint."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import mpisign
from mpisign.checkpoint import folder as files
from mpisign.checkpoint.agreement import share
from mpisign.checkpoint.sources import RANDOM, Sources, random_state
from mpisign.checkpoint.tree import Tree
from mpisign.functions import engine_of

_SAME, _OTHER = b"\1", b"\0"


def save(
    folder: str | os.PathLike[str],
    step: int,
    state: Mapping[str, Any],
    *,
    comm: Any = None,
    keep: int = 2,
) -> None:
    """Saves what all ranks hold after ``step`` steps: whole, or not at all. Collective.

    Each rank writes what differs from rank to rank into a file of its own (momenta, residuals,
    random states, the buffers of a batch norm), rank 0 what is equal on all: nobody has to say
    which is which. The checkpoint is there once all ranks have written theirs. A rank that dies
    before leaves the one before in place. Call it between a step and the next backward pass. Ranks
    wait up to an hour for a file, whatever the timeout of votes is.

    Besides ``state`` the states of torch's, NumPy's and Python's global random generators are
    saved, and of this rank's CUDA device.

    Args:
        folder: On a file system that the nodes share; made where it is missing.
        step: Steps taken, from 0, the same on all ranks. Not below the last one saved.
        state: Names and what to save under them: objects with ``state_dict()`` and
            ``load_state_dict()`` (model, optimizer, learning rate schedule, DETOX's sampler; under
            DDP and FSDP also the hook's state, under ``hvd.DistributedOptimizer`` the compression),
            or dicts of numbers, strings and tensors. Of FSDP's models rank 0 gathers all.
        comm: What ``mpisign.Communicator`` takes; default: what the launcher started.
        keep: How many checkpoints stay: the last ones.

    Raises:
        CollectiveError: Some rank cannot save: ``state`` holds what cannot be loaded without
            unpickling, the disk is full, ranks differ in ``step``. The same on every rank, and the
            checkpoints before are there.

    Example:
        >>> import tempfile, torch, mpisign
        >>> model, folder = torch.nn.Linear(2, 1), tempfile.mkdtemp()
        >>> mpisign.checkpoint.save(folder, 25, {"model": model, "epoch": {"number": 3}})
        >>> mpisign.checkpoint.complete_steps(folder)
        [25]
    """
    function, path = "checkpoint.save", Path(folder)
    engine = engine_of(function, comm)
    rank, size = engine.transport.rank, engine.transport.size
    sources: Sources
    trees: dict[str, Tree] = {}

    def check() -> bytes:
        nonlocal sources
        if type(step) is not int or step < 0:
            raise ValueError(f"step must be a number of steps from 0, got {step!r}")
        if type(keep) is not int or keep < 1:
            raise ValueError(f"keep must be a number of checkpoints from 1, got {keep!r}")
        sources = Sources(state)
        sources.check_votes()
        if rank == 0:
            files.begin(path, step)
        return b""

    def collect() -> bytes:
        states = {**sources.collect(rank), RANDOM: random_state()}
        trees.update({name: Tree(name, x) for name, x in states.items()})
        return json.dumps(own_digests()).encode() if rank == 0 else b""

    def own_digests() -> dict[str, dict[str, str]]:
        return {name: tree.digests() for name, tree in trees.items()}

    known = step if type(step) is int and step >= 0 else 0
    share(engine, function, check, known, files=False)
    table = json.loads(share(engine, function, collect)[0])

    def compare() -> bytes:
        own = table if rank == 0 else own_digests()
        gathered = sources.gathered
        return b"".join(
            _SAME if name in gathered or own.get(name, {}).get(key) == digest else _OTHER
            for name, digests in table.items()
            for key, digest in digests.items()
        )

    equal = [
        all(map(bool, column)) for column in zip(*share(engine, function, compare), strict=True)
    ]
    keys = [(name, key) for name, digests in table.items() for key in digests]
    shared = {key for key, same in zip(keys, equal, strict=True) if same}

    def write() -> bytes:
        target = files.partial(path, step)
        target.mkdir(exist_ok=True)  # another node may not see it yet
        written = {files.rank_file(rank): files.write(target / files.rank_file(rank), part(False))}
        if rank == 0:
            written[files.SHARED] = files.write(target / files.SHARED, part(True))
        return json.dumps(written).encode()

    def part(of_all: bool) -> dict[str, Any]:
        return {
            "trees": {n: t.shape for n, t in trees.items() if ((n, "") in shared) is of_all},
            "tensors": {
                path: x
                for n, t in trees.items()
                for path, x in t.tensors.items()
                if ((n, path) in shared) is of_all
            },
        }

    written = share(engine, function, write)

    def publish() -> bytes:
        if rank == 0:
            manifest = {
                "format": files.FORMAT,
                "step": step,
                "ranks": size,
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": {"mpisign": mpisign.__version__, "torch": torch.__version__},
                "files": {k: v for row in written for k, v in json.loads(row).items()},
            }
            files.publish(path, manifest, keep)
        return b""

    share(engine, function, publish)
