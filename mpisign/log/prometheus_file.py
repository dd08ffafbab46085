"""A file of metrics for node_exporter's textfile collector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpisign.stats import stats


def write_prometheus(path: str | os.PathLike[str], labels: Mapping[str, Any] | None = None) -> None:
    """Writes ``mpisign.stats().prometheus(labels)`` to a file that is never seen half written.

    Not collective. Ranks on one machine need a file each.

    Args:
        path: of the file; node_exporter reads those that end in ``.prom``.
        labels: as ``Stats.prometheus`` takes them.

    Raises:
        OSError: if the file cannot be written.

    Example:
        >>> import mpisign.log, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mpisign.prom"
        >>> mpisign.log.write_prometheus(path, {"rank": 0})
        >>> path.read_text().splitlines()[0]
        '# HELP mpisign_stage_calls_total Calls of a stage.'
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}")  # not .prom: the collector skips it
    try:
        part.write_text(stats().prometheus(labels))
        part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)
        raise
