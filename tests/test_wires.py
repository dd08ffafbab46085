"""tests/ranks/test_transports.py over every wire that runs here, by its own launcher."""

from __future__ import annotations

import pytest
from launchers import PYTEST, RANKS
from wires import WIRES, start

FILES = [RANKS / "test_transports.py", RANKS / "test_any_wire.py"]
#: Ranks that are tested every time; the others with MPISIGN_TEST_ALL=1.
USUAL = {"mpi": (4,), "torch": (3,), "horovod-mpi": (2,), "horovod-gloo": (2,)}


@pytest.mark.parametrize(
    "wire, n",
    [
        pytest.param(wire, n, marks=[] if n in USUAL[wire] else pytest.mark.many)
        for wire in WIRES
        for n in (1, 2, 3, 4, 5)
    ],
)
def test_the_suite_over(wire, n, tmp_path):
    output = start(wire, n, [*PYTEST, *FILES], tmp_path)
    assert output.count(" passed") == n, output


@pytest.mark.slow
@pytest.mark.parametrize("wire", [wire for wire in WIRES if wire != "mpi"])
def test_a_rank_that_gives_up_can_leave(wire, tmp_path):
    """Without the ranks that it waited for; over MPI it ends the whole job."""
    kind = wire.partition("-")[0]
    output = start(wire, 2, [RANKS / "leaves_early.py", kind, str(tmp_path)], tmp_path)
    assert "rank 0 has ended" in output, output
