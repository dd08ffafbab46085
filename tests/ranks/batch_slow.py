"""docs/examples/batch_training.py, slow until it has saved, so that a signal meets it at work.

The first arguments are the example's. Run by the batch scripts in tests/test_batch.py.
"""

from __future__ import annotations

import runpy
import signal
import sys
import time
from pathlib import Path

# A signal that comes before the example has its handler must wait for that.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

import torch  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

import mpisign  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "batch_training.py"
fast = bool(mpisign.checkpoint.complete_steps(sys.argv[1]))


def slow(*_: object) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    if not fast:
        time.sleep(0.5)


torch.set_num_threads(1)
register_optimizer_step_post_hook(slow)
sys.argv = [str(EXAMPLE), sys.argv[1], "--steps", "200", "--every", "100000"]
runpy.run_path(str(EXAMPLE), run_name="__main__")
