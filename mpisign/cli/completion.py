"""``mpisign completion``: a shell's completion of commands, options and their values.

shtab writes it from the parser: once, so that no Python starts when Tab is pressed. argcomplete
would start this program, with NumPy, at every Tab.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_SHELLS = ("bash", "zsh", "fish")

_EPILOG = """\
Needs shtab: pip install "mpisign[completion]", or pip install shtab.

examples:
  mpisign completion bash

now, in this shell:
  bash   eval "$(mpisign completion bash)"
  zsh    eval "$(mpisign completion zsh)"       after compinit
  fish   mpisign completion fish | source

in every shell from the next one on (the folder must be there):
  bash   mpisign completion bash > ~/.local/share/bash-completion/completions/mpisign
  zsh    mpisign completion zsh > ~/.zfunc/_mpisign    with ~/.zfunc in fpath, before compinit
  fish   mpisign completion fish > ~/.config/fish/completions/mpisign.fish

exit status: 0; 2 without shtab"""


def add_parser(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Adds ``completion`` to the subparsers ``commands`` of the parser ``whole``."""
    parser = commands.add_parser(
        "completion",
        help="what a shell needs to complete mpisign's commands and options",
        description="Print the completion of mpisign's commands, options and values for a shell.",
        epilog=_EPILOG,
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=run, parser=parser, whole=whole)


def run(args: argparse.Namespace) -> int:
    """Prints the script; the exit status."""
    try:
        import shtab
    except ImportError:
        args.parser.error('needs shtab: pip install "mpisign[completion]", or pip install shtab')
    _mark_files(args.whole, shtab.FILE, shtab.DIRECTORY)
    sys.stdout.write(shtab.complete(args.whole, args.shell) + "\n")
    return 0


def _mark_files(parser: argparse.ArgumentParser, file: Any, directory: Any) -> None:
    """Options that take a path complete to files or folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_files(inner, file, directory)
        elif action.type is Path or "FILE" in str(action.metavar):
            folder = str(action.metavar) in ("DIR", "FOLDER", "DIRECTORY")
            action.complete = directory if folder else file  # type: ignore[attr-defined]
