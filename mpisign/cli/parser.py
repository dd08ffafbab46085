"""An argument parser that speaks on rank 0 alone, and options made from a dataclass."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from mpisign import launcher
from mpisign.cli import numbers

_HEAD_START = 3.0  # seconds


class RankParser(argparse.ArgumentParser):
    """Speaks on rank 0 only, and lets it finish: a launcher ends all ranks when one fails."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        if not launcher.rank():
            super()._print_message(message, file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if status and launcher.rank():
            time.sleep(_HEAD_START)
        if message:
            self._print_message(message, sys.stderr)
        sys.exit(status)


def add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds an option for each field of ``cls`` whose metadata, as of add_argument, has a help."""
    groups: dict[str, Any] = {"": parser}
    for f in fields(cls):
        if "help" not in f.metadata:
            continue
        more = dict(f.metadata)
        title, text = more.pop("group", ""), more.pop("help")
        default = None if f.default is MISSING or f.default == () else f.default
        if default is not None and "default:" not in text:
            text += " (default: %(default)s)"
        if "type" in more:
            more["type"] = getattr(numbers, more["type"])
        elif "Path" in str(f.type):
            more["type"] = Path
        elif "bool" in str(f.type):
            more["action"] = argparse.BooleanOptionalAction
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        group.add_argument(f"--{f.name.replace('_', '-')}", default=default, help=text, **more)
