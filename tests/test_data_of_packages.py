"""Debian's data: Fashion-MNIST and the Bible, found and read once, or an error that helps."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mpisign.experiments import data, progress
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.settings import Settings

torch = pytest.importorskip("torch", reason='pip install "mpisign[train]"')
from mpisign.experiments import compare, tasks  # noqa: E402
from mpisign.experiments.run import simulated  # noqa: E402
from mpisign.experiments.tasks import fashion, text  # noqa: E402
from mpisign.experiments.tasks.images import Images  # noqa: E402

needs_fashion = pytest.mark.skipif(
    not data.FASHION_FOLDER.is_dir(), reason="apt-get install dataset-fashion-mnist"
)
CELL = {"task": "fashion-mnist", "compressor": "signum", "lr": 2e-3, "ranks": 3, "batch_size": 16}
CELL |= {"steps": 20, "evaluations": 1}


@needs_fashion
def test_fashion_mnist_is_read_once_and_nobody_trains_on_what_rates_are_chosen_by():
    whole = data.load(Path("fashion-mnist"))
    assert whole is data.fashion_mnist() and whole.train_images.dtype == np.uint8
    assert len(whole.train_labels) == 60_000 and len(whole.test_labels) == 10_000
    kept, (images, labels) = fashion.parts(None)
    assert len(kept.train_labels) == 58_000 and len(labels) == 2000
    assert np.array_equal(images, whole.train_images[58_000:])
    few, (_, chosen_by) = fashion.parts(600)
    assert len(few.train_labels) == 600 and np.array_equal(chosen_by, labels)


@needs_fashion
def test_studies_learn_fashion_mnist():
    shuffled = simulated(Cell(**CELL))
    assert shuffled["parameters"] == 101_770 and 0.55 < shuffled["test"] < 0.9
    assert abs(shuffled["test"] - shuffled["validation"]) < 0.05
    unequal = simulated(Cell(**CELL, dirichlet=0.1))
    assert unequal["digest"] != shuffled["digest"]
    groups = {"compressor": "detox", "compressor_options": {"inner": "sign"}, "ranks": 6}
    held = simulated(Cell(**{**CELL, **groups, "adversaries": 1, "attack": "ipm", "steps": 8}))
    assert held["test"] > 0.3
    alone = {**CELL, "ranks": 1, "steps": None, "epochs": 1}
    lenet = simulated(Cell(**alone, task_options={"net": "lenet", "images": 200}))
    assert lenet["parameters"] == 61_706 and lenet["steps"] == 200 // 16


@needs_fashion
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "resnet"}, "net: expected one of perceptron, lenet, got 'resnet'"),
        ({"net": "lenet", "hidden": [9]}, "hidden: expected none"),
        ({"images": 0}, "images: expected a whole number from 1, got 0"),
        ({"width": 1}, "task_options of fashion-mnist: .*width"),
    ],
)
def test_options_that_fashion_mnist_lacks(options, message):
    with pytest.raises(SettingsError, match=message):
        tasks.build(Cell(**CELL, task_options=options), 0)


def test_without_the_packages(monkeypatch, tmp_path):
    text.read()  # of another text, so that the Bible is not at hand
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="apt-get install bible-kjv"):
        text.read("bible")
    with pytest.raises(SettingsError, match="corpus: expected pydoc or bible, got 'koran'"):
        text.read("koran")
    monkeypatch.setenv("MPISIGN_FASHION_MNIST", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    read = data.fashion_mnist.__wrapped__  # what is kept from other tests left aside
    with pytest.raises(SettingsError, match="apt-get install dataset-fashion-mnist, or name a"):
        read()
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(SettingsError, match="found neither Fashion-MNIST"):
        data.load(Path("fashion-mnist"))  # a folder of that name is what is meant


@pytest.mark.skipif(shutil.which("bible") is None, reason="apt-get install bible-kjv")
def test_the_bible():
    read = text.read("bible")
    assert len(read) > 4_000_000 and read.max() < len(text.ALPHABET)
    assert "".join(text.ALPHABET[c] for c in read[:16]) == "In the beginning"
    assert text.read("bible") is read
    cell = Cell("text", "none", 1e-3, 2, 2, steps=1, task_options={"corpus": "bible", "width": 8})
    assert 4 < simulated(cell)["test"] < 8


def one_by_one(labels, ranks, alpha, seed):
    """``data.dirichlet`` as it says it: one image after the other."""
    rng = np.random.default_rng(seed)
    left = [list(rng.permutation(np.flatnonzero(labels == c))) for c in np.unique(labels)]
    frequencies = np.array([len(of) for of in left]) / len(labels)
    parts = []
    for _ in range(ranks):
        wanted, part = rng.dirichlet(alpha * frequencies), []
        for _ in range(len(labels) // ranks):
            weights = np.where([bool(of) for of in left], wanted, 0.0)
            if weights.sum() == 0:
                weights = np.array([len(of) for of in left], dtype=np.float64)
            part.append(left[rng.choice(len(left), p=weights / weights.sum())].pop())
        parts.append(part)
    return parts


@pytest.mark.parametrize(("images", "ranks"), [(600, 7), (50, 50), (400, 1)])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 1000.0])
def test_the_fast_dirichlet_deals_as_the_slow_one(images, ranks, alpha):
    labels = np.random.default_rng(images).integers(0, 10, images)
    for seed in range(2):
        expected = one_by_one(labels, ranks, alpha, seed)
        assert np.array_equal(data.dirichlet(labels, ranks, alpha, seed), expected)


def test_points_of_a_curve_are_of_a_sample_and_the_end_is_of_all():
    images, labels = torch.zeros(30, 1, 2, 2).numpy(), np.r_[np.zeros(10), np.ones(20)].astype(int)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    torch.nn.init.zeros_(net[1].weight)
    net[1].bias.data = torch.tensor([1.0, 0.0])  # says 0
    feed = data.batches(images, labels, 4, 0, 0)
    task = Images(net, feed, 2, (images, labels), sample=10)
    seen = [task.evaluate()[1] for step in range(3) if not step or task.loss(step) is not None]
    assert seen == [1.0, 1.0, 1 / 3]


def test_default_steps_of_small_and_large_sets():
    def steps(images, size, **options):
        pixels = np.zeros((images, 1, 1, 1), np.uint8)
        dataset = data.Dataset("d", pixels, np.zeros(images, np.int64), pixels[:1], np.zeros(1))
        return compare.steps_of(Settings(**options), dataset, size)

    assert steps(1348, 4) == 15 * (1348 // 4 // 16)
    assert steps(60_000, 4) == steps(60_000, 1) == 2000
    assert steps(60_000, 4, epochs=3) == 3 * 937 and steps(60_000, 4, steps=9000) == 9000
    assert steps(60_000, 4, detox=2) == 2000 and steps(60_000, 64) == 15 * 58


def test_plain_progress_says_how_long(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.of_steps("vote", 1000, shown=True) as report:
        now[0] = 10.0
        report(100)
    out = capsys.readouterr().out
    assert "step   100 of 1000; about 90 s left" in out and out.count("left") == 2
