"""scripts/batch: stopped by SIGUSR1 with a checkpoint, queued again, resumed at the same bits.

Slurm's are submitted to a real Slurm of one machine; what PBS, LSF and Flux set and do is played.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launchers import BIN, RANKS, ROOT, environment, find, mpirun, with_tests
from slurm_cluster import PATH, Cluster, missing

BATCH = ROOT / "scripts" / "batch"
SCRIPTS = sorted(BATCH.glob("*.sh"))
SLOW = RANKS / "batch_slow.py"
SLURM = ("srun", "mpirun", "torchrun", "horovodrun")

pytest.importorskip("torch", reason='pip install "mpisign[train]"')


def env_of(folder, **more):
    """What a job is started with: edits that a person would make in the script."""
    env = environment(**with_tests(), TRAIN=str(SLOW), RUN=str(folder), RANKS="2", **more)
    oversubscribe = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**env, **oversubscribe, "OMPI_MCA_hwloc_base_binding_policy": "none"}


def whole(folder):
    """What FOLDER/done says after a run that nobody stopped."""
    script = ROOT / "docs" / "examples" / "batch_training.py"
    mpirun(2, sys.executable, script, folder, "--steps", "200", env=with_tests())
    return (folder / "done").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_shellcheck(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert not found.stdout


def test_scripts_are_short_executable_and_know_the_networks():
    assert len(SCRIPTS) == 7
    for script in SCRIPTS:
        text = script.read_text()
        assert os.access(script, os.X_OK), script.name
        assert len(text.splitlines()) < 40, script.name
        for word in ("USR1", "NCCL_SOCKET_IFNAME", "UCX_NET_DEVICES", "GPU", '"$RUN/stopped"'):
            assert word in text, f"{script.name}: {word}"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of this machine's own, and the jobs that all its scripts made: {kind: (id, log)}."""
    if missing():
        pytest.skip(missing())
    folder = tmp_path_factory.mktemp("slurm")
    with Cluster(folder / "cluster") as cluster:
        jobs = {}
        for kind in SLURM:
            if unfit(cluster, kind):
                continue
            tasks = "1" if kind == "torchrun" else "2"
            size = ["--nodes=1", f"--ntasks-per-node={tasks}", "--cpus-per-task=2", "--time=20"]
            log = folder / f"{kind}.log"
            where = [f"--output={log}", f"--chdir={ROOT}", str(BATCH / f"slurm-{kind}.sh")]
            env = env_of(folder / kind)
            path = f"{BIN}{os.pathsep}{PATH}"
            said = cluster("sbatch", "--parsable", *size, *where, **{**env, "PATH": path})
            jobs[kind] = said, log
        yield cluster, jobs, folder


