"""``mpisign study`` with groups: cells, options that depend on hostile ranks, batches."""

from __future__ import annotations

import numpy as np
import pytest
from launchers import ROOT

from mpisign.experiments import file, plan, results
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError

pytest.importorskip("sklearn", reason='pip install "mpisign[train]"')
pytest.importorskip("rich", reason='pip install "mpisign[train]"')
pytest.importorskip("matplotlib", reason='pip install "mpisign[train]"')
pytest.importorskip("torch", reason='pip install "mpisign[train]"')

pytestmark = pytest.mark.filterwarnings("ignore:most ranks' votes differ")

TINY = """
title = "tiny groups"
[[grid]]
label = "g"
task = "digits"
task_options = {hidden = [8], dealt = "anew"}
ranks = 6
batch_size = 2
adversaries = [0, 2]
attack = ["ipm", "backdoor-replacement"]
placement = ["random", "worst"]
seeds = [0]
steps = 3
evaluations = 1
also = ["backdoor"]
along = "adversaries"
[[grid.method]]
label = "multi-krum"
compressor = "robust"
options = {rule = "multi_krum", f = "adversaries"}
lr = 0.1
[[grid.method]]
label = "groups"
compressor = "detox"
options = {inner = "sign"}
batch_size = 6
lr = 0.01
[[grid.method]]
label = "groups median"
compressor = "detox"
options = {inner = {compressor = "robust", rule = "median"}}
batch_size = 6
lr = 0.1
"""
CELLS = 3 * 1 + 2 * (1 + 2 * 2)


def digits(compressor="detox", ranks=6, **more):
    more = {"batch_size": 4, "steps": 3, "task_options": {"hidden": [8]}, **more}
    return Cell("digits", compressor, 0.01, ranks=ranks, **more)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "studies").glob("*.jsonl")), ids=str)
def test_recorded_cells_are_found_again(path):
    """Fields that came later may not change the keys of results from before."""
    records = results.read(path)
    assert records and all(Cell(**r["settings"]).key == k for k, r in records.items())


def test_fields_that_came_later_are_part_of_the_key_where_they_are_set():
    plain = digits("sign")
    others = [{"placement": "worst"}, {"lying_owners": 1}, {"byzantine_f": 1}, {"algorithm": "x"}]
    keys = {Cell(**{**plain.as_dict(), **o}).key for o in others}
    assert len({plain.key, *keys}) == 5
    for other in others:
        cell = Cell(**{**plain.as_dict(), **other})
        assert Cell(**cell.recorded()) == cell and other.items() <= cell.recorded().items()


def test_methods_without_groups_have_one_cell_for_all_placements():
    groups = plan.groups(file.parse(TINY, "tiny"))
    cells = plan.due(groups, {})
    assert len(cells) == plan.total(groups) == CELLS
    flat = [c for c in cells if c.compressor == "robust"]
    assert {(c.placement, c.batch_size) for c in flat} == {(None, 2)} and len(flat) == 3
    grouped = [c for c in cells if c.compressor == "detox"]
    assert {(c.placement, c.adversaries, c.batch_size) for c in grouped} == {
        (None, 0, 6),
        ("random", 2, 6),
        ("worst", 2, 6),
    }
    record = {"result": {"validation": 0.5, "diverged": None}}
    assert plan.missing(groups, {flat[0].key: record}) == CELLS - 1


@pytest.mark.parametrize(
    ("hostile", "rule", "who", "ranks", "groups"),
    [
        (0, "multi_krum", 0, 0, 0),
        (3, "multi_krum", 1, 3, 1),
        (6, "multi_krum", 3, 6, 2),  # of 5 rows no more than 2
        (7, "trimmed_mean", 3, 7, 2),
        (7, "bulyan", 3, 3, 0),  # 4 f + 3 rows
        (7, "nnm+krum", 3, 7, 2),
    ],
)
def test_f_is_resolved_from_the_cell(hostile, rule, who, ranks, groups):
    from mpisign.experiments.compression import compressor, owned

    def cell(compressor, **options):
        attack = "ipm" if hostile else None
        return digits(
            compressor, 15, adversaries=hostile, attack=attack, compressor_options=options
        )

    assert owned(cell("detox")) == (who, 5)
    assert compressor(cell("robust", rule=rule, f="adversaries")).f == ranks
    inner = {"compressor": "robust", "rule": rule, "f": "groups"}
    assert compressor(cell("detox", inner=inner)).inner.f == groups
    assert compressor(cell("robust", rule="median", f=2)).f == 2


