"""How ``mpisign train`` ends early: bugs, killed ranks, Ctrl-C. Nothing may hang or stay behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launchers import ROOT, environment, run
from test_train import ENV, TRAIN, gloo, mpirun

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("launcher", [mpirun, gloo])
def test_a_bug_on_one_rank_ends_all(launcher):
    start = time.monotonic()
    script = [sys.executable, "tests/ranks/train_raises.py", "--steps", "1000000"]
    done = run([*launcher(2), *script], timeout=60, env=ENV, check=False)
    assert done.returncode != 0 and time.monotonic() - start < 50
    assert done.stdout.count("ZeroDivisionError: a bug on one rank") == 1, done.stdout
    assert "mpisign, rank 1: Traceback" in done.stdout


class Job:
    """A training that would never end, found again by its seed among all processes."""

    def __init__(self, launcher, folder, *more):
        self.mark = str(int.from_bytes(os.urandom(6), "big"))
        self.path = folder / "output"
        options = ["--steps", "100000000", "--seed", self.mark, *more]
        self.process = subprocess.Popen(
            [*launcher, *TRAIN, *options],
            cwd=ROOT,
            env=environment(**ENV),
            stdin=subprocess.DEVNULL,
            stdout=self.path.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.wait_for(lambda: "step     0 of" in self.output(), 90, "training did not begin")
        time.sleep(1)

    def output(self):
        return self.path.read_text(errors="replace")

    def takes_steps(self):
        """Past what torch imports in the first one; progress has a line every 5 s."""
        taken = re.compile(r"step +[1-9]\d* of")
        self.wait_for(lambda: taken.search(self.output()), 90, "no steps were taken")

    def wait_for(self, condition, seconds, story):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                self.kill()
                pytest.fail(f"{story} within {seconds} s\n{self.output()}")
            time.sleep(0.1)

    def ranks(self):
        """{pid: rank} of the processes with this job's mark that are ranks, the launcher's too."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "cmdline").read_bytes():
                    found[int(entry.name)] = self._rank(entry)
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found

    @staticmethod
    def _rank(entry):
        if b"sh" == Path(os.readlink(entry / "exe")).name.encode()[-2:]:
            return None
        variables = (entry / "environ").read_bytes().split(b"\0")
        for name in (b"OMPI_COMM_WORLD_RANK=", b"HOROVOD_RANK="):
            for variable in variables:
                if variable.startswith(name):
                    return int(variable[len(name) :])
        return None

    def kill(self):
        for pid in {*self.ranks(), self.process.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def ends(self):
        """The job is over within 30 s, and nothing of it is left."""
        self.wait_for(lambda: self.process.poll() is not None, 30, "the launcher did not end")
        self.wait_for(lambda: not self.ranks(), 5, "processes were left behind")
        assert self.process.returncode != 0
        return self.output()


@pytest.mark.parametrize("launcher", [mpirun, gloo])
def test_killing_one_rank_ends_the_others(launcher, tmp_path):
    """Without a rank the others' collectives would wait for ever."""
    job = Job(launcher(2), tmp_path)
    victim = next(pid for pid, rank in job.ranks().items() if rank == 1)
    os.kill(victim, signal.SIGKILL)
    output = job.ends()
    said = "exited on signal 9" if launcher is mpirun else "exit with status code 137"
    assert said in output


@pytest.mark.parametrize("launcher", [mpirun, gloo])
def test_interrupting_the_launcher_leaves_nothing(launcher, tmp_path):
    job = Job(launcher(2), tmp_path)
    job.process.send_signal(signal.SIGINT)
    output = job.ends()
    assert output.count("mpisign: ") <= 1
    assert "KeyboardInterrupt" not in output
    assert "mpisign, rank" not in output


def told(path, name):
    """What the JSON has of a run that a signal ended: the first way, and where it stopped."""
    result = json.loads(path.read_text())
    (way,), stopped = result["ways"], result["stopped"]
    assert stopped["signal"] == name and stopped["way"] == way["way"] == "mpi-vote"
    assert stopped["steps"] == 100000000 and 0 < stopped["step"] == way["steps"] < 100000000
    assert way["curve"][-1]["step"] == way["steps"] and way["identical"]
    return stopped["step"]


def test_interrupting_one_process(tmp_path):
    path = tmp_path / "result.json"
    job = Job([], tmp_path, "--ways", "mpi-vote", "--json", path)
    assert "mpirun -n 4 mpisign train" in job.output()  # the hint for one rank alone
    job.takes_steps()
    job.process.send_signal(signal.SIGINT)
    output = job.ends()
    step = told(path, "SIGINT")
    assert output.count(f"mpisign: interrupted: stopped at step {step} of 100000000") == 1, output
    assert job.process.returncode == 130


def test_one_rank_of_two_is_asked_to_stop(tmp_path):
    """As ``scancel --signal=USR1`` may reach ranks between different steps."""
    path = tmp_path / "result.json"
    job = Job(mpirun(2), tmp_path, "--ways", "mpi-vote", "--json", path)
    job.takes_steps()
    os.kill(next(pid for pid, rank in job.ranks().items() if rank == 1), signal.SIGUSR1)
    output = job.ends()
    assert path.exists(), output
    step = told(path, "SIGUSR1")
    assert output.count(f"mpisign: SIGUSR1: stopped at step {step} of 100000000") == 1, output
    assert job.process.returncode == 128 + signal.SIGUSR1
    assert "of one rank" not in output
