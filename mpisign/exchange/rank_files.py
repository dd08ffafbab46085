"""Each rank's own part of a checkpoint whose rest a framework has rank 0 write."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from mpisign.exchange.process_group import HookState


def name(rank: int, of: str = "votes") -> str:
    """The file of one rank; ``of``: of several models' votes which."""
    return f"{of}-rank{rank}.pt"


def contents(state: HookState, size: int, **more: Any) -> dict[str, Any]:
    """What a rank of ``size`` saves."""
    return {"ranks": size, "votes": state.state_dict(), **more}


def votes_of(rank: int, read: Callable[[int], dict[str, Any]], where: Any) -> dict[str, Any]:
    """The contents that ``rank`` continues from. ``read``: those of a rank's file.

    A rank that the saved job did not have takes the count of steps, with a warning. Raises
    FileNotFoundError if the saved job had it.
    """
    first: dict[str, Any] = {"ranks": 0}
    try:
        return read(rank)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            first = read(0)
    size = first["ranks"]
    if rank < size or not size:
        raise FileNotFoundError(
            f"{where} has no votes' state of rank {rank if size else 0}: the checkpoint was "
            "broken off, or saved without mpisign, or its rank files are on another machine"
        )
    warnings.warn(
        f"{where} is of {size} ranks: rank {rank} begins with no momentum or residual",
        stacklevel=3,
    )
    return {**first, "votes": {"steps": first["votes"]["steps"], "state": {}}}


def read_by_all(
    read: Callable[[], dict[str, Any]], any_of: Callable[[bool], bool], what: str
) -> dict[str, Any]:
    """``read()``; an error on every rank if it raises on some: another rank then says why.

    ``any_of``: whether a flag is set on any rank, the framework's own reduction.
    """
    found: dict[str, Any] = {}
    error = None
    try:
        found = read()
    except Exception as e:
        error = e
    if any_of(error is not None):
        raise error or RuntimeError(f"{what}: another rank could not load its file, and says why")
    return found


def save(folder: Path, rank: int, saved: dict[str, Any], of: str = "votes") -> None:
    """Writes a rank's file, whole or not at all; rank 0 removes those of ranks no longer there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name(rank, of)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    gone = saved["ranks"]
    while rank == 0 and (folder / name(gone, of)).exists():
        (folder / name(gone, of)).unlink()
        gone += 1


def load(folder: Path, rank: int, of: str = "votes") -> dict[str, Any]:
    """What ``rank`` continues from; see ``votes_of``. Nothing is unpickled but plain types."""

    def read(of_rank: int) -> dict[str, Any]:
        path = folder / name(of_rank, of)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not {"ranks", "votes"} <= saved.keys():
            raise ValueError(f"{path} must hold a rank's votes' state, got {type(saved).__name__}")
        return saved

    return votes_of(rank, read, folder)


def digest(parameters: Iterable[torch.Tensor]) -> str:
    """Of all bits of the parameters, to tell whether votes and parameters belong together."""
    found = hashlib.blake2b(digest_size=16)
    for p in parameters:
        found.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
