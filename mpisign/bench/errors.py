"""What a person can put right: shown as one line, never as a traceback."""

from __future__ import annotations


class BenchError(ValueError):
    """An option cannot be used on this machine."""
