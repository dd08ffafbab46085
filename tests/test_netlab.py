"""scripts/netlab: nodes, links, bytes, launchers, and complete removal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launchers import RANKS, ROOT, environment, find, run, with_tests

NETLAB = [sys.executable, ROOT / "scripts" / "netlab"]
LINK = ["--nodes", "2", "--rate", "1gbit", "--delay", "0.1ms"]

# Two processes, node0 the receiver. Bytes and seconds until the last one is acknowledged.
TALK = """
import os, socket, sys, time
if os.environ["NETLAB_NODE"] == "0":
    peer, _ = socket.create_server(("", 9000)).accept()
    while length := int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "little"):
        while length:
            length -= len(peer.recv(min(length, 1 << 20)))
        peer.sendall(b".")
    sys.exit()
for _ in range(100):
    try:
        peer = socket.create_connection(("node0", 9000))
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for length in 30 * [1] + 5 * [400_000] + 3 * [15_000_000]:
    data = length.to_bytes(8, "little") + bytes(length)
    time.sleep(0.01)
    start = time.perf_counter()
    peer.sendall(data)
    peer.recv(1)
    print("took", length, time.perf_counter() - start)
"""

MPI = """
import os, socket
import numpy as np
from mpi4py import MPI
comm = MPI.COMM_WORLD
x = np.ones(1_000_000, np.float32)
comm.Allreduce(MPI.IN_PLACE, x)
near = comm.Split_type(MPI.COMM_TYPE_SHARED).size
name = socket.gethostname()
line = f"rank {comm.rank} {comm.size} {near} {name} {os.environ['NETLAB_NODE']} {x[0]}"
os.write(1, f"{line}\\n".encode())  # in one piece
"""

TORCH = """
import os, socket
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(1_000_000)
dist.all_reduce(x)
name = socket.gethostname()
line = f"rank {dist.get_rank()} 2 1 {name} {os.environ['NETLAB_NODE']} {x[0].item()}"
os.write(1, f"{line}\\n".encode())
dist.destroy_process_group()
"""

HOROVOD = """
import os, socket
import torch
import horovod.torch as hvd
hvd.init()
assert hvd.gloo_enabled()
x = hvd.allreduce(torch.ones(1_000_000), op=hvd.Sum)
name, node = socket.gethostname(), os.environ["NETLAB_NODE"]
line = f"rank {hvd.rank()} {hvd.size()} {hvd.local_size()} {name} {node} {x[0].item()}"
os.write(1, f"{line}\\n".encode())
"""


def netlab(*words, **kwargs):
    return run([*NETLAB, *words], **kwargs)


def traces():
    """Whatever a lab has outside of its nodes."""
    found = [p for p in ("/run/netlab", "/etc/netns") if Path(p).exists()]
    found += [p.name for p in Path("/run/netns").glob("netlab-*")]
    found += {"lab0", "bridge", "port0"} & set(os.listdir("/sys/class/net"))
    return found + [
        line for line in Path("/proc/mounts").read_text().splitlines() if "netlab" in line
    ]


def ranks(output):
    return sorted(re.findall(r"rank (\d) (\d) (\d) (\w+) (\d) (\S+)", output))


def expected(nodes):
    n = str(nodes)
    return [(str(i), n, "1", f"node{i}", str(i), f"{nodes}.0") for i in range(nodes)]


@pytest.fixture(scope="module", autouse=True)
def machine():
    """Skips where no lab can be made, or where somebody's is up."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only Linux's root can make network namespaces")
    if not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("iproute2 is missing")
    tried = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"this kernel or container refuses namespaces: {tried.stderr.decode().strip()}")
    if netlab("status", check=False).returncode == 0:
        pytest.skip("a lab is up, which the tests do not take down")
    yield
    netlab("down")
    assert traces() == []


@pytest.fixture(scope="module")
def lab(machine):
    netlab("up", *LINK, "--wait", "60")
    yield
    netlab("down")


def test_nodes(lab):
    """Each with its own name, address, environment and /dev/shm; the machine's stay as they are."""
    before = socket.gethostname(), Path("/etc/hosts").read_text()
    script = (
        'echo "$(hostname) $NETLAB $NETLAB_NODE/$NETLAB_NODES $NETLAB_RATE $NETLAB_INTERFACE" '
        '"$(getent hosts node1) $(ls /dev/shm) $(grep -c lab0 /proc/net/dev)"; touch /dev/shm/x'
    )
    lines = netlab("run", "--quiet", "--", "sh", "-c", script).stdout.splitlines()
    assert sorted(" ".join(line.split()) for line in lines) == [
        f"node{i} 1 {i}/2 1000000000 lab0 10.99.0.2 node1 1" for i in range(2)
    ]
    assert (socket.gethostname(), Path("/etc/hosts").read_text()) == before
    assert "2 nodes, 1000 Mbit/s, 0.1 ms" in netlab("up", *LINK).stdout  # again: as it is
    assert "node1" in netlab("status").stdout


def test_links(lab, tmp_path):
    """No faster than their rate, also in short; what is counted is what was sent."""
    netlab_json = tmp_path / "bytes.json"
    talk = [sys.executable, "-c", TALK]
    output = netlab("run", "--json", netlab_json, "--", *talk).stdout
    took: dict[int, list[float]] = {}
    for length, seconds in re.findall(r"took (\d+) (\S+)", output):
        took.setdefault(int(length), []).append(float(seconds))
    best = {length: min(seconds) for length, seconds in took.items()}
    print({length: f"{1e3 * seconds:.3f} ms" for length, seconds in best.items()})
    assert best[1] < 5e-3, "round trip"
    assert best[400_000] > (400_000 - 70_000) / 125e6, "a burst of at most 64 KiB goes at once"
    rate = 8 * 15e6 / best[15_000_000]
    assert 300e6 < rate < 975e6, f"{rate / 1e6:.0f} Mbit/s of payload (957 can be had)"
    sent = sum(length * len(seconds) for length, seconds in took.items())
    links = json.loads(netlab_json.read_text())["links"]
    print(sent, links)
    for count in (links["node1"]["tx_bytes"], links["node0"]["rx_bytes"]):
        assert sent < count < 1.06 * sent
    assert links["node0"]["tx_bytes"] < 0.05 * sent
    assert links["node0"]["dropped"] == links["node1"]["dropped"] == 0


