"""``load``: all ranks together take the last complete checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpisign.checkpoint import folder as files
from mpisign.checkpoint.agreement import share
from mpisign.checkpoint.sources import RANDOM, Sources, set_random_state
from mpisign.checkpoint.tree import put_together
from mpisign.functions import engine_of


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
        if step is not None and not _is_step(step):
            raise ValueError(f"step must be a number of steps from 0, got {step!r}")
        sources = Sources(state)
        sources.check_votes()
        return json.dumps(files.read_manifest(path, step)).encode() if rank == 0 else b""

    wanted = 1 + step if step is not None and _is_step(step) else 0
    manifest = json.loads(share(engine, function, find, wanted, files=False)[0])
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
                there = ", ".join(n for n in trees if n != RANDOM)
                raise ValueError(f"{place.name} holds no {name!r}, but {there}")
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


def _is_step(step: Any) -> bool:
    return type(step) is int and step >= 0
