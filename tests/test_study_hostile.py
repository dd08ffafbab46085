"""``mpisign study`` under hostile ranks: what is trained, told and drawn."""

from __future__ import annotations

import json
import sys

import pytest
from launchers import mpirun
from test_study_groups import CELLS, TINY, digits

from mpisign import detox
from mpisign.cli import main
from mpisign.experiments import file, plan, results, tables

pytest.importorskip("sklearn", reason='pip install "mpisign[train]"')
pytest.importorskip("rich", reason='pip install "mpisign[train]"')
pytest.importorskip("matplotlib", reason='pip install "mpisign[train]"')
pytest.importorskip("torch", reason='pip install "mpisign[train]"')

pytestmark = pytest.mark.filterwarnings("ignore:most ranks' votes differ")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 9])
def test_replicas_end_alike_whatever_hostile_ranks_do(ranks):
    """``simulated`` raises where they do not."""
    from mpisign.experiments.run import simulated

    inner = {"compressor": "robust", "rule": "median", "momentum": 0.5}
    redundancy = 3 if ranks >= 3 else 1
    for attack, options in (
        ("alie", {"inner": "signum"}),
        ("omniscient", {"inner": inner}),
        ("backdoor", {"inner": "sign"}),
        ("sign-flip", {"inner": inner}),
    ):
        hostile = min(1, ranks - 1)
        if attack == "alie" and ranks - hostile < 2:
            continue
        told = simulated(
            digits(
                ranks=ranks,
                adversaries=hostile,
                attack=attack if hostile else None,
                placement="worst",
                compressor_options={"redundancy": redundancy, **options},
            )
        )
        assert told["diverged"] is None and len(told["recall"]) == 10
        assert 0 <= told["backdoor"] <= 1
        assert told["bits"] == (32 if options["inner"] is inner else 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    own, path = folder / "tiny.toml", folder / "r.jsonl"
    own.write_text(TINY)
    assert main(["study", "run", str(own), "--results", str(path), "--jobs", "0"]) == 0
    return own, path


def test_tables_and_pictures_by_attack_and_placement(tiny, tmp_path):
    own, path = tiny
    study = file.parse(TINY, "tiny")
    found = results.summaries(plan.groups(study), results.read(path))
    made = {t.title: t for t in tables.tables(study, found)}
    assert [*made][:4] == [
        "g, ipm: test accuracy, %",
        "g, ipm: backdoor accuracy, %",
        "g, backdoor-replacement: test accuracy, %",
        "g, backdoor-replacement: backdoor accuracy, %",
    ]
    first = made["g, ipm: test accuracy, %"]
    assert first.heads == ["hostile", "placement", "multi-krum", "groups", "groups median"]
    assert [row[:2] for row in first.rows] == [["0", "-"], ["2", "random"], ["2", "worst"]]
    assert first.rows[1][2] == first.rows[2][2] and all(all(row) for row in first.rows)
    page, picture = tmp_path / "t.md", tmp_path / "p.png"
    show = ["study", "show", str(own), "--results", str(path)]
    assert main([*show, "--plot", str(picture), "--markdown", str(page)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "**G, ipm: backdoor accuracy, %**" in page.read_text()


@pytest.mark.parametrize("along", ["method", "digit", "bits"])
def test_pictures_of_what_is_beside_the_metric(tiny, along, tmp_path):
    _, path = tiny
    text = TINY.replace('along = "adversaries"', f'along = "{along}"')
    if along == "digit":
        text = text.replace('also = ["backdoor"]', 'also = ["recall"]')
        text = text.replace("[0, 2]", "0").replace('["random", "worst"]', '"random"')
        text = text.replace('["ipm", "backdoor-replacement"]', '"ipm"')
    own, picture, page = tmp_path / "own.toml", tmp_path / "p.png", tmp_path / "t.md"
    own.write_text(text)
    show = ["study", "show", str(own), "--results", str(path), "--plot", str(picture)]
    assert main([*show, "--markdown", str(page)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    if along == "digit":
        assert "| method | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 |" in page.read_text()


def test_shipped_studies_of_hostile_ranks():
    from mpisign.experiments.study import check_methods

    assert detox.assign(64)[0] != detox.assign(64, seed=1)[0]
    for name in ("backdoor", "detox", "detox-scale", "lying-owner"):
        study = file.load(name)
        groups = plan.groups(study)
        assert len(study.about) > 100 and all(len(g.seeds) >= 3 for g in study.grids)
        assert len(plan.due(groups, {})) == plan.total(groups)
        check_methods(groups)


@pytest.mark.mpi
@pytest.mark.many
def test_real_ranks_end_at_the_bits_of_simulated_ones(tiny, tmp_path):
    pytest.importorskip("mpi4py")
    own, simulated = tiny
    path = tmp_path / "real.jsonl"
    command = [sys.executable, "-m", "mpisign.cli", "study", "run", own, "--real"]
    mpirun(6, *command, "--results", path, env={"OMP_NUM_THREADS": "1"}, timeout=400)
    real, threads = results.read(path), results.read(simulated)
    assert real.keys() == threads.keys() and len(real) == CELLS
    for key, record in real.items():
        told = json.dumps(record["settings"])
        assert record["result"]["digest"] == threads[key]["result"]["digest"], told
        assert record["result"]["recall"] == threads[key]["result"]["recall"], told
