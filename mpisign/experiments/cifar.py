"""CIFAR-10 in its two published forms: binary records, and pickles that are not trusted.

A binary record is one label byte and 3,072 pixels: red, green, blue, each 32 x 32 in row order.
The Python form is a pickled dict whose b"data" is uint8 (n, 3072) and b"labels" a list.
Source: www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign.experiments.data import Dataset
from mpisign.experiments.errors import DataError

_PIXELS = 3 * 32 * 32
_FOLDERS = (".", "cifar-10-batches-bin", "cifar-10-batches-py")
_BATCHES = range(1, 6)

Part = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def load(directory: Path) -> Dataset | None:
    """The data set in ``directory``, from the training batches that are there; None without any.

    Raises DataError for a file that is missing or not of its form.
    """
    found = _locate(directory)
    if found is None:
        return None
    folder, suffix = found
    read = read_binary if suffix else read_python
    paths = [folder / f"data_batch_{i}{suffix}" for i in _BATCHES]
    parts = [read(path) for path in paths if path.is_file()]
    test_path = folder / f"test_batch{suffix}"
    if not test_path.is_file():
        raise DataError(f"{folder}: {test_path.name} is missing")
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    test_images, test_labels = read(test_path)
    return Dataset("cifar-10", _scaled(images), labels, _scaled(test_images), test_labels)


def read_binary(path: Path) -> Part:
    """One ``.bin`` batch: pixels (n, 3072) and labels (n,)."""
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % (1 + _PIXELS):
        raise DataError(f"{path}: expected records of {1 + _PIXELS} bytes, got {len(data)} bytes")
    records = data.reshape(-1, 1 + _PIXELS)
    return _checked(path, records[:, 1:], records[:, 0].astype(np.int64))


def read_python(path: Path) -> Part:
    """One pickled batch, read without running what it may carry; DataError if it carries more."""
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a broken pickle may raise anything
        raise DataError(f"{path}: not a CIFAR-10 batch: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path}: expected a dict, got {type(batch).__name__}")
    pixels, labels = (batch.get(key, batch.get(key.decode())) for key in (b"data", b"labels"))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise DataError(f"{path}: expected an array of bytes under 'data'")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: expected a list of numbers under 'labels'")
    try:
        return _checked(path, pixels, np.array(labels, dtype=np.int64))
    except OverflowError as error:
        raise DataError(f"{path}: labels must be 0 to 9") from error


class _Unpickler(pickle.Unpickler):
    """Knows no names but the four that an array of bytes takes."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = "multiarray"
        allowed = {
            ("multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _byte_type,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside itself")


def _empty_array(kind: Any, shape: Any, code: Any) -> npt.NDArray[np.uint8]:
    """numpy's _reconstruct, for the one array it may make: the state that follows fills it."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it makes an array of another class")
    return np.empty(0, dtype=np.uint8)


def _byte_type(code: Any, *flags: Any) -> np.dtype[Any]:
    # A new object each time: the state that follows writes into it.
    if code not in ("u1", b"u1", "uint8", b"uint8"):
        raise pickle.UnpicklingError(f"it holds an array of {code!r}")
    return np.dtype("u1", False, True)


def _latin1(text: Any, codec: Any = "latin1") -> bytes:
    """How Python 3 writes bytes into an old protocol."""
    if not isinstance(text, str) or codec not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it uses the codec {codec!r}")
    return text.encode("latin1")


def _checked(path: Path, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Part:
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or len(pixels) != len(labels):
        raise DataError(
            f"{path}: expected pixels (n, {_PIXELS}) and n labels, "
            f"got {pixels.shape} and {len(labels)}"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: labels must be 0 to 9, and at least one")
    return pixels, labels


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.divide(pixels.reshape(-1, 3, 32, 32), 255, dtype=np.float32)


def _locate(directory: Path) -> tuple[Path, str] | None:
    for folder in _FOLDERS:
        for suffix in (".bin", ""):
            if (directory / folder / f"data_batch_1{suffix}").is_file():
                return directory / folder, suffix
    return None
