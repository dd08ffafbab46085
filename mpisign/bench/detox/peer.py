"""ByzFL's rules, as ``mpisign bench robust`` finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpisign.bench.errors import BenchError
from mpisign.bench.robust import peer


def rule(name: str, f: int) -> Callable[[Any], Any]:
    """ByzFL's rule of that name in ``mpisign.robust``; BenchError without one, or without ByzFL."""
    module = peer.aggregators()
    if module is None:
        raise BenchError(f"not installed: {peer.HINT}")
    found = peer.rule(module, name, f)
    if found is None:
        raise BenchError("not in ByzFL 0.0.11")
    return found
