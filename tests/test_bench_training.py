"""``mpisign bench training``: what it tells, and that its figures agree. No timings."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from types import SimpleNamespace

import pytest
from launchers import mpirun

from mpisign import cli
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.training import names
from mpisign.bench.training.results import (
    AccuracyRow,
    MemoryRow,
    Point,
    Run,
    StepRow,
    beside,
    goals,
)
from mpisign.bench.training.results import less_than_base as less
from mpisign.bench.training.trainer import Block, Trainer
from mpisign.compressors.names import COMPRESSORS
from mpisign.experiments.errors import SettingsError

MODES = ("step", "accuracy", "memory")
NETLAB = {"NETLAB": "1", "NETLAB_INTERFACE": "lo", "NETLAB_RATE": "none", "NETLAB_NODE": "0"}
HOROVOD = importlib.util.find_spec("horovod") is not None
STEPS = ("none", "mpi-signum", "mpi-at-step-lion", "ddp-fp16", "horovod-unmodified-signum")


@pytest.fixture(scope="module")
def modes(tmp_path_factory):
    """All modes' documents by two ranks, as if in netlab, and what they printed."""
    folder = tmp_path_factory.mktemp("training")
    ways = [",".join(STEPS), "ddp-fp32,mpi-at-step", "mpi-at-step,ddp-fp32"]
    program = [sys.executable, "tests/ranks/bench_training_modes.py", folder, *ways]
    output = mpirun(2, *program, env=NETLAB, timeout=240).stdout
    found = {m: json.loads((folder / f"{m}.json").read_text()) for m in MODES}
    return found, folder, output


@pytest.mark.mpi
def test_steps_of_every_method(modes):
    document = modes[0]["step"]
    assert document["ranks"] == 2 and document["settings"]["mode"] == "step"
    units = (math.isqrt(76**2 + 4 * 5000) - 76) // 2 + 1
    assert document["parameters"] == units**2 + 76 * units + 10 >= 5000
    rows = {row["method"]: row for row in document["rows"]}
    assert tuple(rows) == STEPS
    if not HOROVOD:
        assert "horovod" in rows.pop("horovod-unmodified-signum")["error"]
    none = [b["seconds"] for b in rows["none"]["blocks"]]
    for name, row in rows.items():
        assert not row["error"] and len(row["blocks"]) == 3
        seconds = [b["seconds"] for b in row["blocks"]]
        assert row["time"]["median"] == pytest.approx(sorted(seconds)[1])
        ratios = sorted(s / n for s, n in zip(seconds, none, strict=True))
        assert row["ratio"]["median"] == pytest.approx(ratios[1])
        assert row["identical"] is (None if name == "none" else True)
        assert all(b["cpu"] > 0 for b in row["blocks"])


@pytest.mark.mpi
def test_bytes_of_a_step(modes):
    """A rank sends a plane: half of it to the other rank's shard, half as result."""
    document = modes[0]["step"]
    rows = {row["method"]: row for row in document["rows"]}
    plane = document["parameters"] / 8
    for name in ("mpi-signum", "mpi-at-step-lion"):
        assert all(plane <= b["sent"] <= plane + 8 * 600 for b in rows[name]["blocks"])
    assert rows["none"]["blocks"][0]["sent"] == 0
    # Gloo is TCP on the loopback device, where both ranks' bytes are seen.
    fp16 = 2 * 2 * document["parameters"]
    assert all(b["counted"] > 0.95 * fp16 for b in rows["ddp-fp16"]["blocks"])


@pytest.mark.mpi
def test_the_reports(modes):
    documents, folder, output = modes
    for mode in MODES:
        assert (folder / f"{mode}.png").read_bytes().startswith(b"\x89PNG")
        page = (folder / f"page-{mode}.md").read_text()
        assert "| method | " in page and page.count(f"<!-- mpisign bench training: {mode} -->") == 2
        assert documents[mode]["command"].startswith("mpisign bench training --")
    table = output[output.index("parameters in 2 hidden layers") :]
    table = table[: table.index("mode accuracy")]
    assert "x none" in table and "DIFFER" not in table and "x fp16: needs" in table
    assert all(name in table for name in STEPS)
    assert "steps to" in output and "DIFFER" not in output


@pytest.mark.mpi
def test_time_to_an_accuracy(modes):
    for row in modes[0]["accuracy"]["rows"]:
        assert not row["error"] and row["identical"] is True and len(row["runs"]) == 2
        for run in row["runs"]:
            assert [p["step"] for p in run["curve"]] == [20, 40, 60]
            seconds = [p["seconds"] for p in run["curve"]]
            assert 0 < seconds[0] < seconds[1] < seconds[2]
            assert run["curve"][-1]["accuracy"] > 0.6, "it does not learn"


