"""``mpisign bench collectives``: what it tells, and that its figures agree. No timings."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launchers import environment, find, mpirun, run

from mpisign import cli
from mpisign.bench.collectives import method, nodes, traffic
from mpisign.bench.collectives.method import Gradient
from mpisign.bench.collectives.votes import (
    PLAN,
    RANDOM,
    WEIGHTED,
    WITHOUT_OUT,
)
from mpisign.bench.runner import Watchdog
from mpisign.bench.settings import ALGORITHMS, KINDS
from mpisign.experiments.errors import SettingsError

BENCH = [sys.executable, "-m", "mpisign.cli", "bench", "collectives"]
RATE = 10**4  # bits per second: any limit is then longer than the latency of a message
#: What netlab sets, but for its own network: the loopback device of this machine.
NETLAB = {
    "NETLAB": "1",
    "NETLAB_INTERFACE": "lo",
    "NETLAB_RATE": str(RATE),
    "NETLAB_NODE": "0",
    "NETLAB_NODES": "1",
}
needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"
)


def options(folder, *more):
    files = {"json": folder / "all.json", "plot": folder / "plot.png", "markdown": folder / "t.md"}
    given = [part for option, path in files.items() for part in (f"--{option}", path)]
    return [*given, "--repeat", "3", "--time-limit", "5", *more]


def rows_of(document, **wanted):
    return [r for r in document["rows"] if all(r[k] == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def over_two(tmp_path_factory):
    """MPI and Gloo in one run of two ranks, two sizes, links as if netlab had made them."""
    folder = tmp_path_factory.mktemp("mpi")
    more = ["--via", "mpi,torch", "--sizes", "1k,20k"]
    done = mpirun(2, *BENCH, *options(folder, *more), env=NETLAB)
    return json.loads((folder / "all.json").read_text()), folder, done.stdout


@pytest.mark.mpi
def test_every_method_is_measured_or_says_why_not(over_two):
    document, _, output = over_two
    for via in ("mpi", "torch"):
        for size in (1000, 20_000):
            rows = rows_of(document, via=via, size=size)
            kinds = {row["kind"] for row in rows}
            assert kinds == set(KINDS) - {"powersgd" if via == "mpi" else "bare"}
            algorithms = {row["algorithm"] for row in rows if row["kind"] == "vote"}
            assert algorithms == set(ALGORITHMS)
            names = [row["method"] for row in rows]
            assert len(set(names)) == len(names)
            assert {"vote auto", "vote async", PLAN, WITHOUT_OUT, RANDOM, WEIGHTED} <= set(names)
            assert ("bare alltoall" in names) == ("bare allgather" in names) == (via == "mpi")
    failed = {row["kind"]: row["error"] for row in document["rows"] if row["error"]}
    if importlib.util.find_spec("deepspeed") is None:
        assert failed.pop("deepspeed") == "not installed: pip install deepspeed==0.19.6"
        assert re.search(r"^DeepSpeed 1-bit +not run: not installed: pip", output, re.M)
    assert failed == {}


@pytest.mark.mpi
def test_the_figures_agree_with_each_other(over_two):
    document, _, _ = over_two
    assert document["ranks"] == 2 and document["nodes"]["rate"] == RATE / 8
    links = {(link["via"], link["size"]) for link in document["links"]}
    assert links == {(via, size) for via in ("mpi", "torch") for size in (1000, 20_000)}
    assert all(link["latency"] > 0 and link["bandwidth"] > 0 for link in document["links"])
    for row in document["rows"]:
        if row["error"]:
            assert row["time"] is None and row["limit"] is None
            continue
        times, d = row["time"], row["size"]
        assert 0 < times["low"] <= times["median"] <= times["high"] <= row["slowest"]
        assert times["runs"] == 3 * row["calls_per_turn"] >= 3
        assert row["algbw"] == pytest.approx(4 * d / times["median"])
        assert row["busbw"] == pytest.approx(row["received"] / times["median"])
        assert row["ratio"] == pytest.approx(times["median"] / row["limit"])
        for kind in ("fp32", "fp16"):
            (base,) = rows_of(document, via=row["via"], size=d, kind=kind)
            faster = base["time"]["median"] / times["median"]
            assert row[f"times_faster_than_{kind}"] == pytest.approx(faster)
        bare = [r["time"]["median"] for r in rows_of(document, via=row["via"], size=d, kind="bare")]
        assert row["times_of_bare"] == (
            pytest.approx(times["median"] / min(bare)) if bare else None
        )
        plane, seconds = -(-d // 8), 8 / RATE
        if row["kind"] in ("fp32", "fp16"):
            value = 4 if row["kind"] == "fp32" else 2
            assert row["sent"] == row["received"] == value * d  # 2 (p - 1) / p is 1 at two ranks
            assert row["bytes_by"] == "formula"
            assert row["limit"] == pytest.approx(value * d * seconds)
        elif row["kind"] == "vote":
            assert row["bytes_by"] == "stats"
            # Preambles and headers; first messages over Gloo have 16 KiB at 2 ranks.
            more = 8 * 600 + (16 << 10) * (row["via"] == "torch")
            assert plane <= row["sent"] <= plane + more
            assert row["limit"] == pytest.approx(plane * seconds)
        elif row["kind"] in ("packbits", "bare"):
            assert row["sent"] == plane and row["bytes_by"] == "formula"
            assert row["limit"] == pytest.approx(plane * seconds)


@pytest.mark.mpi
def test_bytes_are_counted_at_the_interface(over_two):
    """Gloo's traffic is TCP over loopback, where both ranks' bytes are seen."""
    document, _, _ = over_two
    for kind in ("fp32", "fp16"):
        (row,) = rows_of(document, via="torch", size=20_000, kind=kind)
        for counted in (row["counted_sent"], row["counted_received"]):
            assert counted > 0.95 * 2 * row["sent"]


@pytest.mark.mpi
def test_the_reports(over_two):
    document, folder, output = over_two
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "t.md").read_text()
    assert page.count("<!-- mpisign bench collectives -->") == 2
    assert "| fp32 allreduce |" in page and "### 20k coordinates, Open MPI" in page
    assert document["command"].startswith("mpisign bench collectives --")
    assert document["versions"]["numpy"] == np.__version__ and document["host"]["cores"]
    table = [line.rstrip() for line in output.splitlines()]
    heads = [line for line in table if line.startswith("method ")]
    assert len(heads) == 4 and all(
        re.split(r"\s{2,}", head)
        == [
            "method", "time", "+-", "slowest", "on link", "limit", "/ limit",
            *(["/ bare"] if at % 2 == 0 else []), "x fp32", "x fp16",
        ]
        for at, head in enumerate(heads)
    )  # fmt: skip
    start = table.index(next(line for line in table if line.startswith("1k coordinates, ")))
    # A rank that ends late may have torch warn, with a trace, of a store that has gone.
    printed = itertools.takewhile(lambda line: not line.startswith("[W"), table[start:])
    long = [line for line in printed if len(line) > 100]
    assert not long, long
    told = " ".join(output.split())
    assert "calls, each behind a barrier, of the slowest rank" in told
    assert "/ bare: time / that of the faster bare vote" in told
    assert "\x1b" not in output, "escape sequences in what is no terminal"
    assert output.count("Ranks: 2 ranks on one node, links of 0.01 Mbit/s.") == 1


@pytest.mark.many
def test_torchrun(tmp_path):
    """Also what exchanges cost, which a communicator of three ranks measures."""
    costs = tmp_path / "costs.json"
    command = [find("torchrun"), "--nproc-per-node", "3", "-m", "mpisign.cli", *BENCH[3:]]
    more = ["--sizes", "2k", "--tensors", "3", "--only", "vote,fp32", "--algorithms", "alltoall"]
    more += ["--cost", costs]
    output = run([*command, *options(tmp_path, *more)]).stdout
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["costs"] == json.loads(costs.read_text())
    assert document["costs"]["local_latency"] > 0 == document["costs"]["remote_latency"]
    assert {row["method"] for row in document["rows"]} == {
        "vote alltoall", "vote async", "fp32 allreduce", PLAN, WITHOUT_OUT, RANDOM, WEIGHTED
    }  # fmt: skip
    assert {row["error"] for row in document["rows"]} == {None}
    assert {row["tensors"] for row in document["rows"]} == {3}
    assert document["nodes"]["rate"] is None and document["rows"][0]["counted_sent"] is None
    assert output.count("2k coordinates in 3 tensors, Gloo of torch") == 1


@pytest.mark.horovod
@needs_horovod
def test_horovod_on_gloo_without_mpi(tmp_path):
    command = [find("horovodrun"), "-np", "2", "--gloo", *BENCH, "--via", "horovod"]
    more = ["--sizes", "2k", "--only", "vote,fp32,fp16,packbits", "--algorithms", "alltoall"]
    run([*command, *options(tmp_path, *more)])
    document = json.loads((tmp_path / "all.json").read_text())
    assert [row["error"] for row in document["rows"]] == [None] * 9
    assert document["links"][0]["library"] == "Horovod on Gloo"


@pytest.mark.mpi
def test_interrupting_the_launcher_is_told_once():
    command = [find("mpirun"), "-n", "2", "--oversubscribe", "--bind-to", "none", *BENCH]
    process = subprocess.Popen(
        [*command, "--sizes", "100k", "--only", "fp32", "--repeat", "1000000"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A job in the background of a script ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = process.stdout.readline()
        assert "100k coordinates, first call" in line, line + process.stdout.read()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0 and "Traceback" not in output
    assert output.count("mpisign: ") == 1 and "mpisign, rank" not in output


@pytest.mark.mpi
def test_what_one_rank_gets_wrong_is_told_alike_on_all():
    output = mpirun(3, sys.executable, "tests/ranks/bench_wrong.py").stdout
    assert sorted(re.findall(r"rank \d agrees", output)) == [f"rank {r} agrees" for r in range(3)]


@pytest.mark.mpi
@pytest.mark.parametrize(
    "more, message",
    [
        pytest.param(
            ["--plot", "x.doc"], r"--plot x.doc: the name must end", marks=pytest.mark.many
        ),
        pytest.param(
            ["--beside", "/no/such/x.json"],
            "--beside /no/such/x.json: No such file",
            marks=pytest.mark.many,
        ),
        (["--json", "/no/such/folder/x"], "--json /no/such/folder/x: not a file in an existing"),
    ],
)
def test_what_cannot_be_written_is_told_once_before_the_work(more, message):
    done = mpirun(2, *BENCH, *more, check=False)
    assert done.returncode == 2 and "coordinates" not in done.stdout
    assert len(re.findall(f"^mpisign bench collectives: error: {message}", done.stdout, re.M)) == 1


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "needs two ranks or more: mpirun -n 4 mpisign bench collectives"),
        (["--via", "ether"], "'ether' is none of mpi, torch, horovod"),
        (["--algorithms", "auto,coin"], "'coin' is none of auto, allgather"),
        (["--only", "vote,gossip"], "'gossip' is none of vote, bare, fp32"),
        (["--sizes", "1"], "'1' is not a number from 8"),
        (["--tensors", "0"], "'0' is not a number of tensors, from 1"),
        (["--time-limit", "no"], "'no' is not a number of seconds above 0"),
        (["--repeat", "0"], "'0' is not a number of turns, from 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(more, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "collectives", *more])
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mpisign bench collectives: error: ") and message in last


def test_help_explains_the_columns(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "collectives", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(
        column in told for column in ("algbw", "busbw", "on link", "/ limit", "/ bare", "x fp32")
    )
    assert all(name in told for name in (*ALGORITHMS, *KINDS))
    assert max(map(len, told.splitlines())) <= 100


def test_netlab_variables_that_make_no_sense(monkeypatch):
    done = mpirun(2, *BENCH, env={**NETLAB, "NETLAB_INTERFACE": "no0"}, check=False)
    assert done.returncode == 2
    assert "error: NETLAB_INTERFACE=no0: not in /proc/net/dev" in done.stdout
    monkeypatch.setenv("NETLAB_RATE", "fast")
    with pytest.raises(SettingsError, match="NETLAB_RATE must be bits per second or none, got 'fa"):
        nodes._netlab((0, 1))


def test_traffic_is_what_the_specification_says():
    d, b = 25_600_000, 3_200_000
    assert traffic.of_fp32(d, 4, 4, 1) == traffic.Traffic(6 * d, 6 * d)
    assert traffic.of_fp16(d, 4, 4, 1) == traffic.Traffic(3 * d, 3 * d)
    assert traffic.of_allgather(d, 4, 4, 1) == traffic.Traffic(3 * b, 3 * b)
    flat = traffic.of_alltoall(d, 4, 4, 1)
    assert flat == traffic.Traffic(1.5 * b, 1.5 * b) and flat.link * 8 / 1e9 == 38.4e-3
    # 2 nodes of 4 ranks: 4 ranks each receive half of 2 B from the other node; 3 + 1 planes.
    assert traffic.of_alltoall(d, 8, 2, 4).link == 4 * b
    assert traffic.of_hierarchical(d, 8, 2, 4).link == 2 * b
    assert traffic.of_allgather(d, 8, 2, 4).link == 16 * b
    assert traffic.of_vote_of_votes(d, 8, 2, 4).link == 1.5 * b
    assert traffic.of_vote_of_votes(d, 6, 2, 3).link == b
    assert traffic.of_auto(d, 8, 2, 4) == traffic.of_hierarchical(d, 8, 2, 4)
    assert traffic.of_auto(d, 4, 4, 1) == flat


def test_nodes():
    assert nodes.Nodes((0, 0, 1, 1, 1)).ends == (2, 3) and nodes.Nodes((0, 0, 0)).ends == (3, 1)
    counted = np.array([5.0, 5.0, 9.0, 9.0, 9.0])
    assert nodes.per_node(nodes.Nodes((0, 0, 1, 1, 1)), counted) == 7.0
    sent, received = nodes.counted("lo")
    assert sent >= 0 and received >= 0
    assert nodes.rate(125e6) == "1 Gbit/s" and nodes.rate(12.5e6) == "100 Mbit/s"


def test_gradients():
    assert len(method.resnet50()) == 161 and sum(method.resnet50()) == 25_557_032
    assert method.cut(25_557_032, "resnet50") == method.resnet50()
    assert method.cut(10, 3) == (3, 3, 4) and method.cut(2, 5) == (1, 1)
    two = [Gradient(1000, (300, 700), rank, 2) for rank in range(2)]
    assert not np.array_equal(two[0].values, two[1].values) and two[0].values.all()
    assert np.array_equal(two[0].all_ranks, [g.values for g in two])
    assert [len(t) for t in two[0].cut(two[0].out)] == [300, 700]


def test_the_watchdog_bites_what_hangs_and_nothing_else():
    bitten = []
    dog = Watchdog(0.2, bitten.append)
    for _ in range(3):
        with dog.over("quick"):
            time.sleep(0.1)
    time.sleep(0.3)
    assert bitten == []
    with dog.over("slow"):
        time.sleep(0.6)
    assert bitten == ["slow"]
