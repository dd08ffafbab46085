"""Every promise over every front end that this launcher's ranks can use, in one job.

    torchrun --nproc-per-node 2 promises.py torchrun FILE [NAME or NAME-FRONT ...]

Rank 0 appends one line of JSON to FILE for each promise and front end.
Run by tests/test_promises.py.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import traceback
import warnings

import front_ends
import job
import promises_errors
import promises_models
import promises_state
import promises_votes
import torch
from front_ends import FRONTS, JOBS

#: {name: function}, whose ``fronts`` it is a promise of. In the order of docs/promises.md.
PROMISES = {
    name: f
    for module in (promises_votes, promises_state, promises_models, promises_errors)
    for name, f in vars(module).items()
    if hasattr(f, "fronts") and f.__module__ == module.__name__
}


LIMIT = 60  # seconds for one promise, imports included; then the job ends with its stacks


def cells(fronts=FRONTS):
    """(promise, front end) of every test."""
    return [(name, front) for name, f in PROMISES.items() for front in f.fronts if front in fronts]


def outcome(world, name, front):
    """What went wrong, by rank; all empty if the promise is kept."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PROMISES[name](world, front)
        mine = ""
    except BaseException as error:  # noqa: BLE001 - all ranks hear of it
        mine = f"{type(error).__name__}: {error}"
        if not isinstance(error, job.Ended):
            mine += "\n" + traceback.format_exc(limit=-4)
    return world.finish(mine)


def main(launcher, file, *wanted):
    world = job.begin(launcher)
    fronts = [f for f in JOBS[launcher] if world.horovod or f not in front_ends.HOROVOD]
    for name, front in cells(fronts):
        if wanted and not {name, front, f"{name}-{front}"} & set(wanted):
            continue
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        began = time.perf_counter()
        torch.manual_seed(0)
        found = outcome(world, name, front)
        if any(found):
            world.renew()
        if world.rank == 0:
            seconds = round(time.perf_counter() - began, 3)
            told = {"promise": name, "front": front, "ranks": world.size, "seconds": seconds}
            with open(file, "a") as f:
                f.write(json.dumps({**told, "wrong": found if any(found) else []}) + "\n")
    if world.rank == 0:
        with open(file, "a") as f:
            f.write(json.dumps({"promise": "the end", "front": "", "ranks": world.size}) + "\n")
    faulthandler.cancel_dump_traceback_later()
    world.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
