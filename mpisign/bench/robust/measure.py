"""The clock: our rule, ByzFL's and a plain read of as many bytes, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpisign import robust
from mpisign.backend import arrays
from mpisign.bench.host import Host
from mpisign.bench.results import Timing
from mpisign.bench.robust import peer
from mpisign.bench.robust.results import Row

_OWN_CORE = 0.95  # of a sample's time, spent on the core
_TRIES = 4
_LONG = 0.2  # seconds that are not tried again
_PEER_SECONDS = 4.0  # after which the slower one rests
_WRITES = ("clipping",)  # ByzFL's overwrites what it is given
_DRAWS = ("bucketing",)  # at random


def made(n: int, d: int, dtype: str, sets: int) -> list[np.ndarray[Any, Any]]:
    """Sets of rows, normal: calls take turns in them, so that rows come from memory."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, d), dtype=np.dtype(dtype).type) for _ in range(sets)]


def measure(
    name: str,
    framework: str,
    f: int,
    rows: Sequence[np.ndarray[Any, Any]],
    runs: int,
    threads: int,
    host: Host,
    byzfl: Any,
) -> Row:
    """One rule on ``rows`` as arrays of ``framework``, "numpy" or "torch"."""
    rule = robust.by_name(name, f) if name not in robust.MIXINGS else _mixing(name, f)
    theirs = peer.rule(byzfl, name, f) if byzfl else None
    given = [_of(framework, x) for x in rows]
    spoilt = any(part in _WRITES for part in name.split("+"))
    copies = [_of(framework, x.copy()) for x in rows] if theirs and spoilt else given
    read = next(iter(host.limit_calls("read", rows[0].nbytes, threads).values()))
    samples: dict[str, list[float]] = {"ours": [], "theirs": [], "read": []}
    with host.threads(threads):
        differs = _difference(rule, name, f, framework, rows[0], byzfl) if theirs else None
        rule(given[0])
        for run in range(runs):
            at = run % len(rows)
            samples["read"].append(_seconds(read[run % len(read)], threads))
            samples["ours"].append(_seconds(partial(rule, given[at]), threads))
            if theirs and sum(samples["theirs"]) < _PEER_SECONDS:
                if spoilt:
                    copies[at][...] = given[at]
                    _seconds(read[run % len(read)], threads)
                samples["theirs"].append(
                    _seconds(partial(theirs, copies[at]), threads, 1 if spoilt else _TRIES)
                )
    return Row(
        name,
        framework,
        Timing.of(samples["ours"]),
        Timing.of(samples["read"]),
        Timing.of(samples["theirs"]) if samples["theirs"] else None,
        differs,
        "" if theirs or not byzfl else "not in ByzFL",
    )


def _mixing(name: str, f: int) -> Any:
    kind: Any = robust.MIXINGS[name]
    return kind(2) if kind is robust.Bucketing else kind(f) if kind.has_f else kind()


def _of(framework: str, x: np.ndarray[Any, Any]) -> Any:
    if framework == "numpy":
        return x
    import torch

    return torch.from_numpy(x)


def _seconds(call: Callable[[], Any], threads: int, tries: int = _TRIES) -> float:
    """Of one call; tried again if another process had the core meanwhile."""
    seconds = 0.0
    for _ in range(tries if threads == 1 else 1):
        start, cpu = time.perf_counter(), time.thread_time()
        call()
        seconds = time.perf_counter() - start
        if seconds > _LONG or time.thread_time() - cpu > _OWN_CORE * seconds:
            break
    return seconds


def _difference(
    rule: Any, name: str, f: int, framework: str, x: np.ndarray[Any, Any], byzfl: Any
) -> float | None:
    """A fresh rule of ByzFL's, on a copy, drawing as ours does; None where it cannot."""
    fresh = peer.rule(byzfl, name, f)
    assert fresh is not None
    if any(part in _DRAWS for part in name.split("+")):
        if framework != "numpy":
            return None
        np.random.seed(0)
        ours = rule(x, rng=np.random.RandomState(0))
    else:
        ours = rule(_of(framework, x))
    theirs = np.asarray(arrays.host(fresh(_of(framework, x.copy()))), np.float64)
    apart = np.abs(np.asarray(arrays.host(ours), np.float64) - theirs)
    return float(apart.max() / max(np.abs(theirs).max(), np.finfo(np.float64).tiny))
