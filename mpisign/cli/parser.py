"""An argument parser of which N copies speak with one voice."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NoReturn

from mpisign import launcher

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
