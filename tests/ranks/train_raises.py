"""``mpisign train`` in which the last rank runs into a bug at its fifth step."""

import sys

from mpisign import cli, launcher
from mpisign.experiments.hostile import Hostile

honest, steps = Hostile.backward, 0


def buggy(*args):
    global steps
    steps += 1
    if steps == 5 and launcher.rank() == launcher.launched_size() - 1:
        raise ZeroDivisionError("a bug on one rank")
    return honest(*args)


Hostile.backward = buggy
sys.exit(cli.main(["train", *sys.argv[1:]]))