@pytest.mark.mpi
def test_memory(modes):
    document = modes[0]["memory"]
    none, ours, peer = document["rows"]
    d = document["parameters"]
    assert (none["method"], none["traced"], none["resident"]) == ("none", 0, 0)
    assert ours["state"] == none["state"] == peer["state"] == 4 * d  # a momentum each
    assert ours["plane"] == -(-d // 8) and ours["bucket"] is None
    assert ours["traced"] >= ours["plane"], "a plane at least is packed into"


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "needs two ranks or more: mpirun -n 4 mpisign bench training"),
        (["--ways", "mpi,telegraph"], "'telegraph' is none of none, horovod-fp32"),
        (["--compression", "zip"], "'zip' is none of sign, signum"),
        (["--accuracy", "95"], "'95' is not an accuracy above 0 and below 1"),
        (["--lr", "ddp-signum"], "'ddp-signum' is not a method and its learning rate"),
        (["--ways", "ddp", "--lr", "mpi-signum=1"], "--lr: no method of this run is 'mpi-signum'"),
        (["--memory", "--accuracy", "0.9"], "--accuracy: not allowed with argument --memory"),
        (["--parameters", "1"], "'1' is not a number from 8"),
        (["--tune", "--ways", "none"], "--ways: none of them communicates"),
    ],
)
def test_bad_input_is_one_line_and_status_2(more, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "training", *more])
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mpisign bench training: error: ") and message in last


def test_too_large_a_batch():
    settings = SimpleNamespace(batch_size=700, time_limit=1.0)
    two = SimpleNamespace(rank=0, size=2)
    with pytest.raises(SettingsError, match="^--batch-size 700: a rank has 674 of the digits$"):
        Trainer(two, {}, Nodes((0, 0)), settings, None)


def test_help_explains_the_columns(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "training", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(c in told for c in ("x none", "x fp16", "on link", "cpu", "replicas", "traced"))
    assert all(name in told for name in (*names.PEERS, *names.FRONTS, *names.COMPRESSORS))
    assert max(map(len, told.splitlines())) <= 100
    assert set(names.COMPRESSORS) == set(COMPRESSORS) - {"none", "detox", "robust", "accordion"}


def test_names():
    found = names.methods(("none", "mpi", "horovod-unmodified-lion", "mpi-lion"), ("sign", "lion"))
    told = [(w.name, w.front, w.compressor, w.via) for w in found]
    assert told == [
        ("none", "none", "", ""),
        ("mpi-sign", "mpi", "sign", "mpi"),
        ("mpi-lion", "mpi", "lion", "mpi"),
        ("horovod-unmodified-lion", "horovod-unmodified", "lion", "horovod"),
    ]


def block(seconds):
    return Block(seconds, seconds, 0.0, None, {})


def test_ratios_are_of_one_round_each():
    """A machine that slows down between rounds changes no ratio."""
    rows = beside(
        [
            StepRow("none", False, blocks=[block(s) for s in (1.0, 2.0, 4.0)]),
            StepRow("ddp-signum", True, blocks=[block(s) for s in (1.1, 2.2, 4.4)]),
            StepRow("horovod-fp16", False, blocks=[block(s) for s in (5.5, 11.0, 22.0)]),
            StepRow("ddp-fp32", False, error="no"),
        ]
    )
    assert rows[1].ratio.median == pytest.approx(1.1) and rows[1].ratio.spread < 1e-9
    assert rows[1].faster.median == pytest.approx(5) and rows[3].time is None
    (goal,) = goals(rows, Nodes((0, 1), rate=125e6), 10**7)
    assert goal.met and goal.got == pytest.approx(1.1)
    assert list(goals(rows, Nodes((0, 1), rate=125e6), 10**6)) == []
    assert list(goals(rows, Nodes((0, 1)), 10**7)) == []
    assert list(goals(rows, Nodes((0, 1, 2, 3), rate=125e6), 10**7)) == []


def test_times_to_an_accuracy_and_its_goals():
    def row(way, ours, seconds, finals):
        runs = [
            Run(i, [Point(1, seconds, 0.5), Point(2, 2 * seconds, 0.95), Point(3, 9.0, f)], None, 1)
            for i, f in enumerate(finals)
        ]
        return AccuracyRow(way, ours, 0.1, wanted=0.95, runs=runs)

    rows = less(
        [
            row("horovod-fp16", False, 6.0, (0.97, 0.98)),
            row("ddp-signum", True, 1.0, (0.97, 0.97)),
            row("mpi-signum", True, 2.0, (0.96, 0.96)),
        ]
    )
    assert [r.less for r in rows] == [1.0, 6.0, 3.0] and rows[1].steps == 2
    found = list(goals(rows, Nodes((0, 1, 2, 3), rate=125e6), 10**7))
    assert [(g.got, g.met) for g in found[:2]] == [(6.0, True), (3.0, False)]
    assert found[2].got == pytest.approx(0.5) and found[2].what.startswith("ddp-signum")
    never = AccuracyRow("ddp-sign", True, 0.1, wanted=0.99, runs=rows[1].runs)
    assert never.seconds is None and never.steps is None


def test_memory_beside_its_limit():
    known = dict(state=40, resident=0, plane=100, identical=True)
    rows = [
        MemoryRow("mpi-signum", True, traced=120, bucket=30, **known),
        MemoryRow("mpi-at-step-signum", True, traced=120, bucket=None, **known),
        MemoryRow("none", False, traced=0, bucket=None, **known),
    ]
    (goal,) = goals(rows, Nodes((0, 0)), 800)
    assert goal.got == 120 / 130 and goal.met and goal.what.startswith("mpi-signum")
