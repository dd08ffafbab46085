"""Checkpoints on disk: which are complete, atomic publication, and what is wrong with a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MANIFEST, SHARED = "manifest.json", "shared.pt"
FORMAT = 1
_COMPLETE = re.compile(r"step-(\d{10,})")
_LEFT = re.compile(r"step-\d{10,}\.(partial|old)")
_BEFORE = ".before"  # ends the name of what the same step's new checkpoint replaces
_VISIBLE = 10.0  # seconds until a network file system shows what another node wrote


def rank_file(rank: int) -> str:
    """The name of a rank's own file."""
    return f"rank-{rank}.pt"


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:010d}"


def partial(folder: Path, step: int) -> Path:
    """Where it is while it is written."""
    return folder / f"step-{step:010d}.partial"


def complete_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of which a folder has a checkpoint of all ranks, in order.

    Not collective: looks at the folder, from any process.

    Args:
        folder: What was given to ``save``; need not exist.

    Returns:
        The steps; ``load`` takes the last one.

    Example:
        >>> complete_steps("/nowhere")
        []
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(_COMPLETE.fullmatch(p.name), p) for p in folder.iterdir()]
    return sorted(int(m[1]) for m, p in found if m and (p / MANIFEST).is_file())


def write(path: Path, content: Any) -> dict[str, Any]:
    """Writes a file down to the disk; its size and digest."""
    with open(path, "wb") as f:
        torch.save(content, f)
        _to_disk(f)
    return entry(path)


def entry(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": path.stat().st_size, "blake2b": _digest(path)}


def read(path: Path, known: dict[str, Any], check: bool = True) -> Any:
    """What ``write`` wrote. ``known``: what it returned; ``check``: whether the digest is compared.

    ValueError for a file that is missing, cut off or changed.
    """
    where = f"{path.parent.name}/{path.name}"
    remedy = f"remove {path.parent} to go on from the checkpoint before"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({error.strerror}): {remedy}") from error
    if size != known["bytes"]:
        raise ValueError(f"{where} has {size} bytes instead of {known['bytes']}: {remedy}")
    if check and _digest(path) != known["blake2b"]:
        raise ValueError(f"{where} is damaged, its digest is another: {remedy}")
    return torch.load(path, map_location="cpu", weights_only=True)


def restore(folder: Path) -> None:
    """Puts back what a save of the same step was about to replace when it broke off."""
    for path in folder.glob(f"step-*{_BEFORE}"):
        target = path.with_name(path.name.removesuffix(_BEFORE))
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def begin(folder: Path, step: int) -> None:
    """Makes the folder to write into, and removes what saves that broke off have left there."""
    restore(folder)
    known = complete_steps(folder)
    if known and known[-1] > step:
        raise ValueError(
            f"there is a checkpoint of step {known[-1]} already, later than step {step}: load it, "
            f"remove it, or take another folder than {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if _LEFT.fullmatch(left.name):
            shutil.rmtree(left)
    partial(folder, step).mkdir()


def publish(folder: Path, manifest: dict[str, Any], keep: int) -> None:
    """Makes the checkpoint that was written complete, and removes all but the last ``keep``."""
    written, target = partial(folder, manifest["step"]), place(folder, manifest["step"])
    for name, entry in manifest["files"].items():
        _wait_for(written / name, entry["bytes"])
    with open(written / MANIFEST, "w") as f:
        json.dump(manifest, f, indent=1)
        _to_disk(f)
    _sync(written)
    before = target.with_name(f"{target.name}{_BEFORE}")
    if target.exists():  # the same step once more
        target.rename(before)
    written.rename(target)
    _sync(folder)
    shutil.rmtree(before, ignore_errors=True)
    for step in complete_steps(folder)[:-keep]:
        # Renamed first: half a checkpoint must not look like a whole one.
        old = place(folder, step).rename(folder / f"step-{step:010d}.old")
        shutil.rmtree(old, ignore_errors=True)


def read_manifest(folder: Path, step: int | None) -> dict[str, Any] | None:
    """The manifest of a step's checkpoint, default the last one's; None if there is none at all.

    Called by rank 0: puts back what a save broke off from replacing.
    """
    restore(folder)
    steps = complete_steps(folder)
    if step is None and not steps:
        return None
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"{folder} has no complete checkpoint of step {step}, but of {steps}")
    path = place(folder, step) / MANIFEST
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError(f"{path} is of format {found['format']}, not {FORMAT}")
        found["ranks"], found["files"][SHARED]["bytes"]  # noqa: B018
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): remove {path.parent} to go on from the one before"
        ) from error
    return found  # type: ignore[no-any-return]


def _wait_for(path: Path, size: int) -> None:
    until = time.monotonic() + _VISIBLE
    while True:
        with contextlib.suppress(OSError):
            if path.stat().st_size == size:
                return
        if time.monotonic() > until:
            raise ValueError(
                f"rank 0 does not see {path.name}, which its rank has written: "
                f"{path.parent.parent} must be on a file system that all nodes share"
            )
        time.sleep(0.1)


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Has a folder's entries on disk, where its file system can."""
    with contextlib.suppress(OSError), _opened(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