def unfit(cluster, kind):
    """Why a launcher does not run here."""
    if kind == "srun":
        said = cluster("srun", "--mpi=pmix", "true", check=False)
        return said and f"no PMIx, apt-get install libpmix-dev: {said.splitlines()[0]}"
    there = shutil.which(kind, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    return "" if there else f"no {kind}: run scripts/setup"


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slurm_signals_before_the_limit_queues_again_and_the_job_resumes(slurm):
    """About 40 seconds: Slurm looks at time limits every 30."""
    cluster, jobs, folder = slurm

    def logs():
        return "\n".join(f"{k} {cluster.state(i)}\n{read(log)}" for k, (i, log) in jobs.items())

    def read(log):
        return log.read_text() if log.exists() else ""

    def over():
        """Sets each job's time limit: short once it trains, long once it was stopped by that."""
        states = {kind: cluster.state(job).split()[0] for kind, (job, _) in jobs.items()}
        for kind, said in limits.items():
            job, log = jobs[kind]
            assert states[kind] != "FAILED", logs()
            # The scripts ask for a signal 5 minutes before the end.
            for minutes, text in ((3, "starts at step 0 of 200, 2 ranks"), (20, "stopped after")):
                if minutes not in said and text in read(log):
                    cluster("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")
                    said.append(minutes)
        return all(state == "COMPLETED" for state in states.values())

    limits = {kind: [] for kind in jobs}
    with ThreadPoolExecutor() as pool:
        done = pool.submit(whole, folder / "whole")
        wait_for(over, 500, logs)
        done = done.result()
    for kind, (job, log) in jobs.items():
        assert cluster.state(job) == "COMPLETED 1", logs()
        text = log.read_text()
        step = int(text.split("stopped after step ")[1].split(",")[0])
        assert f"starts at step {step} of 200" in text, f"{kind}: {text}"
        assert (folder / kind / "done").read_text() == done, kind


@pytest.mark.parametrize("kind", SLURM)
def test_slurm_has(kind, slurm):
    """Says what the test above had to leave out."""
    cluster, jobs, _ = slurm
    if kind not in jobs:
        pytest.skip(unfit(cluster, kind))


#: What stands for the programs of batch systems that are not here: Open MPI's own mpirun starts the
#: ranks, as it would be asked to, and what is queued again is written down.
PLAYED = {
    "jsrun": 'n=$2; shift 8; exec mpirun -n "$n" "$@"',
    "qsub": 'test "$1" = -v && echo "$2" > "$QUEUED.variables" && echo "$3" >> "$QUEUED"',
    "flux": """
if [ "$1" = --parent ]; then echo "$3" >> "$QUEUED"; exit; fi
n=${2#--ntasks=}; shift 5
exec timeout --foreground --preserve-status --signal=USR1 "$SAVE_AFTER" mpirun -n "$n" "$@"
""",
}
#: What they set for a job on this machine, and the exit status of a job that wants another.
SET = {
    "pbs-mpiexec": ({"PBS_JOBID": "1.here", "PBS_O_WORKDIR": str(ROOT)}, 0),
    "lsf-jsrun": ({"LSB_JOBID": "1", "LSB_DJOB_NUMPROC": "2"}, 99),
    "flux-run": ({"FLUX_URI": "local:///nowhere", "FLUX_JOB_ID": "1"}, 0),
}


def test_pbs_lsf_and_flux_as_played_here(tmp_path):
    """Two jobs of one rank each, all three at once: 8 seconds until the signal, then the rest."""
    find("mpirun")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PLAYED.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "nodes").write_text("localhost\n")
    queued = tmp_path / "queued"

    def job(kind, seconds):
        more = {"SAVE_AFTER": seconds, "QUEUED": queued, "PBS_NODEFILE": tmp_path / "nodes"}
        env = env_of(tmp_path / kind, **{k: str(v) for k, v in more.items()}, **SET[kind][0])
        env["RANKS"] = "1"
        env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([BATCH / f"{kind}.sh"], env=env, cwd=ROOT, **how)

    def outputs(seconds):
        jobs = {kind: job(kind, seconds) for kind in SET}
        try:
            return {k: (j.communicate(timeout=100)[0], j.returncode) for k, j in jobs.items()}
        finally:
            for j in jobs.values():
                j.kill()

    first = outputs(8)
    for kind, (output, status) in first.items():
        assert "stopped after step" in output, f"{kind}: {output}"
        assert status == SET[kind][1], f"{kind}: {output}"
    assert sorted(queued.read_text().split()) == ["flux-run.sh", "pbs-mpiexec.sh"]
    variables = Path(f"{queued}.variables").read_text()  # the next job goes on in the same folder
    assert variables.startswith(f"RUN={tmp_path / 'pbs-mpiexec'},TRAIN={SLOW},SAVE_AFTER=8,AGAIN=")
    queued.unlink()
    for kind, (output, status) in outputs(1000).items():
        step = int(first[kind][0].split("stopped after step ")[1].split(",")[0])
        assert f"starts at step {step} of 200, 1 ranks" in output, f"{kind}: {output}"
        assert status == 0, f"{kind}: {output}"
    # They were stopped after different steps, mostly.
    assert len({(tmp_path / kind / "done").read_text() for kind in SET}) == 1
    assert not queued.exists()


def test_a_job_that_fails_is_not_queued_again(tmp_path):
    """The script ends with its error, whatever its batch system: by its options of bash."""
    for script in SCRIPTS:
        assert "\nset -euo pipefail\n" in script.read_text(), script.name
    (tmp_path / "mpiexec").write_text("#!/bin/bash\nexit 3\n")
    (tmp_path / "qsub").write_text(f"#!/bin/bash\ntouch {tmp_path}/queued\n")
    for program in ("mpiexec", "qsub"):
        (tmp_path / program).chmod(0o755)
    env = env_of(tmp_path, PBS_O_WORKDIR=str(ROOT), PBS_NODEFILE="/dev/null")
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    assert subprocess.run([BATCH / "pbs-mpiexec.sh"], env=env).returncode == 3
    assert not (tmp_path / "queued").exists()
