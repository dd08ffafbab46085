"""Data sets of images in their published files: Fashion-MNIST and MNIST (IDX), CIFAR-10."""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign.experiments.errors import DataError

#: The fields of a ``data.Dataset``, in their order.
Parts = tuple[Any, ...]

_LIMIT = 1 << 31  # bytes: a header that asks for more is not one of these data sets


def load_idx(directory: Path) -> Parts | None:
    """(Fashion-)MNIST, yann.lecun.com/exdb/mnist; None without training images of these names."""
    if not _find(directory, "train-images", 3):
        return None
    parts: list[Any] = []
    for part in ("train", "t10k"):
        images, labels = (
            read_idx(_require(directory, f"{part}-{stem}", dimensions), dimensions)
            for stem, dimensions in (("images", 3), ("labels", 1))
        )
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(f"{directory}: {part} has {len(images)} images, {len(labels)} labels")
        if labels.max() > 9:
            raise DataError(f"{directory}: {part}-labels must be 0 to 9, got {labels.max()}")
        parts += [images[:, None], labels.astype(np.int64)]
    if parts[0].shape[1:] != parts[2].shape[1:]:
        raise DataError(f"{directory}: train and t10k images differ in size")
    fashion = "fashion" in str(directory.resolve()).lower()
    return ("fashion-mnist" if fashion else "idx images", *parts)


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """One IDX file of bytes, gzipped or not: magic, shape, uint8 data of that many dimensions."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions:
                raise DataError(f"{path}: ends within its header")
            magic, *shape = np.frombuffer(header, dtype=">u4").tolist()
            wanted = 0x0800 | dimensions
            if magic != wanted:
                raise DataError(f"{path}: expected magic {wanted:#010x}, got {magic:#010x}")
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
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)  # of a bytearray: writable


def _find(directory: Path, stem: str, dimensions: int) -> list[Path]:
    names = [f"{stem}{s}idx{dimensions}-ubyte{end}" for s in "-." for end in ("", ".gz")]
    return [directory / name for name in names if (directory / name).is_file()]


def _require(directory: Path, stem: str, dimensions: int) -> Path:
    for path in _find(directory, stem, dimensions):
        return path
    raise DataError(f"{directory}: {stem}-idx{dimensions}-ubyte[.gz] is missing")


_PIXELS = 3 * 32 * 32
_FOLDERS = (".", "cifar-10-batches-bin", "cifar-10-batches-py")

Part = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def load_cifar(directory: Path) -> Parts | None:
    """CIFAR-10, cs.toronto.edu/~kriz/cifar.html, by the batches there; None without any."""
    for folder in (directory / name for name in _FOLDERS):
        for suffix, read in ((".bin", read_binary), ("", read_python)):
            if not (folder / f"data_batch_1{suffix}").is_file():
                continue
            paths = [folder / f"data_batch_{i}{suffix}" for i in range(1, 6)]
            parts = [read(path) for path in paths if path.is_file()]
            test_path = folder / f"test_batch{suffix}"
            if not test_path.is_file():
                raise DataError(f"{folder}: {test_path.name} is missing")
            images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
            test_images, test_labels = read(test_path)
            return "cifar-10", _shaped(images), labels, _shaped(test_images), test_labels
    return None


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


def _shaped(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return pixels.reshape(-1, 3, 32, 32)
