"""What a probe returns or raises."""

from __future__ import annotations

from typing import Any


class Missing(Exception):
    """Not installed, which is no error. ``advice``: the line that installs it."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.advice = advice


class Broken(Exception):
    """Installed, does not work. ``advice``: what mends it."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.advice = advice


class Doubtful(Exception):
    """It works, and ``advice`` says what is better done about it."""

    def __init__(self, found: str, advice: str, details: dict[str, Any]) -> None:
        super().__init__(found)
        self.advice, self.details = advice, details


#: Text of the row, and details for ``--json``.
Found = tuple[str, dict[str, Any]]
