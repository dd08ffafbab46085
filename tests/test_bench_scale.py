"""``mpisign bench scale``: its figures are those of vote_traffic, and its files say the same."""

from __future__ import annotations

import json

import pytest

import mpisign
from mpisign import cli
from mpisign.collectives import auto
from mpisign.collectives.costs import Costs, read
from mpisign.collectives.hierarchy import Hierarchy, grouped


def bench(*options):
    return cli.main(["bench", "scale", *map(str, options)])


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    files = {"json": folder / "all.json", "plot": folder / "plot.png", "markdown": folder / "t.md"}
    given = [part for option, path in files.items() for part in (f"--{option}", path)]
    small = ["--ranks", "70,6", "--sizes", "1k,3M", "--node", "3", "--rack", "2"]
    assert bench(*small, *given) == 0
    return json.loads(files["json"].read_text()), files


def test_rows_are_what_vote_traffic_says(short):
    document, files = short
    assert len(document["rows"]) == 2 * 2 * 4
    for row in document["rows"]:
        nodes = [r // 3 for r in range(row["ranks"])]
        levels = [nodes, [n // 2 for n in nodes]][: row["levels"]]
        said = row["traffic"]
        expected = mpisign.vote_traffic(
            row["size"], row["ranks"], algorithm=said["algorithm"], nodes=levels or None
        )
        assert said == vars(expected)
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    page = files["markdown"].read_text()
    assert page.count("<!-- mpisign bench scale -->") == 2
    assert "### Agreement" in page and "### What auto takes: 3 ranks a node" in page


def test_choices_are_those_of_auto(short):
    document, _ = short
    for name, (costs, node) in document["costs"].items():
        of = Costs(**costs)
        for ranks in (6, 8, 16, 32, 64, 70):
            nodes = [r // node for r in range(ranks)]
            hierarchy = Hierarchy([grouped(nodes), grouped([n // 2 for n in nodes])])
            mine = [c for c in document["choices"] if (c["network"], c["ranks"]) == (name, ranks)]
            assert mine[0]["first"] == 1000 and mine[-1]["last"] == 10**10
            for before, after in zip(mine, mine[1:], strict=False):
                assert before["last"] == after["first"] and before["label"] != after["label"]
            for length in (1000, 10**6, 10**10):
                found = next(c for c in mine if c["first"] <= length <= c["last"])
                algorithm, levels = auto.cheapest(of, hierarchy, 2, length, 1, 1, 48 << 10)
                assert found["label"].startswith(algorithm)
                assert ("racks" in found["label"]) == (levels == 2)


def test_measured_costs(tmp_path, capsys):
    costs = Costs(1e-6, 1e-10, 2e-5, 1e-8, 1e-7, 1e-6)
    costs.save(tmp_path / "costs.json")
    assert read(str(tmp_path / "costs.json")) == costs
    given = ["--ranks", "8", "--sizes", "1M", "--node", "2"]
    assert bench(*given, "--costs", tmp_path / "costs.json") == 0
    assert "what auto takes: 2 ranks a node, costs.json" in capsys.readouterr().out
    # A file of the time when messages cost nothing of their own.
    older = {k: v for k, v in vars(costs).items() if not k.endswith("per_message")}
    (tmp_path / "costs.json").write_text(json.dumps(older))
    assert read(str(tmp_path / "costs.json")).remote_per_message == 0
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(SystemExit):
        bench(*given, "--costs", tmp_path / "costs.json")
    assert "must hold local_latency" in capsys.readouterr().err
