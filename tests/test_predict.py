"""``mpisign predict``: equations by hand, bytes as collectives count them, files, a script."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys

import numpy as np
import pytest
from launchers import ONE_THREAD, mpirun

import mpisign
from mpisign import cli
from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.method import resnet50
from mpisign.bench.predict_summary import summary_of
from mpisign.collectives.dry_run import dry_steps
from mpisign.collectives.gather_planes import gather_rows
from mpisign.experiments.errors import SettingsError
from mpisign.predict import buckets, methods, settings
from mpisign.predict.bench_files import read_results
from mpisign.predict.equations import ALONE, Compute, Exchange, Network, ring_seconds, step_time
from mpisign.predict.methods import METHODS, Cluster, Rates, predict
from mpisign.predict.models import MODELS, ModelShapes, model_of
from mpisign.predict.reasons import break_even, in_words, verdict

RATES = Rates(1e-10, 2e-11, 3e-10, 4e-10, 5e-11, 1e-10, 6e-10, 7e-10, 8e-10, 9e-10)
TORCH = importlib.util.find_spec("torch") is not None
#: 8 ranks, one a node: 1 ms, 1 MB/s.
SLOW = Network(latency=1e-3, bandwidth=1e6)


def step(name, model, cluster, compute=ALONE, overlap=False):
    [method] = [m for m in METHODS if m.name == name]
    return predict(model, cluster, compute, overlap, [method])[name]


def test_equations_by_hand():
    # 2 (p - 1) (alpha + b / (p BW)): 14 hops of 1 ms + 8 kB / 8 / 1 MB/s = 1 ms.
    assert ring_seconds(8000, 8, SLOW) == pytest.approx(14 * 2e-3)
    one_node = Network(1e-3, 1e6, ranks_per_node=8, local_latency=1e-5, local_bandwidth=1e8)
    assert ring_seconds(8000, 8, one_node) == pytest.approx(14 * 2e-5)
    parts = [Exchange(0.01, 0.2, 1e6), Exchange(0.02, 0.3, 2e6), Exchange(0.03, 0.1, 3e6)]
    plain = step_time(Compute(1.0, 0.4), parts, overlap=False)
    assert plain.seconds == pytest.approx(1.0 + 0.06 + 0.6) and plain.hidden == 0
    # forward + max(gamma backward + two buckets' work, their wire) + the last bucket
    hidden = step_time(Compute(1.0, 0.4, 1.1), parts, overlap=True)
    assert hidden.seconds == pytest.approx(0.6 + max(0.44 + 0.03, 0.5) + 0.13)
    assert hidden.hidden == pytest.approx(0.47) and hidden.sent == 6e6
    longer = step_time(Compute(1.0, 0.9), parts, overlap=True)
    assert longer.seconds == pytest.approx(0.1 + 0.93 + 0.13)


def test_steps_by_hand():
    d, p = 80_000, 8
    model, cluster = ModelShapes("one", ((d,),)), Cluster(p, SLOW, RATES, message=1 << 20)
    fp16 = step("fp16", model, cluster)
    assert fp16.wire == pytest.approx(14e-3 + 2 * 2 * d * 7 / 8 / 1e6)
    assert fp16.computes == pytest.approx(d * (RATES.cast + RATES.sum_fp16 * 7 / 8))
    vote = step("alltoall-vote", model, cluster, Compute(0.5))
    # Two rounds, 2 B (1 - 1/p) bytes of B = d / 8 = 10 kB; p shards of d / p are tallied.
    assert vote.wire == pytest.approx(2e-3 + 2 * 10e3 * 7 / 8 / 1e6)
    assert vote.computes == pytest.approx(d * (RATES.pack + RATES.tally + RATES.unpack))
    assert vote.seconds == pytest.approx(0.5 + vote.wire + vote.computes)
    gathered = step("allgather-vote", model, cluster)
    assert gathered.wire == pytest.approx(1e-3 + 7 * 10e3 / 1e6)
    assert gathered.computes == pytest.approx(d * (RATES.pack + p * RATES.tally + RATES.unpack))
    # Half of the bandwidth where all exchange with all: votes, not rings. A link for two ranks.
    half = Cluster(p, Network(1e-3, 1e6, ranks_per_node=2, share=0.5), RATES, message=1 << 20)
    assert step("fp16", model, half).wire == fp16.wire
    far = 2 * 10e3 * 6 / 8
    assert step("alltoall-vote", model, half).wire == pytest.approx(2e-3 + far * 2 / 0.5 / 1e6)
    with pytest.raises(ValueError, match="two ranks"):
        predict(model, Cluster(1, SLOW, RATES))


@pytest.mark.parametrize("ranks, each", [(4, 1), (12, 3), (96, 8)])
def test_bytes_are_those_of_the_collectives(ranks, each):
    model = model_of(1_000_003)
    d, nodes = model.parameters, [r // each for r in range(ranks)]
    cluster = Cluster(ranks, Network(1e-4, 1e8, each), RATES, powersgd_rank=1)
    found = predict(model, cluster)
    assert ("hierarchical" in found) == (each > 1)
    for name, algorithm in [
        ("allgather-vote", "allgather"), ("alltoall-vote", "alltoall"),
        ("hierarchical", "hierarchical"),
    ]:  # fmt: skip
        if name in found:
            given = nodes if algorithm == "hierarchical" else None
            said = mpisign.vote_traffic(d, ranks, algorithm=algorithm, nodes=given)
            # Preambles of 64 bytes in front of the first and the last chunk; chunks are rounded.
            assert abs(found[name].sent - said.sent) <= 2 * 64 * (ranks - 1) + said.sends
    for name, of in [("fp32", traffic.of_fp32), ("fp16", traffic.of_fp16)]:
        assert found[name].sent == pytest.approx(of(d, ranks, ranks, 1).rank)
    message = np.zeros(-(-d // 8) + 8 + 4 * len(model.shapes), np.uint8)
    rows = [message] * ranks
    counted = dry_steps(lambda wire: gather_rows(wire, message.copy(), rows), 0, ranks).far
    sent = found["ef_sign"].sent - 512 * (ranks - 1)  # without the header
    assert abs(sent - counted.sent) <= 16 * ranks
    side = math.isqrt(d)
    values = side + d // side + d - side * (d // side)  # P, Q, and what is left
    assert found["PowerSGD"].sent == pytest.approx(2 * 4 * values * (ranks - 1) / ranks)


def test_models():
    known = {
        "resnet50": (25_557_032, 161), "bert-large": (335_141_888, 391),
        "gpt2-xl": (1_557_611_200, 580), "llama-8b": (8_030_261_248, 291),
    }  # fmt: skip
    assert {n: (model_of(n).parameters, len(model_of(n).shapes)) for n in MODELS} == known
    assert tuple(MODELS) == settings.NAMES
    assert model_of("resnet50").sizes == list(resnet50())
    assert len(model_of("resnet50").matrices) == 54
    assert model_of(2 * 2**20 + 13).shapes == ((1024, 1024), (1024, 1024), (3, 4), (1,))


@pytest.mark.skipif(not TORCH, reason="needs torch")
def test_buckets_are_those_of_the_front_ends():
    import torch
    import torch.distributed as dist

    from mpisign.compressors import Signum
    from mpisign.exchange.buckets import BUCKET_SIZE, cut
    from mpisign.exchange.parameter_slot import ParameterSlot

    assert buckets.OF_VOTES == BUCKET_SIZE
    model = model_of("resnet50")
    parameters = [torch.nn.Parameter(torch.empty(s)) for s in reversed(model.shapes)]
    slots = [ParameterSlot(str(i), p) for i, p in enumerate(parameters)]
    ours = cut("test", slots, Signum(), lambda name, p: None, BUCKET_SIZE)
    lengths = [sum(b.layout.lengths) for b in ours]
    assert [buckets.length(b) for b in buckets.vote_buckets(model)] == lengths
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 << 20]
    theirs, _ = dist._compute_bucket_assignment_by_size(parameters, limits)
    sizes = [sum(parameters[i].numel() for i in bucket) for bucket in theirs]
    assert [buckets.length(b) for b in buckets.ddp_buckets(model)] == sizes


def test_where_a_vote_pays():
    model = model_of("resnet50")

    def at(bandwidth, compute=ALONE, overlap=False):
        cluster = Cluster(16, Network(2e-5, bandwidth), RATES)
        return predict(model, cluster, compute, overlap)

    slow, fast = at(1.25e8), at(1e13)
    yes = verdict(16, 1.25e8, slow, Compute(), False)
    assert yes.pays == "yes" and yes.vote == "alltoall-vote" and "needs the wire for" in yes.why
    assert "pays" in in_words(yes)
    ring = min(slow["fp16"].seconds, slow["fp32"].seconds)
    assert yes.gain == pytest.approx(ring / slow["alltoall-vote"].seconds)
    heavy = Rates(*[1e-8] * 3, *[1e-10] * 7)
    no = predict(model, Cluster(16, Network(2e-5, 1e13), heavy))
    never = verdict(16, 1e13, no, Compute(), False)
    assert never.pays == "no" and "packing" in never.why
    long = Compute(10.0, 6.0)
    equal = verdict(16, 1e9, at(1e9, long, True), long, True)
    assert equal.pays == "too close to call" and "backward hides" in equal.why
    casts = Rates(*[1e-10] * 6, *[1e-7] * 3)  # a slow cast is why, and not the wire
    paid = verdict(16, 1e10, predict(model, Cluster(16, Network(2e-5, 1e10), casts)), ALONE, False)
    assert paid.pays == "yes" and paid.why.startswith("packing") and "less than" in paid.why
    even = break_even(lambda b: predict(model, Cluster(16, Network(2e-5, b), heavy)))
    for bandwidth, faster in [(0.9 * even, True), (1.1 * even, False)]:
        steps = predict(model, Cluster(16, Network(2e-5, bandwidth), heavy))
        best = min(steps[m.name].seconds for m in METHODS if m.votes and m.name in steps)
        assert (best < min(steps["fp16"].seconds, steps["fp32"].seconds)) == faster
    assert fast  # no bandwidth divides by zero


def test_options():
    assert settings.bandwidth("10gbit") == settings.bandwidth("1.25GB/s") == 1.25e9
    assert settings.bandwidth("100 Mbit/s") == settings.bandwidth("100Mbps") == 1.25e7
    assert settings.latency("20us") == 2e-5 and settings.latency("0.1ms") == 1e-4
    for wrong in ("10", "0gbit", "fast", "-1gbit"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a bandwidth"):
            settings.bandwidth(wrong)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--model", "resnet51"], "none of resnet50"),
        (["--ranks", "1"], "from 2"),
        (["--script", "nowhere.py"], "no such file"),
        (["--script", "train.py 'x"], "No closing quotation"),
        (["--script", "a.py", "--compute-ms", "3"], "not allowed with --script"),
        (["--backward-ms", "3"], "at most --compute-ms"),
        (["--from", "nowhere.json"], "--from nowhere.json"),
    ],
)
def test_what_a_person_can_put_right(options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", *options])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def kernels_file(folder):
    """As mpisign bench kernels writes it: 1 ms a call on 1M coordinates."""
    rows = [
        {"kernel": kernel, "n": n, "size": 10**6, "threads": 1, "time": {"median": 1e-3}}
        for kernel, n in [
            ("pack_signum", None), ("majority", 4), ("majority", 64), ("unpack", None),
            ("pack_error_feedback", None), ("weighted_sum", 4),
        ]
    ]  # fmt: skip
    path = folder / "kernels.json"
    path.write_text(json.dumps({"name": "kernels", "rows": rows}))
    return path


def links_file(folder):
    link = {"library": "Some MPI", "latency": 1e-4, "bandwidth": 1e8}
    path = folder / "network.json"
    document = {"name": "collectives", "links": [link], "nodes": {"of": [0, 1]}}
    path.write_text(json.dumps(document))
    return path


def test_results_of_benches(tmp_path):
    found = read_results([kernels_file(tmp_path), links_file(tmp_path)], ranks=5)
    assert found.rates["pack"] == 1e-9 and found.rates["tally"] == 1e-9 / 4
    assert found.wires["remote"].bandwidth == 1e8 and "Some MPI" in found.wires["remote"].where
    costs = tmp_path / "costs.json"
    costs.write_text('{"remote_latency": 1e-5, "remote_per_byte": 1e-9, "local_per_byte": 0}')
    assert read_results([costs], 4).wires["remote"].bandwidth == pytest.approx(1e9)


@pytest.mark.parametrize("ranks, bandwidths", [((4,), [1e8]), ((4, 8, 16), [1e5, 5e10])])
def test_the_picture_can_be_read(ranks, bandwidths):
    """No tick beside another, none without its unit, title and legend in the figure."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from mpisign.predict.run import PredictRecord, _curves
    from mpisign.predict.shown import SHOWN
    from mpisign.predict.wire import Wire

    record = PredictRecord(
        name="predict", command="", settings=settings.PredictSettings(ranks=ranks), rates=RATES,
        remote=Wire(2e-5, 0.0, 0.0, "here"), model_name="1M parameters", parameters=10**6,
    )  # fmt: skip
    record.curves = list(_curves(record, model_of(10**6), bandwidths))
    figure = SHOWN.draw(record)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    room = figure.bbox.width
    for text in (figure._suptitle, *figure.legends):
        box = text.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 and box.x1 <= room
    for axis in figure.axes:
        labels = [t for t in axis.get_xticklabels(which="both") if t.get_text()]
        low, high = axis.get_xlim()
        inside = [t for t in labels if low <= t.get_position()[0] <= high]
        assert len(inside) > 1 and all("bit/s" in t.get_text() for t in inside)
        boxes = sorted(t.get_window_extent().intervalx.tolist() for t in inside)
        assert all(a[1] < b[0] for a, b in zip(boxes, boxes[1:], strict=False))


