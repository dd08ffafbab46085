"""``mpisign --version``: what is installed, in one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class Version(argparse.Action):
    """Prints the line and ends. argparse's own would look everything up for every command."""

    def __init__(self, option_strings: Any, dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        """Ends with exit status 0."""
        from mpisign.doctor import versions

        parser._print_message(versions.one_line() + "\n")  # by rank 0 alone
        parser.exit()
