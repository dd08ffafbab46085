"""``mpisign doctor`` in a job: what ranks say of themselves, and what follows from it."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launchers import find, run

from mpisign.doctor import disk, job, ranks


def test_ranks_compare_notes_without_mpi(tmp_path):
    """Under torchrun and horovodrun --gloo, side by side: they mostly import torch."""
    started = {
        "torch": [find("torchrun"), "--nproc-per-node", 2, "--no-python"],
        "horovod": [find("horovodrun"), "--gloo", "-np", 2, "-H", "localhost:2"],
    }

    def asked(name):
        file = tmp_path / name
        run([*started[name], sys.executable, "-m", "mpisign.doctor.probes", "job", file])
        return name, json.loads(file.read_text())

    with ThreadPoolExecutor() as pool:
        answers = dict(pool.map(asked, started))
    for name, answer in answers.items():
        assert answer["state"] == "ok", answer
        found = answer["details"]["ranks"]
        assert [r["local_rank"] for r in found] == [0, 1]
        assert [(r["size"], r["transport"]) for r in found] == [(2, name)] * 2
        assert ranks.differences(found) == {}
        (same,) = [row for row in job.rows_of_ranks(found) if row.name == "ranks' differences"]
        assert same.state == "ok" and same.found.startswith("none: ")


def test_a_rank_that_is_not_there(monkeypatch):
    silent = {"state": "broken", "found": "no answer within 12 s", "advice": "", "details": {}}
    monkeypatch.setattr(job, "ask", lambda name, seconds: silent)
    found, row = job.ask_ranks(12)
    assert found == [] and row.state == "broken" and "a rank hangs" in row.advice


def test_a_job_in_which_mpi_sees_one_rank(monkeypatch):
    pytest.importorskip("mpi4py")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    found, row = job.ask_ranks(60)
    assert found == [] and row.state == "broken"
    assert row.found == "PMI_SIZE says 2 processes, but MPI sees only one"
    assert row.advice.startswith("the launcher and mpi4py's MPI library are not of one kind: ")


def test_crowded_cores_shared_devices_and_a_cache_that_others_serve():
    own = ranks.gather()[0] | {"cupy": "14.0", "gpus": ["H200", "H200"], "affinity": [0, 1]}
    alike = {**own, "device": 1, "device_id": "ab", "cache_on_network": True, "threads": 2}
    found = {row.name: row for row in job.rows_of_ranks([alike, alike])}
    assert found["device of each rank"].found.startswith("ranks 0-1: GPU 1 (H200); one GPU for ")
    assert found["cores"].found.startswith("2 ranks, 4 threads, 2 cores: ")
    assert found["kernel cache"].advice.endswith("export CUPY_CACHE_DIR=/tmp/$USER-cupy")
    assert [row.state for row in found.values()] == ["doubtful"] * 3 + ["ok"]
    apart = [{**own, "device": n, "device_id": str(n), "host": f"node{n}"} for n in (0, 1)]
    found = {row.name: row for row in job.rows_of_ranks(apart)}
    assert found["device of each rank"].found == "ranks 0: GPU 0 (H200), ranks 1: GPU 1 (H200)"
    assert found["device of each rank"].state == "ok" and found["cores"].state == "ok"


def test_file_systems_that_other_machines_serve():
    mounts = (
        "22 1 0:1 / / rw shared:1 - ext4 /dev/root rw\n"
        "30 22 0:2 / /home rw,relatime shared:2 - nfs4 server:/home rw\n"
        "31 22 0:3 / /home/a\\040b rw - ext4 /dev/b rw\n"
    )
    kinds = ("/home/x/.cupy", "/homes", "/home/a b/c")
    assert [disk.file_system(Path(p), mounts) for p in kinds] == ["nfs4", "ext4", "ext4"]
    assert disk.is_network("nfs4") and disk.is_network("lustre") and not disk.is_network("ext4")
    assert disk.file_system(Path("/proc/self")) == "proc"
