"""``mpisign bench detox``: what it tells, and that its figures agree. No timings."""

from __future__ import annotations

import json

import pytest

from mpisign import cli
from mpisign.bench import detox
from mpisign.bench.detox import DetoxMethod, DetoxRow, growth, methods
from mpisign.bench.measure import Timing
from mpisign.bench.settings import RULES
from mpisign.robust.names import RULES as KNOWN


def bench(*options):
    return cli.main(["bench", "detox", *map(str, options)])


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detox")
    files = {"json": folder / "all.json", "plot": folder / "plot.png", "markdown": folder / "t.md"}
    given = [part for option, path in files.items() for part in (f"--{option}", path)]
    small = ["--ranks", "9,6", "--size", "2k", "--rules", "median,bulyan", "--steps", "1"]
    assert bench(*small, "--repeat", "2", *given) == 0
    return json.loads(files["json"].read_text()), files


def test_every_method_is_measured_or_says_why_not(short):
    document, files = short
    for ranks in (6, 9):
        rows = {row["label"]: row for row in document["rows"] if row["ranks"] == ranks}
        missing = rows.pop("bulyan, ByzFL")
        assert missing["error"] == "not in ByzFL 0.0.11" or "not installed" in missing["error"]
        there = "median, ByzFL"
        assert rows[there]["error"] is None or "not installed" in rows.pop(there)["error"]
        assert set(rows) - {there} == {
            "signum", "signum, DETOX 3", "median", "median, DETOX 3", "median, one place",
            "bulyan", "bulyan, DETOX 3", "bulyan, one place",
        }  # fmt: skip
        for label, row in rows.items():
            assert row["work"]["median"] > 0 and row["wall"]["runs"] == 2 and row["computing"] > 0
            assert row["of_rank"] == pytest.approx(row["work"]["median"] / ranks)
            if label.endswith("DETOX 3"):
                plain = rows[label.removesuffix(", DETOX 3")]
                ratio = row["work"]["median"] / plain["work"]["median"]
                assert row["of_plain"] == pytest.approx(ratio)
            assert (row["of_plain"] is None) != label.endswith("DETOX 3")
        # A rank's gradient goes up and comes down; of a group one member's goes up.
        d, plain, grouped = document["parameters"], rows["median"], rows["median, DETOX 3"]
        assert plain["sent"] == pytest.approx(8 * d * (1 - 1 / ranks), rel=0.5)
        assert grouped["sent"] < plain["sent"]
    assert {g["method"] for g in document["growth"]} >= {"signum", "bulyan, DETOX 3"}
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    page = files["markdown"].read_text()
    assert page.count("<!-- mpisign bench detox -->") == 2 and "### 6 ranks, 2 groups" in page
    assert "| median, DETOX 3 |" in page and "threads of one process" in page


def test_rules_are_made_for_what_they_can_take():
    found = list(methods(15, 3, ("bulyan",)))
    assert [(w.kind, w.groups, w.f) for w in found] == [
        ("vote", 0, 0), ("vote", 5, 0), ("robust", 0, 3), ("robust", 5, 0), ("here", 0, 3),
        ("byzfl", 0, 3),
    ]  # fmt: skip
    for ranks in range(3, 70):
        for method in methods(ranks, 3, RULES):
            if method.kind == "robust":
                rule = getattr(method.compressor, "inner", method.compressor).resolved
                rule.check(method.groups or ranks)
    assert set(RULES) == set(KNOWN)


def test_growth():
    def row(ranks, seconds, label="median"):
        timing = Timing(seconds, seconds, seconds, 1)
        return DetoxRow(DetoxMethod("robust", label), ranks, timing, timing, computing=2.0 * ranks)

    rows = [*(row(p, 1e-3 * p**2) for p in (9, 15, 64)), row(9, 1.0, "krum")]
    (found,) = growth(rows)
    assert found.method == "median"
    assert found.work == pytest.approx(2) and found.computing == pytest.approx(1)
    grouped = DetoxRow(DetoxMethod("robust", "median", 3, 0, 3), 9, Timing(2.0, 2.0, 2.0, 1))
    *_, beside = detox.beside([row(9, 4.0), grouped])
    assert beside.of_plain == 0.5


def test_the_model_has_about_as_many_parameters_as_asked_for():
    for size in (2_000, 100_000, 1_000_000):
        assert detox.parameters(size) == pytest.approx(size, rel=0.3)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ranks", "9,1"], "'1' is not a number of ranks, from 2"),
        (["--ranks", "2"], "--redundancy 3 needs as many ranks, got 2"),
        (["--rules", "mode"], "'mode' is none of mean, median"),
        (["--redundancy", "4"], "'4' is not an odd number of ranks"),
        (["--json", "/no/such/folder/x"], "--json /no/such/folder/x: not a file in an existing"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, message, capsys):
    try:
        status = bench(*options)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mpisign bench detox: error: ") and message in last


def test_help_explains_the_columns(capsys):
    with pytest.raises(SystemExit) as ended:
        bench("--help")
    told = capsys.readouterr().out
    assert ended.value.code == 0 and max(map(len, told.splitlines())) <= 100
    assert all(column in told for column in ("work", "a rank", "computing", "of plain"))
