"""Ranks of Lightning, Accelerate and Trainer: frameworks.py MODULE [MODULE ...].

``MODULE``: frameworks_lightning, frameworks_accelerate, frameworks_trainer. Each takes seconds to
import, so it is imported once, and ranks are forked with the environment that torchrun gives them.
(Real torchruns: test_examples.py and the elastic job.)
"""

from __future__ import annotations

import doctest
import importlib
import os
import signal
import socket
import sys
import time
import traceback

QUIET = {
    "ACCELERATE_USE_CPU": "true",
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MPISIGN_TIMEOUT": "60",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(function, rank, size, port):
    """The life of a forked rank."""
    code = 1
    try:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        here |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        here |= {"TORCHELASTIC_RUN_ID": "forked", "TORCHELASTIC_RESTART_COUNT": 0}
        os.environ.update({k: str(v) for k, v in here.items()} if size else {})
        function()
        if size:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def on_ranks(function, size, seconds=200.0):
    """Calls ``function`` on ``size`` ranks (0: in one process that is none); exits if one fails."""
    port, began = _port(), time.monotonic()
    sys.stdout.flush()
    left = set()
    for rank in range(max(size, 1)):
        pid = os.fork()
        if pid == 0:
            _rank(function, rank, size, port)
        left.add(pid)
    failed = False
    while left and not failed:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                failed = failed or status != 0
        failed = failed or time.monotonic() - began > seconds
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if failed:
        sys.exit(f"{function.__module__}.{function.__name__} on {size} ranks failed")
    print(f"{function.__module__}.{function.__name__} on {size} ranks: passed", flush=True)


def documentation(module):
    """The checks and examples of test_public_docs.py for a module that is slow to import."""

    def check():
        import test_public_docs

        test_public_docs.PUBLIC[:] = [module]
        test_public_docs.test_public_names_are_documented()
        ((name, public),) = test_public_docs.public()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        home = sys.modules[module]
        for test in doctest.DocTestFinder().find(public, name, home, globs=dict(vars(home))):
            runner.run(test)
        assert runner.tries and not runner.failures

    check.__module__, check.__name__ = module, "documentation"
    on_ranks(check, 0)


if __name__ == "__main__":
    os.environ.update(QUIET)
    importlib.import_module("torch._dynamo")  # else each rank does, for its optimizer
    for name in sys.argv[1:]:
        importlib.import_module(name).main()
