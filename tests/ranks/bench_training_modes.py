"""Every mode of ``mpisign bench training`` in one job, as starting one takes seconds.

Arguments: a folder for the results, and the ways of each mode.
"""

from __future__ import annotations

import sys

from mpisign import cli

folder, steps, accuracy, memory = sys.argv[1:]
MODES = {
    "step": ["--ways", steps, "--steps", "2", "--repeat", "3", "--warm-up", "1"],
    "accuracy": ["--ways", accuracy, "--accuracy", "0.6", "--seeds", "2", "--steps", "60"]
    + ["--every", "20", "--lr", "mpi-at-step-signum=3e-3", "--lr", "ddp-fp32=0.05"],
    "memory": ["--ways", memory, "--memory"],
}
for mode, more in MODES.items():
    print(f"mode {mode}", flush=True)
    files = [f"--json={folder}/{mode}.json", f"--plot={folder}/{mode}.png"]
    model = ["--parameters", "5k", "--layers", "2", f"--markdown={folder}/page-{mode}.md"]
    status = cli.main(["bench", "training", *model, *files, *more])
    if status:
        sys.exit(f"{mode}: status {status}")