LINK = {"library": "x", "latency": 1e-4, "bandwidth": 1e8}


@pytest.mark.parametrize(
    "document, said",
    [
        ({"name": "collectives", "links": [], "nodes": {"of": [0, 1]}}, "lacks"),
        ({"name": "kernels"}, "lacks what is needed: 'rows'"),
        (
            {"name": "collectives", "links": [{**LINK, "bandwidth": 0.0}], "nodes": {"of": [0]}},
            "a bandwidth is 0.0",
        ),
        ({"remote_latency": math.nan, "remote_per_byte": 1e-9, "local_per_byte": 0}, "latencies"),
        ({"remote_latency": -1.0, "remote_per_byte": 1e-9, "local_per_byte": 0}, "latencies"),
        ({"remote_latency": "1", "remote_per_byte": 1e-9, "local_per_byte": 0}, "'>='"),
        ({"remote_latency": 1.0, "remote_per_byte": -1e-9, "local_per_byte": 0}, "a bandwidth"),
    ],
)
def test_results_that_make_no_sense(document, said, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SettingsError, match=said):
        read_results([path], 4)


def test_command_with_files(tmp_path, capsys):
    files = {"json": tmp_path / "p.json", "markdown": tmp_path / "p.md"}
    if importlib.util.find_spec("matplotlib"):
        files["plot"] = tmp_path / "p.png"
    given = [str(part) for option, path in files.items() for part in (f"--{option}", path)]
    known = ["--from", str(kernels_file(tmp_path)), "--from", str(links_file(tmp_path))]
    words = ["--model", "100k", "--ranks", "4,8", "--bandwidth", "100mbit,1gbit", *known, *given]
    assert cli.main(["predict", *words, "--compute-ms", "30", "--overlap"]) == 0
    out = capsys.readouterr().out
    assert "where a vote pays" in out and "the best vote is" in out
    document = json.loads(files["json"].read_text())
    assert document["rates"]["pack"] == 1e-9 and document["remote"]["latency"] == 1e-4
    assert document["compute"] == {"step": 0.03, "backward": pytest.approx(0.02), "gamma": 1.0}
    assert len(document["verdicts"]) == 4
    rates = Rates(**document["rates"])
    for row in document["rows"]:  # the rows follow from the quantities that stand beside them
        network = Network(1e-4, row["bandwidth"])
        compute = Compute(**document["compute"])
        cluster = Cluster(row["ranks"], network, rates)
        expected = step(row["method"], model_of(100_000), cluster, compute, True)
        assert row["step"]["seconds"] == pytest.approx(expected.seconds)
    if "plot" in files:
        assert files["plot"].read_bytes().startswith(b"\x89PNG")
    assert "### Where a vote pays" in files["markdown"].read_text()


