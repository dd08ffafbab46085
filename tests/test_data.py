"""Data sets: the published file formats, read from small files that these tests write."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest

from mpisign.experiments import data, image_files
from mpisign.experiments.errors import DataError

RNG = np.random.default_rng(0)


def write_idx(path, array, magic=None, cut=0, extra=b""):
    magic = 0x0800 | array.ndim if magic is None else magic
    head = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
    body = head + array.astype(np.uint8).tobytes()
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(body[: len(body) - cut] + extra)


@pytest.fixture(params=["", ".gz"])
def fashion(tmp_path, request):
    """(directory, suffix, arrays) of a tiny Fashion-MNIST."""
    arrays = {}
    for part, n in (("train", 20), ("t10k", 6)):
        arrays[part] = (RNG.integers(0, 256, (n, 28, 28)), RNG.integers(0, 10, n))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{request.param}", arrays[part][0])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{request.param}", arrays[part][1])
    return tmp_path, request.param, arrays


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    d = data.load()
    assert d.train_images.shape == (1348, 1, 8, 8) and d.test_images.shape == (449, 1, 8, 8)
    assert d.train_images.dtype == np.float32 and d.train_images.max() == 1.0
    assert set(d.test_labels) == set(range(10))
    again = data.load()
    assert np.array_equal(d.test_images, again.test_images)
    bunch = datasets.load_digits()  # which takes seconds to import
    everything = np.concatenate([d.test_images, d.train_images])[:, 0]
    order = np.random.default_rng(0).permutation(1797)
    assert np.array_equal(everything, (bunch.images[order] / 16).astype(np.float32))
    assert np.array_equal(np.concatenate([d.test_labels, d.train_labels]), bunch.target[order])


def test_shards_are_disjoint_and_of_one_length():
    pytest.importorskip("sklearn")
    d = data.load()
    shards = [d.shard(r, 7)[0] for r in range(7)]
    assert {len(s) for s in shards} == {1348 // 7}
    pixels = np.concatenate(shards).reshape(-1, 64)
    assert len(np.unique(pixels, axis=0)) == len(np.unique(d.train_images[: len(pixels)], axis=0))
    with pytest.raises(DataError, match="1348 images do not reach 2000 ranks"):
        d.shard(0, 2000)


def test_batches_cover_an_epoch_and_repeat_with_the_seed():
    images, labels = np.zeros((10, 1, 2, 2), np.float32), np.arange(10)
    feed = data.batches(images, labels, 5, seed=3, rank=1)
    first, second = next(feed)[1], next(feed)[1]
    assert sorted([*first, *second]) == list(range(10))
    again = next(data.batches(images, labels, 5, seed=3, rank=1))[1]
    other = next(data.batches(images, labels, 5, seed=3, rank=2))[1]
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(next(data.batches(images, labels, 64, seed=0, rank=0))[1]) == 10


def test_fashion_mnist(fashion):
    directory, _, arrays = fashion
    d = data.load(directory)
    assert d.train_images.shape == (20, 1, 28, 28) and d.train_images.dtype == np.uint8
    assert np.array_equal(d.train_images[:, 0], arrays["train"][0])
    images, _ = next(data.batches(d.train_images, d.train_labels, 20, 0, 0))
    assert images.dtype == np.float32 and 0 <= images.min() < images.max() <= 1
    assert np.array_equal(d.test_labels, arrays["t10k"][1]) and d.test_labels.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": 0x0D03}, "expected magic 0x00000803, got 0x00000d03"),
        ({"cut": 1}, "expected 15680 bytes .* got 15679"),
        ({"extra": b"x"}, "expected 15680 bytes .* got more"),
        ({"cut": 15690}, "ends within its header"),
    ],
)
def test_bad_idx_files(fashion, change, message):
    directory, suffix, arrays = fashion
    write_idx(directory / f"train-images-idx3-ubyte{suffix}", arrays["train"][0], **change)
    with pytest.raises(DataError, match=message):
        data.load(directory)


def test_idx_that_promises_terabytes(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x0803, 2**31, 2**31, 2**31))
    with pytest.raises(DataError, match="asks for"):
        image_files.read_idx(path, 3)


def test_truncated_gzip_and_missing_file(fashion):
    directory, suffix, _ = fashion
    path = directory / f"t10k-images-idx3-ubyte{suffix}"
    if suffix:
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="cannot be read"):
            data.load(directory)
    path.unlink()
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.* is missing"):
        data.load(directory)


def test_labels_and_images_must_fit(fashion):
    directory, suffix, _ = fashion
    write_idx(directory / f"train-labels-idx1-ubyte{suffix}", np.arange(9))
    with pytest.raises(DataError, match="20 images, 9 labels"):
        data.load(directory)
    write_idx(directory / f"train-labels-idx1-ubyte{suffix}", np.full(20, 10))
    with pytest.raises(DataError, match="must be 0 to 9, got 10"):
        data.load(directory)


def cifar_batch(n):
    return RNG.integers(0, 256, (n, 3072)).astype(np.uint8), [
        int(i) for i in RNG.integers(0, 10, n)
    ]


def write_binary(path, pixels, labels):
    path.write_bytes(np.column_stack([np.array(labels, np.uint8), pixels]).tobytes())


def write_python(path, pixels, labels, protocol=2):
    batch = {
        b"batch_label": b"training batch 1 of 5",
        b"labels": labels,
        b"data": pixels,
        b"filenames": [b"a.png"] * len(labels),
    }
    path.write_bytes(pickle.dumps(batch, protocol=protocol))


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("nested", [False, True])
def test_cifar(tmp_path, form, nested):
    folder = tmp_path / f"cifar-10-batches-{form}" if nested else tmp_path
    folder.mkdir(exist_ok=True)
    write, suffix = (write_binary, ".bin") if form == "bin" else (write_python, "")
    first, second, test = cifar_batch(7), cifar_batch(5), cifar_batch(4)
    write(folder / f"data_batch_1{suffix}", *first)
    write(folder / f"data_batch_2{suffix}", *second)
    with pytest.raises(DataError, match="test_batch.* is missing"):
        data.load(tmp_path)
    write(folder / f"test_batch{suffix}", *test)
    d = data.load(tmp_path)
    assert d.name == "cifar-10" and d.train_images.shape == (12, 3, 32, 32)
    assert list(d.train_labels) == first[1] + second[1]
    assert np.array_equal(d.test_images.reshape(4, -1), test[0])


def test_cifar_pickle_as_python_2_wrote_it(tmp_path):
    """The published files: str in binary, numpy.core's names, a dtype that is filled by state."""
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8)
    raw = pixels.tobytes()
    blob = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
        b"U\x06labelsq\x04]q\x05(K\x06K\x09eU\x04dataq\x06"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
        b"(K\x01M\x02\x00M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<I", len(raw)) + raw + b"tbU\x09filenamesq\x0c]q\x0d(U\x01aU\x01beu."
    )
    path = tmp_path / "data_batch_1"
    path.write_bytes(blob)
    read, labels = image_files.read_python(path)
    assert np.array_equal(read.reshape(-1), pixels) and list(labels) == [6, 9]


