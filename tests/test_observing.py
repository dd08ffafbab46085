"""Traces, NVTX ranges, TensorBoard, Prometheus: what is shown is what happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from launchers import RANKS, ROOT, TESTS, environment, find, run, with_tests

import mpisign
import mpisign.log
from mpisign import census, simulation
from mpisign.tracing import chrome

KILLED = """
import atexit, os, signal, numpy as np, mpisign
comm = mpisign.Communicator()
x = np.ones(1000, np.float32)
for step in range(8):
    if step == 5 and os.fork() == 0:  # a child leaves the file alone; MPI would not let it exit
        atexit._run_exitfuncs()
        os._exit(0)
    comm.majority_vote(x)
    if step == 6:
        {end}
"""
RAISES = "raise SystemExit(3)"
DIES = "os.kill(os.getpid(), signal.SIGKILL)"


def python(code, **env):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment(**env), timeout=60, capture_output=True)


def spans(path):
    """(row, name, step, start, end) of a trace file, by start."""
    events = json.loads(path.read_text())
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = [
        (rows[e["tid"]], e["name"], e["args"]["step"], e["ts"], e["ts"] + e["dur"])
        for e in events
        if e["ph"] == "X"
    ]
    return sorted(found, key=lambda span: span[3])


def test_a_trace_that_a_signal_or_an_error_ends_is_json(tmp_path):
    """And a forked child has no part in it; steps are calls where no optimizer is hooked."""
    for end, steps in ((DIES, "2:100"), (RAISES, "2:100"), ("pass", "")):
        trace = {"MPISIGN_TRACE": str(tmp_path / "t.json"), "MPISIGN_TRACE_STEPS": steps}
        python(KILLED.format(end=end), **trace)
        found = spans(tmp_path / "t.rank0.json")
        first, last = (2, 7) if steps else (3, 6)
        assert {step for _, _, step, _, _ in found} == set(range(first, last)), end
        names = [name for _, name, step, _, _ in found if step == 4]
        assert names[0] == "majority_vote"
        assert set(names) == {"majority_vote", "pack", "exchange", "wait", "tally", "unpack"}
        (tmp_path / "t.rank0.json").unlink()


TRAINS = """
import torch, mpisign, torch.distributed as dist, torch.optim.optimizer as steps
from mpisign.ddp import MajorityVoteState, majority_vote_hook
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 3))
net.register_comm_hook(MajorityVoteState(skip=None), majority_vote_hook)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
heard = []  # by a hook that torch calls after the trace's
steps.register_optimizer_step_post_hook(lambda *_: heard.append(1))
for _ in range(4):
    optimizer.zero_grad()
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
assert len(heard) == 4
assert not torch.nn.modules.module._global_forward_hooks
dist.destroy_process_group()
"""


def test_training_goes_on_where_the_trace_ends(tmp_path):
    """The last step that is traced ends while torch goes through the hooks of steps."""
    trace = {"MPISIGN_TRACE": str(tmp_path / "t.json"), "MPISIGN_TRACE_STEPS": "1:3"}
    done = python(TRAINS, **trace)
    assert done.returncode == 0, done.stderr.decode()
    assert {step for _, _, step, _, _ in spans(tmp_path / "t.rank0.json")} == {1, 2}


FILLS = """
import resource, signal, numpy as np
from mpisign import simulation

def votes(comm):
    for step in range(8):
        comm.majority_vote(np.ones(1000, np.float32))
        if step == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
