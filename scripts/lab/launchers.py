"""How launchers start ranks over netlab's nodes: environment, options, and an ssh."""

from __future__ import annotations

import getopt
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from lab.nodes import FOLDER, INTERFACE, NETNS, PREFIX, Failed, Lab, call, inside

ROOT = Path(__file__).resolve().parents[2]
BIN = FOLDER / "bin"

# horovodrun gives node0's environment to all ranks; each sets its own node.
RANK = """\
#!/bin/sh
read -r name </proc/sys/kernel/hostname
export NETLAB_NODE="${name#node}"
exec "$@"
"""


def environment(lab: Lab, ranks_per_node: int) -> dict[str, str]:
    """The environment of every process in the lab. Writes the files that it names."""
    netlab = shlex.join([sys.executable, str(ROOT / "scripts" / "netlab")])
    BIN.mkdir(exist_ok=True)
    for name, text in (("ssh", f'#!/bin/sh\nexec {netlab} ssh "$@"\n'), ("rank", RANK)):
        (BIN / name).write_text(text)
        (BIN / name).chmod(0o755)
    hosts = FOLDER / "hosts"
    hosts.write_text("".join(f"{n} slots={ranks_per_node}\n" for n in lab.names()))

    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    bins = [BIN] if "VIRTUAL_ENV" in env else [BIN, ROOT / ".venv" / "bin"]
    env["PATH"] = os.pathsep.join([*map(str, bins), env.get("PATH", os.defpath)])
    threads = (os.cpu_count() or 1) // (lab.nodes * ranks_per_node)  # each node sees all of them
    env.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    env.setdefault("OMP_WAIT_POLICY", "passive")
    interfaces = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    env |= dict.fromkeys((*interfaces, "HOROVOD_GLOO_IFACE", "NETLAB_INTERFACE"), INTERFACE)
    env |= {
        "NETLAB": "1",
        "NETLAB_NODES": str(lab.nodes),
        "NETLAB_RATE": "none" if lab.rate is None else str(lab.rate),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    # In the environment, so that options of the command line still come first.
    mca = {
        "plm_rsh_agent": BIN / "ssh",
        "orte_default_hostfile": hosts,
        "orte_tmpdir_base": FOLDER,
        "oob_tcp_if_include": INTERFACE,
        "btl_tcp_if_include": INTERFACE,
        "pml": "ob1",
        "btl": "tcp,self" if ranks_per_node == 1 else "tcp,self,vader",
        # Each node would bind its first rank to the same core, where it spins.
        "hwloc_base_binding_policy": "none",
        "mpi_yield_when_idle": 1,
    }
    return env | {f"OMPI_MCA_{key}": str(value) for key, value in mca.items()}


def commands(
    lab: Lab, command: list[str], ranks_per_node: int, env: dict[str, str]
) -> list[tuple[int, list[str]]]:
    """(node, command) pairs that together start ``command`` over the nodes."""
    launcher = Path(command[0]).name
    program = shutil.which(command[0], path=env["PATH"])
    if program is None:
        raise Failed(f"{command[0]}: no such program; mpirun and others are made by scripts/setup")
    if launcher in ("mpirun", "mpiexec", "orterun"):
        version = call(program, "--version").splitlines()[0]
        if not re.search(r"\(Open(RTE| MPI)\) 4\.", version):
            raise Failed(f"{program} is {version!r}; netlab starts that of Open MPI 4")
        return [(0, [program, *command[1:]])]
    if launcher == "torchrun":
        given = {w.split("=")[0].replace("_", "-") for w in command[1:] if w.startswith("--")}
        ours = "--(nnodes|nproc-per-node|node-rank|standalone|(master|rdzv)-.*)"
        if taken := sorted(w for w in given if re.fullmatch(ours, w)):
            raise Failed(f"torchrun {' '.join(taken)}: netlab sets this (--ranks-per-node)")
        words = [program, f"--nnodes={lab.nodes}", f"--nproc-per-node={ranks_per_node}"]
        words += ["--master-addr=node0", "--master-port=29500"]
        return [(i, [*words, f"--node-rank={i}", *command[1:]]) for i in range(lab.nodes)]
    if launcher == "horovodrun":
        words = ["-np", str(lab.nodes * ranks_per_node), "--network-interfaces", INTERFACE]
        words += ["-H", ",".join(f"{name}:{ranks_per_node}" for name in lab.names())]
        words += command[1:]
        at = len(words) - horovod_command(program, words)
        return [(0, [program, *words[:at], str(BIN / "rank"), *words[at:]])]
    return [(i, [program, *command[1:]]) for i in range(lab.nodes)]


def horovod_command(program: str, words: list[str]) -> int:
    """How many of horovodrun's words are the ranks' command, by Horovod's own parser."""
    python = Path(program).read_text().splitlines()[0].removeprefix("#!").strip()
    code = (
        "import sys; from horovod.runner.launch import parse_args; "
        "sys.argv[0] = 'horovodrun'; print(len(parse_args().command))"
    )
    parsed = subprocess.run([python, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    if parsed.returncode:
        raise Failed("horovodrun does not take these options: see above")
    if parsed.stdout.split()[-1] == "0":
        raise Failed("horovodrun: which command?")
    return int(parsed.stdout.split()[-1])


def ssh(words: list[str]) -> None:
    """Executes COMMAND on a node, for launchers that call ``ssh [options] HOST COMMAND``."""
    flags = "46AaCfGgKkMNnqsTtVvXxYyB:b:c:D:E:e:F:I:i:J:L:l:m:O:o:p:Q:R:S:W:w:"
    _, words = getopt.getopt(words, flags)
    host, _, command = words[0] if words else "", *getopt.getopt(words[1:], flags)
    node = host.removeprefix("node")
    if not node.isdecimal() or not (NETNS / f"{PREFIX}{node}").is_dir():
        raise Failed(f"ssh {host}: the lab has no such node")
    entered = inside(int(node), ["sh", "-c", " ".join(command)])
    os.execvp(entered[0], entered)
