"""``save`` and ``load``: all ranks together."""

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
from mpisign.checkpoint.sources import RANDOM, Sources, random_state, set_random_state
from mpisign.checkpoint.tree import Tree, put_together
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
    before leaves the one before in place. Call it between a step and the next backward pass.

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

    share(engine, function, check, step if type(step) is int and step >= 0 else 0)
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


def load(
    folder: str | os.PathLike[str],
    state: Mapping[str, Any],
    *,
    step: int | None = None,
    comm: Any = None,
) -> int:
    """Loads the last checkpoint of which all ranks' files are there. Collective.

    Rank 0 decides which one that is. Nothing is unpickled: ``torch.load(weights_only=True)``. The
    random generators continue too. Training goes on bit for bit.

    Another number of ranks is an error where ``state`` asks for something that each rank has of its
    own; a model alone can be loaded on any.

    Args:
        folder: What was given to ``save``.
        state: What to load, as in ``save``, or fewer of its names. Dicts are filled in place.
        step: Of which step, default the last one.
        comm: As in ``save``.

    Returns:
        The number of steps taken; 0, and nothing changed, if the folder has no checkpoint.

    Raises:
        CollectiveError: A file is cut off or damaged, was saved by another number of ranks, or does
            not fit ``state``. The same on every rank. What was loaded before is not taken back.

    Example:
        >>> import tempfile, torch, mpisign
        >>> model, folder = torch.nn.Linear(2, 1), tempfile.mkdtemp()
        >>> mpisign.checkpoint.load(folder, {"model": model})
        0
        >>> mpisign.checkpoint.save(folder, 25, {"model": model})
        >>> mpisign.checkpoint.load(folder, {"model": model})
        25
    """
    function, path = "checkpoint.load", Path(folder)
    engine = engine_of(function, comm)
    rank, size = engine.transport.rank, engine.transport.size
    sources: Sources

    def find() -> bytes:
        nonlocal sources
        sources = Sources(state)
        sources.check_votes()
        return json.dumps(files.read_manifest(path, step)).encode() if rank == 0 else b""

    manifest = json.loads(share(engine, function, find, 0 if step is None else step + 1)[0])
    if manifest is None:
        return 0
    states: dict[str, Any] = {}

    def read() -> bytes:
        place, entries = files.place(path, manifest["step"]), manifest["files"]
        shared = files.read(place / files.SHARED, entries[files.SHARED], check=rank == 0)
        own: dict[str, Any] = {"trees": {}, "tensors": {}}
        if manifest["ranks"] == size:
            name = files.rank_file(rank)
            own = files.read(place / name, entries[name])
        trees = {**shared["trees"], **own["trees"]}
        tensors = {**shared["tensors"], **own["tensors"]}
        for name in sources.state:
            if name in trees:
                try:
                    states[name] = put_together(trees[name], tensors)
                    continue
                except KeyError:
                    pass
            elif manifest["ranks"] == size:
                raise ValueError(
                    f"{place.name} holds no {name!r}, but {', '.join(n for n in trees if n != RANDOM)}"
                )
            raise ValueError(
                f"{place.name} was saved by {manifest['ranks']} ranks and here are {size}: of "
                f"{name!r} each rank has its own. Start as many ranks, or load the model alone"
            )
        if manifest["ranks"] == size:
            states[RANDOM] = put_together(trees[RANDOM], tensors)
        return b""

    def put_back() -> bytes:
        random = states.pop(RANDOM, None)
        sources.put_back(states)
        if random is not None:
            set_random_state(random)
        return b""

    share(engine, function, read)
    share(engine, function, put_back)
    return int(manifest["step"])
