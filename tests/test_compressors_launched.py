"""Every compressor again, under the real launcher."""

from __future__ import annotations

import sys

from launchers import mpirun


def test_every_compressor_on_3_ranks():
    mpirun(
        3,
        sys.executable,
        *("-m", "mpi4py", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("tests/ranks/test_every_compressor.py", "tests/ranks/test_gathered.py"),
        timeout=180,
        env={"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