def test_summary():
    rows = [{"off": 0.1}, {"off": -0.2}, {"off": None}]
    table = summary_of([{"nodes": {"of": [0, 1], "rate": 12.5e6}, "rows": rows}])
    assert table.rows[0] == ("2 ranks on 2 nodes, 100 Mbit/s", "2", "1", "15%", "-20%", "+10%")


SCRIPT = """
import sys, torch
assert sys.argv[1:] == ["--seven", "7"] and __name__ == "__main__"
net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 1))
sgd = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range({steps}):
    sgd.zero_grad()
    net(torch.ones(4, 30)).sum().backward()
    sgd.step()
print("done")
"""


@pytest.mark.skipif(not TORCH, reason="needs torch")
def test_script(tmp_path):
    from mpisign.predict import script_steps
    from mpisign.predict.script import measure_script, steps_of

    script, result = tmp_path / "train.py", tmp_path / "steps.json"
    script.write_text(SCRIPT.replace("{steps}", "10**9"))
    argv, path = sys.argv, sys.path[:]
    try:
        script_steps.main(result, str(script), ["--seven", "7"])
    finally:
        sys.argv, sys.path[:] = argv, path
    found = steps_of(json.loads(result.read_text()), str(script))
    assert found.model.shapes == ((20, 30), (20,), (1, 20), (1,))
    assert found.model.name == "train.py" and 0 < found.backward < found.step < 10
    script.write_text(SCRIPT.replace("{steps}", "3"))
    with pytest.raises(SettingsError, match="needs 4 steps of a torch optimizer, made 3"):
        measure_script(f"{script} --seven 7")  # in a process of its own