@pytest.mark.mpi
def test_mpirun(lab, tmp_path):
    find("mpirun")
    bytes_json = tmp_path / "bytes.json"
    python = [sys.executable, "-c", MPI]
    output = netlab("run", "--json", bytes_json, "--", "mpirun", *python).stdout
    assert ranks(output) == expected(2), output
    for link in json.loads(bytes_json.read_text())["links"].values():
        assert 4e6 < link["tx_bytes"] < 4.5e6  # over the wire, not through memory
    output = netlab("run", "--ranks-per-node", "2", "--", "mpirun", *python).stdout
    assert [r[:5] for r in ranks(output)] == [
        (str(i), "4", "2", f"node{i // 2}", str(i // 2)) for i in range(4)
    ]


def test_torchrun(lab, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "rank.py").write_text(TORCH)
    output = netlab("run", "--", "torchrun", tmp_path / "rank.py").stdout
    assert ranks(output) == expected(2), output
    wrong = netlab("run", "--", "torchrun", "--nnodes=3", "x.py", check=False)
    assert wrong.returncode == 1 and "--nnodes: netlab sets this" in wrong.stdout


@pytest.mark.horovod
def test_horovodrun(lab):
    pytest.importorskip("horovod.torch")
    command = ["horovodrun", "--gloo", sys.executable, "-c", HOROVOD]
    assert ranks(output := netlab("run", "--", *command).stdout) == expected(2), output
    wrong = netlab("run", "--", "horovodrun", "--bloo", "x", check=False)
    assert wrong.returncode == 1 and "does not take these options" in wrong.stdout


def test_errors(lab):
    for words, text in [
        (["up", "--nodes", "3"], "already up with 2 nodes"),
        (["run", "--rate", "10mbit", "--", "true"], "already up with 2 nodes"),
        (["run", "--on", "2", "--", "true"], "nodes are 0 to 1"),
        (["run", "--", "no-such-program"], "no such program"),
        (["up", "--rate", "fast"], "expected e.g. 1gbit"),
    ]:
        wrong = netlab(*words, check=False)
        assert wrong.returncode and text in wrong.stdout, wrong.stdout
        assert "Traceback" not in wrong.stdout
    assert netlab("run", "--", "sh", "-c", "exit $((NETLAB_NODE * 7))", check=False).returncode == 7
    user = run(["unshare", "--user", *NETLAB, "up"], check=False)
    assert user.returncode == 1 and "only root" in user.stdout


@pytest.mark.mpi
def test_one_shot():
    """Four nodes for one command, which ends the lab's life whatever its status."""
    netlab("down")
    shot = ["run", "--nodes", "4", "--rate", "1gbit", "--"]
    output = netlab(*shot, find("mpirun"), sys.executable, "-c", MPI).stdout
    assert ranks(output) == expected(4), output
    assert traces() == []
    assert netlab(*shot, "false", check=False).returncode == 1
    assert traces() == []
    wrong = netlab("run", "--", "true", check=False)
    assert wrong.returncode == 1 and "no lab is up" in wrong.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(end):
    """Ctrl-C, kill, and kill -9 with `down` after it, while all ranks are busy."""
    netlab("down")
    mark = f"netlab-test-{end.name}"
    busy = [
        sys.executable,
        "-c",
        f"import mpi4py.MPI, os, time; os.write(1, b'{mark}\\n'); time.sleep(99)",
    ]
    shot = [*NETLAB, "run", "--nodes", "2", "--rate", "1gbit", "--", find("mpirun"), *busy]
    process = subprocess.Popen(
        [str(word) for word in shot],
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
        start_new_session=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == 2 * [f"{mark}\n"]
    second = netlab("up", check=False)
    assert second.returncode == 1 and f"in use by process {process.pid} " in second.stdout
    if end == signal.SIGINT:
        os.killpg(process.pid, end)  # a terminal's Ctrl-C reaches every process
        assert process.wait(30) == 130
    else:
        process.send_signal(end)
        assert process.wait(30) == (143 if end == signal.SIGTERM else -9)
    if end == signal.SIGKILL:
        assert traces() != [] and alive(mark)
        assert "down" in netlab("down").stdout
    assert traces() == []
    assert not alive(mark)


@pytest.mark.mpi
@pytest.mark.slow
def test_bytes_at_the_links():
    """Of 8 nodes of 2 ranks, against those that vote_traffic says."""
    pytest.importorskip("mpi4py.MPI", reason="not installed: run scripts/setup")
    netlab("down")
    lab = ["--nodes", "8", "--ranks-per-node", "2", "--rate", "100mbit", "--wait", "60"]
    program = [sys.executable, "-m", "mpi4py", RANKS / "netlab_traffic.py"]
    ranks = [find("mpirun"), "--oversubscribe", "--bind-to", "none", *program]
    output = run([*NETLAB, "run", *lab, "--", *ranks], env=with_tests(), timeout=170).stdout
    print(output)
    assert output.count(" agrees") == 16, output


def alive(mark):
    """The processes with this word in their command, zombies apart."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if mark.encode() in path.read_bytes() else []
    return found
