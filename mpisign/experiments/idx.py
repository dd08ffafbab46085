"""Fashion-MNIST, and MNIST, in their published IDX files.

Four big-endian numbers (magic 0x00000803 for three dimensions of bytes, count, rows, columns), then
a byte a pixel; labels have magic 0x00000801 and the count only. Source: yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpisign.experiments.data import Dataset
from mpisign.experiments.errors import DataError

_PARTS = ("train", "t10k")
_LIMIT = 1 << 31  # bytes: a header that asks for more is not one of these data sets


def load(directory: Path) -> Dataset | None:
    """The data set in ``directory``, None if it has no training images under a published name.

    Raises DataError if a file is missing or not as its header says.
    """
    if _find(directory, "train-images", 3) is None:
        return None
    arrays = {}
    for part in _PARTS:
        images = read(_require(directory, f"{part}-images", 3), 3)
        labels = read(_require(directory, f"{part}-labels", 1), 1)
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(f"{directory}: {part} has {len(images)} images, {len(labels)} labels")
        if labels.max() > 9:
            raise DataError(f"{directory}: {part}-labels must be 0 to 9, got {labels.max()}")
        scaled = np.divide(images[:, None], 255, dtype=np.float32)
        arrays[part] = scaled, labels.astype(np.int64)
    if arrays["train"][0].shape[1:] != arrays["t10k"][0].shape[1:]:
        raise DataError(f"{directory}: train and t10k images differ in size")
    return Dataset(_name(directory), *arrays["train"], *arrays["t10k"])


def read(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """One IDX file of bytes, gzipped or not: uint8 array of that many dimensions."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions:
                raise DataError(f"{path}: ends within its header")
            magic, *shape = (int(n) for n in np.frombuffer(header, dtype=">u4"))
            if magic != 0x0800 | dimensions:
                raise DataError(
                    f"{path}: expected magic {0x0800 | dimensions:#010x}, got {magic:#010x}"
                )
            expected = int(np.prod(shape, dtype=object))
            if expected > _LIMIT:
                raise DataError(f"{path}: its header asks for {expected} bytes")
            # Read in pieces and no further than the header says: a small gzip can hold terabytes.
            data = bytearray()
            while len(data) <= expected and (piece := file.read(min(1 << 24, expected + 1))):
                data += piece
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(data) != expected:
        got = f"{len(data)}" if len(data) < expected else "more"
        raise DataError(f"{path}: expected {expected} bytes of {shape}, got {got}")
    return np.frombuffer(bytes(data), dtype=np.uint8).reshape(shape)


def _find(directory: Path, stem: str, dimensions: int) -> Path | None:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = directory / f"{stem}{separator}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _require(directory: Path, stem: str, dimensions: int) -> Path:
    path = _find(directory, stem, dimensions)
    if path is None:
        raise DataError(f"{directory}: {stem}-idx{dimensions}-ubyte[.gz] is missing")
    return path


def _name(directory: Path) -> str:
    return "fashion-mnist" if "fashion" in str(directory.resolve()).lower() else "idx images"
