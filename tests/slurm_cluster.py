"""A Slurm of one machine for tests: own configuration, ports, key and socket, in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
#: cred_expire is also how long a job that was queued again waits; Slurm's default is 120 s.
CONFIGURATION = """
ClusterName=mpisign
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
KillWait=2
MinJobAge=600
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why there is no Slurm here; "" if there is one."""
    programs = "munged", "slurmctld", "slurmd", "sbatch", "scontrol"
    lacking = [p for p in programs if shutil.which(p, path=PATH) is None]
    return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge" if lacking else ""


class Cluster:
    """Started and ended by ``with``. ``environment``: for commands such as sbatch."""

    def __init__(self, folder: Path, cpus: int = 16) -> None:
        self.folder, self.cpus = folder, cpus
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        for part in ("state", "spool"):
            (self.folder / part).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [s.getsockname()[1] for s in held]
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            folder=self.folder, host=host, ports=ports, user=getpass.getuser(), cpus=self.cpus
        )
        (self.folder / "slurm.conf").write_text(text)
        for s in held:
            s.close()
        try:
            files = {"key-file": key, "socket": self.folder / "munge.sock"}
            files |= {f"{n}-file": self.folder / f"munged.{n}" for n in ("pid", "log", "seed")}
            options = [f"--{name}={path}" for name, path in files.items()]
            self._start("munged", "--foreground", "--force", *options)
            self._until(files["socket"].exists, "munged does not start")
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D")
            self._until(lambda: self("sinfo", "-h", "-o", "%T") == "idle", "no node comes up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # whatever it was that failed
            self("scancel", *self("squeue", "-h", "-o", "%A").split())
            self._until(lambda: not self("squeue", "-h", "-o", "%A"), "", seconds=10)
        for daemon in reversed(self._daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()

    def __call__(self, *command: str, check: bool = True, **extra: str) -> str:
        """The output of a command of Slurm's."""
        env = {**os.environ, **self.environment, **extra}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return (done.stdout if check else done.stdout + done.stderr).strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..., and how often it was queued again."""
        shown = self("scontrol", "show", "job", "-o", job).split()
        found = dict(word.split("=", 1) for word in shown if "=" in word)
        return f"{found['JobState']} {found['Restarts']}"

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "w") as out:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def _until(self, holds, otherwise: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                if holds():
                    return
            dead = [d.args[0] for d in self._daemons if d.poll() is not None]
            if dead or time.monotonic() > end:
                logs = [p.read_text()[-600:] for p in sorted(self.folder.glob("*.out"))]
                raise RuntimeError(f"{otherwise} {dead}: " + "\n".join(logs))
            time.sleep(0.2)
