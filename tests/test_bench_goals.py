"""The goals of ``mpisign bench collectives``, and an earlier run beside this one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mpisign.bench.collectives import nodes
from mpisign.bench.collectives.earlier import read
from mpisign.bench.collectives.goals import goals
from mpisign.bench.collectives.run import SHOWN, CollectiveRow, CollectivesRecord
from mpisign.bench.collectives.votes import IN_GROUPS, PLAN, RANDOM, WEIGHTED, WITHOUT_OUT
from mpisign.bench.measure import Timing
from mpisign.experiments.errors import SettingsError


def row(method, size, seconds=1.0, via="mpi", slowest=1.5, **known):
    timing = Timing(seconds, seconds, seconds, 3)
    algorithm = known.pop("algorithm", method.removeprefix("vote "))
    return CollectiveRow(
        size, 1, via, method, "vote", algorithm, time=timing, slowest=slowest, **known
    )


def test_goals_on_one_node_are_of_the_bare_vote_and_fp32():
    sizes = (1000, 5000, 10_000, 100_000, 10**6, 6_500_000)
    rows = [row("vote auto", n, times_of_bare=1.4, times_faster_than_fp32=0.5) for n in sizes]
    rows += [row(PLAN, 1000, algorithm="auto", times_of_bare=9.0)]
    found = list(goals(rows, nodes.Nodes((0, 0))))
    of_bare = [(g.size, g.wanted, g.met) for g in found if "bare" in g.what]
    assert of_bare == [(n, "<= 1.4", True) for n in sizes if n != 5000]
    of_fp32 = [(g.size, g.got, g.wanted, g.met) for g in found if "fp32" in g.what]
    assert of_fp32 == [
        (1000, 2.0, "<= 7", True), (10_000, 2.0, "<= 2", True), (100_000, 2.0, "< 1", False),
        (10**6, 2.0, "< 1", False), (6_500_000, 2.0, "< 1", False),
    ]  # fmt: skip
    (level,) = goals([row("vote auto", 10**6, times_faster_than_fp32=1.0)], nodes.Nodes((0, 0)))
    assert not level.met
    four = list(goals(rows, nodes.Nodes((0, 0, 0, 0))))
    assert {g.wanted for g in four} == {"<= 2"} and len(four) == 5
    rows = [row("vote auto", n, via="torch", times_faster_than_fp32=1.0) for n in sizes]
    found = [(g.size, g.wanted, g.met) for g in goals(rows, nodes.Nodes((0, 0)))]
    assert found == [(100_000, "<= 1", True), (10**6, "<= 1", True)]
    assert list(goals(rows, nodes.Nodes((0, 1)))) == []
    assert list(goals(rows, nodes.Nodes((0, 0), rate=125e6))) == []


def test_goals_in_netlab_are_of_the_limit_and_of_the_slowest_call():
    big, here = 25_600_000, nodes.Nodes((0, 1, 2, 3), rate=125e6, interface="lab0")
    rows = [
        row(PLAN, big, algorithm="alltoall", ratio=1.12),
        row("vote alltoall", big, ratio=1.13, slowest=1.51),
        row("vote allgather", big, ratio=1.1),
        row(WITHOUT_OUT, big, algorithm="alltoall", ratio=1.6, slowest=9.0),
        row(RANDOM, big, algorithm="alltoall", ratio=9.0),
    ]
    found = [(g.got, g.wanted, g.met) for g in goals(rows, here)]
    assert found == [
        (1.12, "<= 1.12", True), (1.5, "<= 1.5", True), (1.13, "<= 1.12", False),
        (1.51, "<= 1.5", False), (1.1, "<= 1.1", True), (1.5, "<= 1.5", True),
        (1.6, "<= 1.5", False),
    ]  # fmt: skip
    assert list(goals(rows, nodes.Nodes((0, 1, 2, 3), rate=12.5e6))) == []


def test_goals_of_other_votes_are_of_the_alltoall_vote_over_any_wire():
    rows = [
        row("vote alltoall", 10**6, counted_sent=100.0, counted_received=100.0),
        row(IN_GROUPS, 10**6, counted_sent=105.0, counted_received=107.0),
        row(WEIGHTED, 10**6, 1.15),
    ]
    rows += [replace(r, via="torch", counted_sent=None, sent=9.0, received=9.0) for r in rows]
    rows[4] = replace(rows[4], time=Timing(1.2, 1.2, 1.2, 3))
    found = list(goals(rows, nodes.Nodes((0, 1, 2, 3, 4, 5), rate=1e9)))
    assert [(g.got, g.met) for g in found] == [
        (1.0, True), (1.06, False), (1.15, True), (1.2, False), (1.0, True), (1.15, True),
    ]  # fmt: skip
    assert found[3].what == f"{IN_GROUPS} over torch: time / alltoall's"
    assert list(goals(rows, nodes.Nodes((0, 1, 2, 3, 4, 5)))) == []
    rows = [
        row("vote hierarchical", 1000, counted_sent=70.0, counted_received=80.0),
        row("vote alltoall", 1000, counted_sent=100.0, counted_received=100.0),
    ]
    two = (0, 0, 0, 0, 1, 1, 1, 1)
    (on_link,) = goals(rows, nodes.Nodes(two))
    assert (on_link.got, on_link.met) == (0.75, True)
    assert [g.got for g in goals(rows, nodes.Nodes(two, rate=1e9))] == [1.0, 0.75]


def saved(path, ranks, rows):
    record = CollectivesRecord(name="collectives", command="mpisign", settings=None, rows=rows)
    record.nodes = nodes.Nodes(tuple(range(ranks)), rate=12.5e6)
    record.write(path)
    return read(path)


def test_an_earlier_run_of_4_nodes_is_what_8_are_held_to(tmp_path):
    failed = CollectiveRow(10**6, 1, "mpi", "vote allgather", "vote", "allgather", error="no")
    four = saved(tmp_path / "4.json", 4, [row("vote alltoall", 10**6, 0.5), failed])
    assert four.nodes == nodes.Nodes((0, 1, 2, 3), rate=12.5e6)
    now = [row("vote alltoall", 10**6, 0.6), row("vote allgather", 10**6)]
    eight = nodes.Nodes(tuple(range(8)), rate=12.5e6)
    (goal,) = goals(now, eight, four)
    assert (goal.got, goal.wanted, goal.met) == (1.2, "<= 1.2", True)
    assert list(goals(now, nodes.Nodes(tuple(range(8)), rate=125e6), four)) == []
    assert list(goals(now, eight, saved(tmp_path / "8.json", 8, now))) == []
    record = CollectivesRecord(name="collectives", command="mpisign", settings=None, earlier=four)
    record.rows, record.links = now, [nodes.Link("mpi", "MPI", 10**6, 1e-6, 1e9)]
    beside = list(SHOWN.tables(record))[-1]
    assert beside.title == "beside 4.json: 4 ranks on 4 nodes, links of 100 Mbit/s"
    assert beside.rows == [("vote alltoall", "1M", "mpi", "500 ms", "600 ms", "1.20")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "name": "kernels"}', "nan"])
def test_what_is_no_earlier_run_is_told(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SettingsError, match="x.json: not "):
        read(tmp_path / "x.json")
    with pytest.raises(SettingsError, match="No such file"):
        read(tmp_path / "y.json")
