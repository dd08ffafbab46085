"""Horovod's own tests over our optimizer: ``pytest -p horovod_suite_plugin`` (tests/README.md).

``HOROVOD_SUITE=horovod`` leaves Horovod's optimizer where it is, to compare with; any other value
is the compression that ours gets, default "signum".
"""

from __future__ import annotations

import os

import horovod.torch as hvd
import torch

_WANTED = os.environ.get("HOROVOD_SUITE", "signum")
_CALLS: list[str] = []


def _ours(*args, **kwargs):
    from mpisign.horovod import DistributedOptimizer

    _CALLS.append(os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1])
    kwargs.setdefault("compression", _WANTED)
    return DistributedOptimizer(*args, **kwargs)


def pytest_configure(config):
    # It takes matrices only; the tests hand every optimizer of torch biases too.
    muon = getattr(torch.optim, "Muon", None)
    if muon is not None:
        muon.__module__ = "hidden"
    if _WANTED != "horovod":
        hvd.DistributedOptimizer = _ours


def pytest_terminal_summary(terminalreporter):
    what = f"{len(_CALLS)} optimizers of ours" if _WANTED != "horovod" else "Horovod's optimizer"
    terminalreporter.write_line(f"over {what}, compression {_WANTED}")