@pytest.mark.parametrize(
    ("compressor", "options", "message"),
    [
        ("robust", {"f": "many"}, "f must be a number, 'adversaries' or 'groups', got 'many'"),
        ("detox", {"inner": {"compressor": "robst"}}, "expected one of none, sign,"),
        ("detox", {"inner": {"compressor": "robust", "rule": "modian"}}, "modian"),
        ("detox", {"inner": "ef_sign"}, "inner must be a compressor that votes"),
        ("detox", {"redundancy": 2}, "redundancy must be an odd number"),
    ],
)
def test_options_that_do_not_fit_are_named(compressor, options, message):
    from mpisign.experiments import compression

    cell = digits(compressor, compressor_options=options)
    with pytest.raises(SettingsError, match="compressor") as error:
        compression.groups_of(cell, 0)
        compression.compressor(cell)
    assert message in str(error.value)


def test_what_has_no_groups_is_told():
    from mpisign.experiments import tasks
    from mpisign.experiments.compression import groups_of

    with pytest.raises(SettingsError, match="only 'detox' has groups, not 'sign'"):
        groups_of(digits("sign", placement="worst"), 0)
    quadratic = Cell("quadratic", "detox", 0.1, ranks=3, steps=1)
    with pytest.raises(
        SettingsError, match="expected digits or fashion-mnist, whose groups get one batch"
    ):
        tasks.build(quadratic, 0, groups_of(quadratic, 0))
    with pytest.raises(SettingsError, match="dealt: expected one of once, anew, got 'often'"):
        tasks.build(digits("sign", task_options={"dealt": "often"}), 0)
    wrong = TINY.replace('["random", "worst"]', '"wurst"')
    with pytest.raises(SettingsError, match="placement: expected one of random, once, worst, or"):
        file.parse(wrong, "tiny")
    with pytest.raises(SettingsError, match="also: expected one of backdoor, recall, or a list"):
        file.parse(TINY.replace('["backdoor"]', '"front"'), "tiny")


def test_placements():
    from mpisign.experiments.compression import groups_of

    def members(placement, epoch, hostile=6):
        cell = digits(ranks=15, adversaries=hostile, attack="ipm", placement=placement)
        found = []
        for rank in range(15):
            groups = groups_of(cell, rank)
            groups.set_epoch(epoch)
            found.append(groups.members)
        assert len(set(found)) == 1
        return found[0]

    assert members("random", 0) != members("random", 1) == members("random", 1)
    assert members(None, 1) == members("random", 1)
    assert members("once", 0) == members("once", 1) == members("random", 0)
    worst = members("worst", 0)
    assert worst == members("worst", 3)
    assert sorted(sum(r >= 9 for r in group) for group in worst) == [0, 0, 2, 2, 2]


def batches(cell, rank, many):
    from mpisign.experiments import tasks
    from mpisign.experiments.compression import groups_of

    task, seen = tasks.build(cell, rank, groups_of(cell, rank)), []
    task.spoil = lambda images, labels: (seen.append(images.tobytes()), (images, labels))[1]
    for step in range(many):
        task.backward(step)
    return seen


@pytest.mark.parametrize("placement", ["random", "worst"])
def test_a_group_gets_one_batch_and_no_two_groups_the_same(placement):
    cell = digits(batch_size=200, adversaries=1, attack="ipm", placement=placement)
    from mpisign.experiments.compression import groups_of

    seen = [batches(cell, rank, 4) for rank in range(6)]
    groups = groups_of(cell, 0)
    for step in range(4):
        groups.set_epoch(step // 2)  # 550 images a group
        for members in groups.members:
            assert len({seen[rank][step] for rank in members}) == 1
        assert len({seen[rank][step] for rank in range(6)}) == 2


def test_images_that_are_dealt_anew_are_each_on_one_rank():
    cell = digits("sign", batch_size=183, task_options={"hidden": [8], "dealt": "anew"})
    for epoch in range(2):
        rows = [np.frombuffer(batches(cell, r, 2)[epoch], dtype="S256") for r in range(6)]
        assert len(np.unique(np.concatenate(rows))) > 1050  # some digits are there twice
    once = digits("sign", batch_size=183)
    assert sorted(batches(once, 0, 1)) != sorted(batches(cell, 0, 1))
