"""``mpisign train`` in which the last rank runs into a bug at its fifth step."""

import sys

from mpisign import cli, launcher
from mpisign.training import loop

honest, steps = loop._step, 0


def buggy(*args):
    global steps
    steps += 1
    if steps == 5 and launcher.rank() == launcher.launched_size() - 1:
        raise ZeroDivisionError("a bug on one rank")
    return honest(*args)


loop._step = buggy
sys.exit(cli.main(["train", *sys.argv[1:]]))
