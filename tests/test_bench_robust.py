"""``mpisign bench robust``: what it tells, and what it refuses. No timings."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from mpisign import cli, robust
from mpisign.bench.measure import Timing
from mpisign.bench.peers import byzfl as peer
from mpisign.bench.record import _plain as as_json
from mpisign.bench.robust import RuleRow
from mpisign.bench.settings import MIXINGS, RULES

QUICK = ("--rows", "7", "--size", "1k", "--runs", "2")


def bench(*options):
    return cli.main(["bench", "robust", *map(str, options)])


def plain(f, aggregate):
    """A class as ByzFL's are: an object, then a call."""
    return type("Rule", (), {"__init__": lambda self, f=0: None, "__call__": aggregate})


@pytest.fixture
def stand_in(monkeypatch):
    """Two rules by NumPy and torch in ByzFL's place, where it is not installed."""
    module = types.ModuleType("byzfl.aggregators")
    module.Average = plain(0, lambda self, x: x.mean(0))
    module.Krum = plain(1, lambda self, x: robust.Krum(1)(x))

    def clip(self, x):
        x *= 0.0
        return x

    module.Clipping = plain(0, clip)
    monkeypatch.setattr(peer, "aggregators", lambda: module)


def test_the_command_knows_every_rule():
    assert RULES == tuple(robust.RULES) and MIXINGS == tuple(robust.MIXINGS)


def test_every_rule_is_measured_without_byzfl(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peer, "aggregators", lambda: None)
    page, mark = tmp_path / "page.md", "<!-- mpisign bench robust -->"
    page.write_text(f"before\n{mark}\nold\n{mark}\nafter\n")
    assert bench(*QUICK, "--json", tmp_path / "r.json", "--markdown", page) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert [(row["framework"], row["rule"]) for row in document["rows"]] == [
        (framework, rule) for framework in ("numpy", "torch") for rule in (*RULES, *MIXINGS)
    ]
    assert all(row["theirs"] is None and row["time"]["median"] > 0 for row in document["rows"])
    assert document["settings"]["f"] == 1
    told = capsys.readouterr().out
    assert "torch, 7 rows of 1k float32, f = 1, 1 thread" in told and peer.HINT in told
    text = page.read_text()
    assert text.startswith(f"before\n{mark}\n\n    mpisign bench robust --rows 7")
    assert (
        text.endswith(f"{mark}\nafter\n") and "| geometric_median |" in text and "old" not in text
    )


def test_results_are_compared_and_rows_stay_as_they_are(stand_in, tmp_path, capsys):
    rules = "mean,krum,clipping,bulyan,nnm+krum"
    path = tmp_path / "r.json"
    assert bench(*QUICK, "--rules", rules, "--dtype", "float64", "--json", path) == 0
    rows = json.loads(path.read_text())["rows"]
    for framework in ("numpy", "torch"):
        of = {row["rule"]: row for row in rows if row["framework"] == framework}
        assert of["mean"]["differs"] < 1e-12 and of["krum"]["differs"] == 0
        assert of["clipping"]["differs"] > 1  # zeros: the stand-in's
        assert of["bulyan"]["theirs"] is None and of["bulyan"]["note"] == "not in ByzFL"
        assert of["krum"]["times"] > 0
    assert "not in ByzFL" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("byzfl") is None, reason="needs ByzFL")
def test_byzfl_itself_agrees(tmp_path):
    try:
        assert bench(*QUICK, "--json", tmp_path / "r.json") == 0
    finally:
        for name in [m for m in sys.modules if m.split(".")[0] == "byzfl"]:
            del sys.modules[name]
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    known = [row for row in rows if row["theirs"]]
    assert len(known) == 22 and all(row["differs"] is None or row["differs"] < 1e-5 for row in rows)


def timing(seconds):
    return Timing.of([seconds])


@pytest.mark.parametrize(
    "ours, limit, theirs, met",
    [(3, 1, 7, True), (3, 1, 5, False), (1.3, 1, 1.2, True), (3, 1, None, None)],
)
def test_the_goal_is_twice_as_fast_or_the_limit(ours, limit, theirs, met):
    row = RuleRow("mean", "numpy", timing(ours), timing(limit), theirs and timing(theirs))
    assert row.met is met and as_json(row)["met"] is met


@pytest.mark.parametrize(
    "options, message",
    [
        (("--rules", "meen"), "'meen' is none of mean, median"),
        (("--rules", "krum+nnm"), "'krum.nnm' is none of"),
        (("--rows", "8", "--f", "4", "--rules", "krum"), "--rules krum: Krum: 2 f must be below n"),
        (("--size", "2^40"), "GB of memory"),
        (("--json", "/nowhere/x.json"), "--json /nowhere/x.json: not a file"),
    ],
)
def test_refusals_tell_what_to_put_right(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench(*QUICK[:2], *options)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mpisign bench robust: error: ")
    assert message.split(".")[0] in last or np.all([m in last for m in message.split(".")])