class Runs:
    """Pickles into a call of anything."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["top", "data", "labels", "filenames"])
def test_hostile_pickles_run_nothing(tmp_path, protocol, where):
    path, mark = tmp_path / "data_batch_1", tmp_path / "it-ran"
    evil = Runs(os.mkdir, str(mark))
    pixels, labels = cifar_batch(2)
    batch = {b"data": pixels, b"labels": labels, b"filenames": []}
    batch = evil if where == "top" else {**batch, where.encode(): evil}
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DataError, match="mkdir, which is not allowed"):
        image_files.read_python(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        Runs(eval, "1"),
        Runs(np.load, "x"),
        Runs(getattr, "x", "upper"),
        np.array([object()], dtype=object),
        np.zeros(3072, dtype=np.float64),
        {b"data": [1], b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2**70]},
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        [1, 2],
    ],
)
def test_pickles_of_something_else(tmp_path, hostile):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(hostile, protocol=2))
    with pytest.raises(DataError, match="data_batch_1"):
        image_files.read_python(path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"hello", RNG.bytes(64)])
def test_what_is_no_pickle(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError):
        image_files.read_python(path)


def test_bad_binary_and_bad_directories(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"x" * 3072)
    with pytest.raises(DataError, match="records of 3073 bytes, got 3072"):
        image_files.read_binary(tmp_path / "data_batch_1.bin")
    with pytest.raises(DataError, match="no such directory"):
        data.load(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="neither Fashion-MNIST"):
        data.load(empty)