simulation.run(2, votes)
"""


def test_a_trace_on_a_full_disk_is_json_and_training_goes_on(tmp_path):
    trace = {"MPISIGN_TRACE": str(tmp_path / "t.json"), "MPISIGN_TRACE_STEPS": "0:8"}
    done = python(FILLS, **trace)
    assert done.returncode == 0, done.stderr.decode()
    assert b"RuntimeWarning: MPISIGN_TRACE" in done.stderr
    assert spans(tmp_path / "t.rank0.json")


def test_settings_that_mean_nothing():
    assert chrome.window("") == (3, 6)
    assert chrome.window("2") == (3, 5)
    assert chrome.window("0:1") == (0, 1)
    for text in ("0", "3:3", "a", "1:", ":2", "-1"):
        with pytest.raises(ValueError, match="MPISIGN_TRACE_STEPS must be"):
            chrome.window(text)
    with pytest.raises(ValueError, match="every must be a whole number"):
        mpisign.log.sample_votes(-1)


@pytest.mark.horovod
def test_every_front_end_under_one_trace(tmp_path):
    """20 s: seven front ends in one launch. Buckets' stages beside backward; Horovod's names."""
    pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")
    env = {"MPISIGN_TRACE": str(tmp_path / "t.json"), "MPISIGN_TRACE_STEPS": "0:99"}
    env["HOROVOD_TIMELINE"] = str(tmp_path / "timeline.json")
    launch = [find("horovodrun"), "-np", "2", "--gloo", sys.executable]
    done = run([*launch, RANKS / "traced.py", tmp_path], env=with_tests(**env), timeout=240)
    line = next(at for at in done.stdout.splitlines() if "STEPS" in at)
    taken = json.loads(line.partition("STEPS")[2])
    for rank in range(2):
        by_step = defaultdict(list)
        for span in spans(tmp_path / f"t.rank{rank}.json"):
            by_step[span[2]].append(span)
        for front_end, (_, step) in taken.items():
            check_step(front_end, by_step[step])
    timeline = (tmp_path / "timeline.json").read_text()
    for name in ("bucket0.first.0", "bucket0.ballots.1", "ranks.sum.0"):
        assert f"mpisign.0.0.{name}" in timeline, name
    files = [tmp_path / "t.rank0.json", tmp_path / "t.rank1.json", tmp_path / "t.png"]
    run([sys.executable, ROOT / "scripts" / "draw-trace", "--step", "3", *files])
    assert files[-1].read_bytes().startswith(b"\x89PNG")
    assert (
        run(
            [sys.executable, ROOT / "scripts" / "draw-trace", "--step", "77", *files], check=False
        ).returncode
        == 2
    )


def check_step(front_end, found):
    rows = defaultdict(dict)
    for row, name, _, start, end in found:
        rows[row].setdefault(name, (start, end))
    training = rows.pop("training")
    for name in ("forward", "backward", "step"):
        assert name in training, (front_end, sorted(training))
    assert training["forward"][1] <= training["backward"][0]
    assert training["backward"][1] <= training["step"][1]
    if front_end == "counters":  # Horovod's own exchange, parameter by parameter
        assert set(rows) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert all("exchange" in row for row in rows.values())
        assert {"pack", "tally", "unpack"} <= set(training)
        return
    assert len(rows) == (2 if front_end in ("plain", "overlap", "ddp") else 1), (front_end, rows)
    for row, names in rows.items():
        whole = "majority_vote_hook" if front_end == "fsdp" else row
        wanted = {"exchange", "tally", "unpack"} | ({"pack"} if front_end != "fsdp" else set())
        assert wanted | {whole} == set(names), front_end
        assert names[whole][0] <= names["exchange"][0] <= names["tally"][0] <= names["unpack"][0]
    if front_end in ("overlap", "ddp"):
        assert rows["bucket 0"]["pack"][1] < training["backward"][1]
    if front_end == "plain":
        assert rows["bucket 0"]["pack"][0] > training["step"][0]


def test_ranges_as_a_tool_sees_them(tmp_path):
    """The NVTX tool is tests/nvtx_recorder.c, loaded as Nsight Systems' is. Errors leave none."""
    pytest.importorskip("nvtx", reason='pip install "mpisign[nvtx]"')
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    tool = tmp_path / "recorder.so"
    source = TESTS / "nvtx_recorder.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tool, source], check=True, timeout=60)
    code = """
import numpy as np, mpisign
x = np.ones(9, np.float32)
comm = mpisign.Communicator()
for _ in range(2):
    comm.majority_vote(x)
try:
    comm.majority_vote(x * np.nan)
except mpisign.errors.NaNError:
    pass
"""
    record = tmp_path / "ranges"
    env = {"NVTX_INJECTION64_PATH": str(tool), "NVTX_RECORD": str(record), "MPISIGN_NVTX": "1"}
    done = python(code, **env)
    assert done.returncode == 0, done.stderr.decode()
    open_ranges, seen = [], set()
    for line in record.read_text().splitlines():
        what, domain, *label = line.split()
        assert domain == "mpisign"
        if what == "push":
            open_ranges.append(" ".join(label))
            seen.add(tuple(open_ranges))
        else:
            open_ranges.pop()
    assert open_ranges == []
    assert {("majority_vote", stage) for stage in ("pack", "tally", "unpack")} <= seen
    missing = "import sys; sys.modules['nvtx'] = None; import mpisign"
    done = python(missing, MPISIGN_NVTX="1")
    assert b'pip install "mpisign[nvtx]"' in done.stderr


