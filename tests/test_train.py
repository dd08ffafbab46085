"""``mpisign train`` under the real launchers: what it learns and what it tells."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from launchers import TCP, find, run
from test_data import write_idx

for needed in ("torch", "mpi4py", "sklearn", "rich", "matplotlib"):
    pytest.importorskip(needed, reason='pip install "mpisign[train]"')

pytestmark = pytest.mark.mpi

ENV = {"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
TRAIN = [sys.executable, "-m", "mpisign", "train"]
QUICK = ["--steps", "40"]


def mpirun(n, *mca):
    return [find("mpirun"), "-n", str(n), "--oversubscribe", "--bind-to", "none", *mca]


def gloo(n):
    pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")
    return [find("horovodrun"), "-np", str(n), "--gloo"]


def horovod_mpi(n):
    pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")
    return [find("horovodrun"), "-np", str(n), "--mpi", "--mpi-args=--oversubscribe"]


def own_network():
    """A loopback device that carries no one else's bytes, where that is permitted."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"], capture_output=True).returncode:
        return []
    return [unshare, "-n", sys.executable, "tests/ranks/own_network.py"]


def train(launcher, *options, folder, timeout=240):
    """Runs to the end; (the JSON's ways by name, the whole JSON, the output)."""
    path = folder / "result.json"
    done = run([*launcher, *TRAIN, *options, "--json", path], timeout=timeout, env=ENV)
    result = json.loads(path.read_text())
    assert all(way["identical"] for way in result["ways"]), done.stdout
    return {way["way"]: way for way in result["ways"]}, result, done.stdout


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Four honest ranks over TCP with all defaults."""
    folder = tmp_path_factory.mktemp("honest")
    launcher = [*own_network(), *mpirun(4, *TCP)]
    files = ["--plot", folder / "curves.png", "--markdown", folder / "page.md"]
    if find_spec("tensorboard"):
        files += ["--tensorboard", folder / "runs"]
    ways, result, output = train(launcher, *files, folder=folder)
    return ways, result, output, folder


def test_curves_in_tensorboard(honest):
    """A folder for each way, with the accuracy and the bytes of the table."""
    pytest.importorskip("tensorboard", reason='pip install "mpisign[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ways, _, _, folder = honest
    assert {path.name for path in (folder / "runs").iterdir()} == set(ways)
    for name, way in ways.items():
        events = EventAccumulator(str(folder / "runs" / name))
        events.Reload()
        last = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
        assert last["test accuracy"] == pytest.approx(way["accuracy"])
        assert last["bytes per step/sent"] == pytest.approx(way["sent"], rel=0.1)
        assert last["train/loss"] < 0.5
        assert ("votes/ties" in last) == (name == "mpi-vote")
        assert ("votes/margin" in events.Tags()["histograms"]) == (name == "mpi-vote")


def test_the_vote_learns_as_well_as_the_average(honest):
    ways, _, _, _ = honest
    assert ways["mpi-fp32"]["accuracy"] > 0.95
    assert ways["mpi-vote"]["accuracy"] > ways["mpi-fp32"]["accuracy"] - 0.02


def test_bytes_against_the_kernels_count(honest):
    """What stats() booked is what TCP carried, and a vote is 14 times less at least."""
    ways, _, _, _ = honest
    for way in ways.values():
        assert way["sent"] == pytest.approx(way["received"])
        assert way["sent"] == pytest.approx(way["wire"], rel=0.25), way["way"]
        assert way["stats"]["exchange"]["sent"] == pytest.approx(
            way["sent"] * way["steps"], rel=0.01
        )
    fp32, vote = ways["mpi-fp32"], ways["mpi-vote"]
    assert fp32["sent"] / vote["sent"] >= 14 and fp32["wire"] / vote["wire"] >= 14
    ring = 2 * 3 / 4 * 4 * fp32["parameters"]
    assert ring <= fp32["sent"] < 1.01 * ring


def test_the_report(honest):
    ways, result, output, folder = honest
    assert result["ranks"] == 4 and result["one_machine"] and result["data"] == "digits"
    assert result["versions"]["torch"] and "MPI" in result["versions"]["library"]
    assert result["settings"]["ways"] == ["mpi-fp32", "mpi-vote"]
    for way in ways.values():
        assert len(way["digests"]) == 4 and len(way["digests"][0]) == 64
        assert way["curve"][0]["step"] == 0 and way["curve"][-1]["step"] == way["steps"]
        assert way["curve"][-1]["accuracy"] == way["accuracy"]
        row = next(
            line for line in output.splitlines() if way["label"] in line and "step" not in line
        )
        cells = row.split(way["label"])[1].split()
        assert cells[0] == f"{way['accuracy']:.1%}" and cells[1] == f"{way['sent']:,.0f}"
        assert cells[4] == f"{way['wire']:,.0f}"
    assert "equal on all ranks, bit for bit" in output
    assert "\x1b" not in output, "escape sequences in what is no terminal"
    page = (folder / "page.md").read_text()
    assert page.count("<!-- mpisign train -->") == 2 and "    mpisign train --plot" in page
    assert "| method | test accuracy |" in page and " cores." in page
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_one_of_four_reversed(honest, tmp_path):
    """-100 g from one rank: the average runs away from it, the vote has one vote more to win."""
    ways, _, _ = train(mpirun(4), "--adversaries", "1", folder=tmp_path)
    assert ways["mpi-fp32"]["accuracy"] < 0.5
    assert ways["mpi-vote"]["accuracy"] > honest[0]["mpi-vote"]["accuracy"] - 0.03


@pytest.mark.parametrize(
    ("hostile", "attack", "low", "high"),
    [
        pytest.param(3, "sign-flip", 0.6, 1.0, marks=pytest.mark.many),
        pytest.param(3, "reverse", 0.6, 1.0, marks=pytest.mark.many),
        pytest.param(4, "reverse", 0.0, 0.3, marks=pytest.mark.many),
    ],
)
def test_of_seven(hostile, attack, low, high, tmp_path):
    """The majority decides: three of seven do not stop it, four do."""
    options = ["--adversaries", str(hostile), "--attack", attack]
    few = ["--ways", "mpi-vote", "--steps", "90"]
    ways, _, _ = train(mpirun(7), *few, *options, folder=tmp_path)
    assert low <= ways["mpi-vote"]["accuracy"] <= high


@pytest.mark.horovod
@pytest.mark.parametrize(
    "launcher", [gloo, pytest.param(horovod_mpi, marks=pytest.mark.many)], ids=lambda f: f.__name__
)
def test_under_horovodrun(launcher, tmp_path):
    options = ["--via", "horovod"] if launcher is horovod_mpi else []
    ways, result, _ = train(launcher(2), *options, *QUICK, folder=tmp_path)
    assert list(ways) == ["horovod-fp32", "horovod-counters", "horovod-planes"]
    assert result["ranks"] == 2
    sent = {name: way["sent"] for name, way in ways.items()}
    assert sent["horovod-fp32"] / sent["horovod-counters"] > 10
    assert sent["horovod-fp32"] / sent["horovod-planes"] > 25
    if launcher is gloo:
        assert all(way["wire"] > 0.8 * way["sent"] for way in ways.values())
    else:
        assert all(way["wire"] is None for way in ways.values())


def test_every_way_in_one_job(tmp_path):
    pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")
    ways, _, _ = train(mpirun(2), "--via", "all", *QUICK, folder=tmp_path)
    assert len(ways) == 7
    # One seed, one rule: what differs is the order of additions.
    for other in ("horovod-fp32", "torch-fp32"):
        assert ways["mpi-fp32"]["accuracy"] == pytest.approx(ways[other]["accuracy"], abs=0.02)
    # Votes on the same signs do not differ at all, whatever carries them.
    assert ways["mpi-vote"]["digests"] == ways["torch-vote"]["digests"]


def test_under_torchrun(tmp_path):
    launcher = [find("torchrun"), "--nproc-per-node", "2"]
    done = run(
        [*launcher, "-m", "mpisign.cli", "train", *QUICK, "--json", tmp_path / "result.json"],
        env=ENV,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    ways = {way["way"]: way for way in result["ways"]}
    assert list(ways) == ["torch-fp32", "torch-vote"] and result["versions"]["library"] == "Gloo"
    for way in ways.values():
        assert way["identical"] and way["wire"] > 0.8 * way["sent"], done.stdout
    assert ways["torch-fp32"]["sent"] / ways["torch-vote"]["sent"] > 25
    refused = run([*launcher, "-m", "mpisign.cli", "train", "--via", "mpi"], env=ENV, check=False)
    assert refused.returncode and "torchrun starts no MPI" in refused.stdout


def test_alone_and_on_fashion_mnist_files(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 64), ("t10k", 10)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", rng.integers(0, 10, n))
    ways, result, _ = train([], "--data", tmp_path, "--epochs", "1", folder=tmp_path)
    assert result["ranks"] == 1
    for way in ways.values():
        assert way["steps"] == 4 and way["sent"] == 0 and way["wire"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adversaries", "2"], "--adversaries must be below the number of ranks, got 2 of 2"),
        (["--json", "/no/such/file"], "--json /no/such/file: not a file in an existing directory"),
        pytest.param(
            ["--data", "/no/such"], "--data /no/such: no such directory", marks=pytest.mark.many
        ),
        pytest.param(["--lr", "fast"], "'fast' is not a learning rate", marks=pytest.mark.many),
    ],
)
def test_what_the_person_can_put_right(options, message):
    done = run([*mpirun(2), *TRAIN, *options], timeout=120, env=ENV, check=False)
    assert done.returncode == 2 and done.stdout.count(message) == 1, done.stdout
    assert "Traceback" not in done.stdout


def test_mpi_ways_under_gloo_are_refused():
    done = run([*gloo(2), *TRAIN, "--via", "mpi"], timeout=120, env=ENV, check=False)
    assert done.returncode != 0
    assert done.stdout.count("mpisign train: error: HOROVOD_SIZE says 2") == 1, done.stdout


def test_help_teaches():
    text = run([*TRAIN, "--help"]).stdout
    for needed in ("mpirun -n 4", "horovodrun -np 4", "srun", "times fewer", "--attack"):
        assert needed in text


def test_steps_and_rates():
    from mpisign.experiments import compare, data
    from mpisign.experiments.settings import Settings

    dataset = data.load()
    assert compare.steps_of(Settings(epochs=2), dataset, 4) == 2 * (1348 // 4 // 16)
    assert compare.steps_of(Settings(steps=7), dataset, 4) == 7
    cell = Settings(lr=0.5).cell(votes=True, size=4)
    assert cell.rate(0, 10) == 0.5 and math.isclose(cell.rate(10, 10), 0, abs_tol=1e-9)