ALONE_SCRIPT = """
import os, torch
assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "OMPI_COMM_WORLD_RANK"} & {*os.environ}
net = torch.nn.Linear(3, 2).requires_grad_(False)
sgd = torch.optim.SGD(net.parameters())
for _ in range(4):
    sgd.step()
"""


@pytest.mark.skipif(not TORCH, reason="needs torch")
def test_script_of_a_rank_runs_alone(tmp_path, monkeypatch):
    """Also under torchrun: the script would wait for the other ranks."""
    from mpisign.predict.script import measure_script

    job = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "::1"}
    for name, value in {**job, "OMPI_COMM_WORLD_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "train.py"
    script.write_text(ALONE_SCRIPT)
    with pytest.raises(SettingsError, match="no parameter of its optimizer requires a gradient"):
        measure_script(str(script))


def test_errors_in_a_job_name_the_command(monkeypatch, capsys):
    from mpisign.bench import runner
    from mpisign.bench.settings import PredictCheckSettings

    def start(*given):
        raise SettingsError("no")

    monkeypatch.setattr(runner, "start", start)
    kinds = {"predict": settings.PredictSettings, "bench predict": PredictCheckSettings}
    for name, kind in kinds.items():
        assert runner.run(kind(started="mpi"), None, None, 1.0, None) == 2
        assert capsys.readouterr().err == f"mpisign {name}: error: no\n"


def test_tallied_planes():
    cluster = Cluster(12, Network(1e-4, 1e8, 3), RATES)
    # Three ballots of a third each, and of it count planes of two bits from four nodes.
    assert methods._tallied("hierarchical", cluster) == pytest.approx(1 + 2 / 3)


@pytest.mark.mpi
@pytest.mark.skipif(not TORCH, reason="needs torch")
def test_between_ranks(tmp_path):
    program = [sys.executable, "tests/ranks/predict_both.py", tmp_path]
    mpirun(2, *program, env=ONE_THREAD, timeout=240)
    said = json.loads((tmp_path / "predict.json").read_text())
    assert said["local"]["where"].startswith("2 ranks on one node, Open MPI")
    assert said["local"]["latency"] > 0 and said["local"]["bandwidth"] > 0
    assert said["sources"]["pack"] == "measured by 2 ranks at once"
    assert {row["ranks"] for row in said["rows"]} == {2, 4}
    checked = json.loads((tmp_path / "bench.json").read_text())
    rows = checked["rows"]
    names = ["fp32", "fp16", "PowerSGD", "allgather-vote", *["alltoall-vote"] * 2, "ef_sign"]
    assert [row["method"] for row in rows] == names
    for row in rows:
        assert not row["error"] and row["measured"] > 0 and row["predicted"] > row["none"] > 0
        assert row["off"] == pytest.approx(row["predicted"] / row["measured"] - 1)
        assert row["within"] == (abs(row["off"]) <= 0.15)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