def test_prometheus_by_its_own_parser(sampling, tmp_path):
    parser = pytest.importorskip("prometheus_client.parser", reason="pip install prometheus_client")
    simulation.run(3, lambda comm: comm.majority_vote(np.ones(80, np.float32)))
    sampling.add_distances([[0, 1, 2]], 100, [0, 50, 1])
    path = tmp_path / "mpisign.prom"
    mpisign.log.write_prometheus(path, {"rank": 0, "job": 'a "quoted"\\name'})
    assert [p.name for p in tmp_path.iterdir()] == ["mpisign.prom"]
    families = {f.name: f for f in parser.text_string_to_metric_families(path.read_text())}
    for family in families.values():
        assert family.documentation and family.samples
        assert all(s.labels["job"] == 'a "quoted"\\name' for s in family.samples)
    stages = {s.labels["stage"]: s.value for s in families["mpisign_stage_seconds"].samples}
    assert stages == {name: s.seconds for name, s in sampling.stages.items()}
    (sent,) = families["mpisign_sent_bytes"].samples
    assert sent.value == sampling.stages["exchange"].sent > 0
    margin = families["mpisign_vote_margin"]
    assert margin.type == "histogram"
    values = {
        (s.name[len("mpisign_vote_margin_") :], s.labels.get("le")): s.value for s in margin.samples
    }
    seen = sampling.votes.coordinates
    assert values == {
        ("bucket", "3.0"): seen,
        ("bucket", "+Inf"): seen,
        ("sum", None): 3 * seen,
        ("count", None): seen,
    }
    differing = {
        s.labels["voter"]: s.value for s in families["mpisign_group_vote_differing"].samples
    }
    assert differing == {"0": 0, "1": 50, "2": 1}


def test_tensorboard_shows_what_was_counted(tmp_path):
    """Read back by TensorBoard itself; only rank 0 writes; a reset in between does no harm."""
    for needed in ("torch", "tensorboard"):
        pytest.importorskip(needed, reason='pip install "mpisign[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mpisign.stats().reset()
    x = np.array([[1, 1, 1, -1] * 4, [1, 1, -1, -1] * 4, [1, -1, 1, 1] * 4], np.float32)

    def meet(comm):
        comm.majority_vote(np.ones(1, np.float32), step=1)  # which is not looked at

    def train(comm):
        with mpisign.log.TensorBoard(tmp_path / "runs", every=2, rank=comm.rank) as board:
            for step in range(6):
                comm.majority_vote(x[comm.rank], step=step, algorithm="alltoall")
                meet(comm)
                if step == 2 and comm.rank == 0:
                    mpisign.stats().reset()
                meet(comm)
                board.step(loss=step)
                meet(comm)

    simulation.run(3, train)
    assert census.every == 0  # the board has switched it off
    (file,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(file.parent), size_guidance={"histograms": 0})
    events.Reload()
    read = {t: [(p.step, p.value) for p in events.Scalars(t)] for t in events.Tags()["scalars"]}
    assert read["loss"] == [(2, 1.0), (4, 3.0), (6, 5.0)]
    # Of columns 0 to 3 the majority has 3, 1, 1 and 1 votes more. The votes of step 2 are
    # lost by the reset, so that there is no second point.
    assert read["votes/mean margin"] == [(2, 1.5), (6, 1.5)]
    assert read["votes/unanimous"] == [(2, 0.25), (6, 0.25)]
    assert read["votes/ties"] == [(2, 0.0), (6, 0.0)]
    assert [v for _, v in read["against the majority/rank 1"]] == [0.25, 0.25]
    assert all(value >= 0 for points in read.values() for _, value in points)
    first, *_ = events.Histograms("votes/margin")
    bars = dict(zip(first.histogram_value.bucket_limit, first.histogram_value.bucket, strict=True))
    assert bars[1] == 12 and bars[3] == 4


def test_tensorboard_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "mpisign\[tensorboard\]"'):
        mpisign.log.TensorBoard(tmp_path, rank=0)
    mpisign.log.TensorBoard(tmp_path, rank=1).step(loss=1)  # which writes nothing and needs nothing
    with pytest.raises(ValueError, match="every must be"):
        mpisign.log.TensorBoard(tmp_path, every=0)
