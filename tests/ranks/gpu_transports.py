"""tests/ranks/test_transports.py over the wires for device memory, the device played.

MPISIGN_TEST_WIRE: the host wire below, as there. MPISIGN_TEST_ON_IT: staged or nccl.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import test_transports as suite
from late_device import PromptDevice, on_device
from test_transports import *  # noqa: F403

NCCL = os.environ["MPISIGN_TEST_ON_IT"] == "nccl"
_of_host, _content, _blank = suite.Launched._make, suite.content, suite.blank


def _make(self):
    wire = _of_host(self)
    if NCCL:
        import nccl_on_host

        from mpisign.transports.nccl import NCCLTransport

        return NCCLTransport(wire, nccl=nccl_on_host, device=nccl_on_host.HostDevice())
    from mpisign.transports.staged import StagedTransport

    return StagedTransport(wire, PromptDevice())


suite.Launched._make = _make
suite.content = lambda *args: on_device(_content(*args))
suite.blank = lambda length: on_device(_blank(length))

if NCCL:  # which neither checks sizes nor tells them: the headers of a vote agree on them before
    del test_a_message_of_another_size_is_an_error_that_names_its_rank  # noqa: F821
    del test_a_row_of_another_size_is_an_error_that_names_its_rank  # noqa: F821


@pytest.mark.parametrize("length", [0, 1, 255, 100_003])
@pytest.mark.parametrize("inside", [False, True])
def test_allgather(ranks, length, inside):
    """Into rows of one array; those of different lengths go as parts do."""

    def body(wire):
        rows = on_device(np.zeros((wire.size, length), dtype=np.uint8))
        send = suite.content(length, wire.rank)
        if inside:
            rows[wire.rank][...] = send
            send = rows[wire.rank]
        assert wire.start_allgather(send, rows, 5).wait(suite.LONG)
        for r, row in enumerate(rows):
            assert np.array_equal(row, suite.content(length, r))
        rows = [suite.blank(length + 3 * r) for r in range(wire.size)]
        send = suite.content(length + 3 * wire.rank, wire.rank)
        assert wire.start_allgather(send, rows, 5).wait(suite.LONG)
        for r, row in enumerate(rows):
            assert np.array_equal(row, suite.content(length + 3 * r, r))

    ranks(body)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_allreduce_sums_in_place(ranks, dtype):
    def body(wire):
        values = on_device(np.arange(10_001, dtype=dtype) + wire.rank)
        assert wire.start_allreduce(values, 6).wait(suite.LONG)
        expected = np.arange(10_001) * wire.size + sum(range(wire.size))
        assert values.dtype == dtype and np.array_equal(values, expected)

    ranks(body)


def test_the_wire_is_the_one_that_was_asked_for(ranks):
    def body(wire):
        assert (wire.device, wire.ordered) == ("cuda", NCCL or wire.wire.ordered)
        assert wire.name == "nccl" if NCCL else wire.name.endswith(", staged")

    ranks(body)


if suite.WIRE == "threads":
    pytest.skip("started by tests/test_gpu_wires.py", allow_module_level=True)
