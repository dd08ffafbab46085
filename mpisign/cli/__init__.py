"""The ``mpisign`` command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from mpisign.cli import bench, completion, doctor, guard, predict, study, train, version
from mpisign.cli.parser import RankParser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mpisign``; the exit status: 0, or 2 for what the person can put right."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # ``mpisign study list | head -1``: who reads has what it wants
        guard.drop_output()
        return guard.PIPE_CLOSED


def _run(argv: Sequence[str] | None) -> int:
    parser = RankParser(
        prog="mpisign",
        description="One-bit gradient collectives for Horovod, MPI and torch.distributed.",
        epilog="mpisign COMMAND --help tells more about each.",
    )
    about = "what is installed, in one line, for a report of a bug; more: mpisign doctor"
    parser.add_argument("--version", action=version.Version, help=about)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, bench, predict, study, doctor):
        command.add_parser(commands)
    completion.add_parser(commands, parser)
    argv = sys.argv[1:] if argv is None else [str(a) for a in argv]
    args = parser.parse_args(argv)
    args.command = shlex.join(["mpisign", *argv])
    status: int = args.run(args)
    return status
