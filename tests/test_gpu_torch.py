"""Device memory over torch.distributed: torch's groups on the CPU, with Gloo in NCCL's place."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch_on_host
from launchers import ONE_THREAD, RANKS, find, run

from mpisign.backend.cuda import launch, once_per_node
from mpisign.collectives import auto
from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.costs import Costs
from mpisign.collectives.hierarchy import grouped, hierarchy_of
from mpisign.collectives.vote_task import VoteTask
from mpisign.errors import WireError
from mpisign.transports.torch_device import TorchDeviceTransport


@pytest.mark.parametrize(
    "n", [pytest.param(2, marks=pytest.mark.many), 3, pytest.param(4, marks=pytest.mark.many)]
)
def test_planes_of_devices_over_a_group_of_our_own(n):
    env = {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}
    command = [find("torchrun"), "--standalone", "--nproc-per-node", n, RANKS / "gpu_torch.py"]
    output = run(command, env=env).stdout
    assert output.count(" checks passed") == n and output.count(": survived") == n - 1, output


def test_one_process_of_a_node_compiles_at_a_time(monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(once_per_node.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    held = []

    def is_locked():
        (lock,) = tmp_path.iterdir()
        with lock.open() as file:  # another open file, as another process has
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    class Module:
        def __init__(self, **_):
            pass

        def get_function(self, name):
            held.append(is_locked())
            return name

    monkeypatch.setattr(launch, "cupy", lambda: SimpleNamespace(RawModule=Module))
    launch._module.cache_clear(), launch._function.cache_clear()
    try:
        assert launch._function("pack", "some_kernel") == "some_kernel"
    finally:
        launch._module.cache_clear(), launch._function.cache_clear()
    assert held == [True] and not is_locked()
    # A second one waits for the first, and for no other file's.
    order, inside = [], threading.Event()

    def second():
        with once_per_node.one_at_a_time("vote"):
            order.append("second")

    with once_per_node.one_at_a_time("vote"), once_per_node.one_at_a_time("pack"):
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_auto_counts_what_the_wire_for_device_memory_costs():
    """A host wire whose messages cost nothing, a device's whose messages cost more than bytes."""
    hierarchy = hierarchy_of((grouped(range(8)),))
    by_bytes, by_messages = Costs(0, 0, 0, 1e-9), Costs(0, 0, 1e-3, 1e-12, 0, 1e-3)
    wire = SimpleNamespace(message=4 << 20)
    engine = SimpleNamespace(
        costs=by_bytes, device_costs=by_messages, hierarchy=hierarchy, transport=wire,
        device_transport=wire,
    )  # fmt: skip
    task = VoteTask(1 << 20, 1, "positive", 0, 0)
    assert auto._auto(engine, 8, task) is alltoall_vote
    task.like = object()
    assert auto._auto(engine, 8, task) is allgather_vote
    engine.costs, engine.device_costs = by_messages, by_bytes
    assert auto._auto(engine, 8, task) is alltoall_vote


class Unended:
    """NCCL's Work of a collective that does not end; ``wait`` has a stream wait, not the host."""

    def __init__(self):
        self.waits = 0

    def is_completed(self):
        return False

    def wait(self, timeout=None):
        self.waits += 1
        return True


def test_the_host_waits_for_no_exchange_and_notices_one_that_does_not_end():
    streams = torch_on_host.HostStreams()
    streams.waits = True
    work, ended = Unended(), []
    group = SimpleNamespace(
        alltoall_base=lambda *_: work,
        _allgather_base=lambda *_: work,
        abort=lambda: ended.append(1),
    )
    control = SimpleNamespace(rank=0, size=2)
    wire = TorchDeviceTransport(control, lambda: group, timeout=0.2, streams=streams)
    wire._group = group
    part, room = torch.zeros(8, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    pending = wire.start_exchange([(1, part)], [(1, room)], 0)
    assert work.waits == 0  # a later chunk is packed meanwhile
    assert pending.done() and pending.done() and work.waits == 1
    later = wire.start_exchange([(1, part)], [(1, room)], 0)
    time.sleep(0.25)
    with pytest.raises(WireError, match="took over 0.2 s"):
        wire.start_exchange([(1, part)], [(1, room)], 0)
    assert ended == [1]
    with pytest.raises(WireError, match="has ended: an exchange took over"):
        later.done()
