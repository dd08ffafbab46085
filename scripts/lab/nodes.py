"""Nodes and links of netlab: network namespaces, a bridge in another one, and their limits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path("/run/netlab")  # a tmpfs of the lab that is up
NETNS = Path("/etc/netns")  # what `ip netns exec` puts over /etc
SWITCH, PREFIX, INTERFACE = "netlab-switch", "netlab-node", "lab0"
QUEUE = 64 << 20  # bytes: a deep switch, where nothing is dropped before TCP's windows are full


class Failed(Exception):
    """What failed, and what the reader can do about it."""


def say(text: str) -> None:
    print(f"netlab: {text}", file=sys.stderr, flush=True)


def call(*command: object) -> str:
    words = [str(c) for c in command]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        text = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        advice = ""
        if "tbf" in words and "kind is unknown" in text:
            advice = "\nThis kernel lacks sch_tbf: without it only --rate none works"
        elif "Unknown device type" in text:
            advice = "\nThis kernel lacks bridge or veth (its modules, CONFIG_BRIDGE, CONFIG_VETH)"
        elif re.search("not permitted|denied|Read-only", text):
            advice = "\nThis kernel or container refuses; a container must be started --privileged"
        raise Failed(f"`{' '.join(words)}`: {text}{advice}")
    return result.stdout


@dataclasses.dataclass
class Lab:
    nodes: int
    rate: int | None  # bits/s, each way of each link
    delay: float  # seconds, one way between two nodes
    stays: bool = True  # made by `up`, not by `run` for itself
    netem: bool = False  # whether the kernel adds that delay

    def __str__(self) -> str:
        speed = "no limit" if self.rate is None else f"{self.rate / 1e6:g} Mbit/s"
        added = "" if self.netem or not self.delay else " (not added)"
        return f"{self.nodes} nodes, {speed}, {self.delay * 1e3:g} ms{added}"

    def names(self) -> list[str]:
        return [f"node{i}" for i in range(self.nodes)]

    @classmethod
    def standing(cls) -> Lab | None:
        """The lab that is up; None if there is none or only a part."""
        try:
            lab = cls(**json.loads((FOLDER / "lab.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return lab if len(namespaces()) == lab.nodes + 1 else None

    def up(self) -> None:
        """Builds the lab. After an error ``down`` removes the part that was built."""
        FOLDER.mkdir()
        call("mount", "-t", "tmpfs", "-o", "mode=755", "netlab", FOLDER)  # holds each /dev/shm
        add_namespace(SWITCH)
        call("ip", "-n", SWITCH, "link", "add", "bridge", "type", "bridge", "mcast_snooping", 0)
        call("ip", "-n", SWITCH, "link", "set", "bridge", "up")
        self.netem = self.delay > 0 and self.can_delay()
        addresses = [(f"10.99.0.{i + 1}", name) for i, name in enumerate(self.names())]
        # torch asks for the names of IPv4 addresses mapped into IPv6, and warns where none is.
        hosts = [f"{a} {name}\n::ffff:{a} {name}.mapped" for a, name in addresses]
        for i, (address, name) in enumerate(addresses):
            namespace, port = f"{PREFIX}{i}", f"port{i}"
            (NETNS / namespace).mkdir(parents=True, exist_ok=True)
            (NETNS / namespace / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
            (NETNS / namespace / "resolv.conf").touch()  # no name server can be reached
            (FOLDER / name).mkdir()
            (FOLDER / name).chmod(0o1777)
            add_namespace(namespace)
            peer = ["peer", "name", INTERFACE, "netns", namespace]
            call("ip", "-n", SWITCH, "link", "add", port, "type", "veth", *peer)
            call("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", INTERFACE)
            self.limit(namespace, port)
            call("ip", "-n", SWITCH, "link", "set", port, "master", "bridge", "up")
            call("ip", "-n", namespace, "link", "set", "lo", "up")
            call("ip", "-n", namespace, "link", "set", INTERFACE, "up")
        (FOLDER / "lab.json").write_text(json.dumps(dataclasses.asdict(self)))  # last: it is whole

    def can_delay(self) -> bool:
        """Whether the kernel has netem. Without it, Failed for a delay of over 0.1 ms."""
        queue = ["-n", SWITCH, "qdisc", "add", "dev", "bridge", "root", "netem", "delay", "1us"]
        with contextlib.suppress(Failed):
            call("tc", *queue)
            call("tc", "-n", SWITCH, "qdisc", "delete", "dev", "bridge", "root")
            return True
        about = "this kernel has no netem (CONFIG_NET_SCH_NETEM), which delays packets"
        if self.delay > 1e-4:
            raise Failed(f"{about}: only --delay 0.1ms or less, and then none is added")
        say(f"{about}: only the lab's own delay is there, about 0.05 ms on an idle machine")
        return False

    def limit(self, namespace: str, port: str) -> None:
        """Limits both directions of a link: from the node, and from the switch to it.

        tbf passes a burst at once, which flatters short messages. It cuts a packet longer than the
        burst into frames, which costs processor time. A burst shorter than what arrives between two
        runs of a late timer costs throughput. So large packets (TSO) of the node are limited to
        0.13 ms of the link's time, 16 KiB at 1 Gbit/s, and the burst to four of them. The switch's
        burst is twice that: two equal buckets in a row would lose twice. netem times each packet.
        """
        if self.rate is not None:
            packet = min(65536, max(2048, int(self.rate / 8 * 0.000131072)))
            burst = max(4 * packet, int(self.rate / 8 * 0.0005))
            call("ip", "-n", namespace, "link", "set", INTERFACE, "gso_max_size", packet)
            tbf = ["root", "tbf", "rate", f"{self.rate}bit", "limit", QUEUE, "burst"]
            call("tc", "-n", namespace, "qdisc", "add", "dev", INTERFACE, *tbf, burst)
        if self.netem:
            queue = ["root", "netem", "limit", 50000, "delay", f"{self.delay * 1e6:g}us"]
            queue += [] if self.rate is None else ["rate", f"{self.rate}bit"]
            call("tc", "-n", SWITCH, "qdisc", "add", "dev", port, *queue)
        elif self.rate is not None:
            call("tc", "-n", SWITCH, "qdisc", "add", "dev", port, *tbf, 2 * burst)

    def counters(self) -> dict[str, dict[str, int]]:
        """Bytes and packets over each node's interface, and what its link's queues dropped.

        A large packet (TSO) counts with one header here; the limits count one per frame.
        """
        links = {}
        for i, name in enumerate(self.names()):
            show = ["-j", "-s", "link", "show", "dev", INTERFACE]
            stats = json.loads(call("ip", "-n", f"{PREFIX}{i}", *show))[0]["stats64"]
            keys = [(d, what) for d in ("tx", "rx") for what in ("bytes", "packets")]
            links[name] = {f"{d}_{what}": stats[d][what] for d, what in keys} | {"dropped": 0}
            for namespace, device in ((f"{PREFIX}{i}", INTERFACE), (SWITCH, f"port{i}")):
                queues = call("tc", "-n", namespace, "-j", "-s", "qdisc", "show", "dev", device)
                links[name]["dropped"] += sum(q.get("drops", 0) for q in json.loads(queues))
        return links


def inside(node: int, command: list[str]) -> list[str]:
    """``command`` wrapped so that it runs in a node, from outside or from another node."""
    name = f"node{node}"
    enter = f"mount --bind {FOLDER}/{name} /dev/shm && echo {name} >/proc/sys/kernel/hostname"
    shell = ["unshare", "--uts", "sh", "-c", f'{enter} && exec "$@"', "netlab"]
    words = ["ip", "netns", "exec", f"{PREFIX}{node}", *shell]
    return [*words, "env", f"NETLAB_NODE={node}", *command]


def add_namespace(name: str) -> None:
    call("ip", "netns", "add", name)
    # Without IPv6: its own chatter would be counted as traffic.
    files = "cd /proc/sys/net/ipv6/conf && tee all/disable_ipv6 default/disable_ipv6"
    call("ip", "netns", "exec", name, "sh", "-c", f"(echo 1 | ({files})) 2>/dev/null || true")


def namespaces() -> list[str]:
    names = [line.split()[0] for line in call("ip", "netns", "list").splitlines() if line.strip()]
    return [n for n in names if n == SWITCH or re.fullmatch(PREFIX + r"\d+", n)]


def pids(namespace: str) -> list[str]:
    return call("ip", "netns", "pids", namespace).split()


def end_processes() -> None:
    """Kills what runs in the nodes: a launcher that was killed leaves its ranks behind."""
    until = time.monotonic() + 10
    for namespace in namespaces():
        while found := pids(namespace):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > until:
                raise Failed(f"processes in {namespace} do not die: {' '.join(found)}")
            time.sleep(0.02)


def down() -> bool:
    """Removes every trace of a lab from this machine. Returns whether there was one."""
    found = bool(namespaces()) or FOLDER.exists()
    end_processes()
    for namespace in namespaces():
        call("ip", "netns", "delete", namespace)  # its links, and the bridge, go with it
    while os.path.ismount(FOLDER):
        call("umount", "--lazy", FOLDER)
    for path in (FOLDER, *NETNS.glob(f"{PREFIX}*")):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        NETNS.rmdir()  # if it is empty
    return found
