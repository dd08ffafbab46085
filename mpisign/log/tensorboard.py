"""Curves and histograms of a training's votes, in TensorBoard's event files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpisign import launcher, policies
from mpisign.census import VoteCounts
from mpisign.log.sampling import sample_votes
from mpisign.stats import Distance, stats

_RANKS = 32  # with a curve each


class TensorBoard:
    """Writes what ``mpisign.stats()`` counts to TensorBoard's event files, every so many steps.

    Not collective: a rank writes what it knows itself, and none waits for another. Rank 0 writes,
    unless ``all_ranks``; on the others all methods do nothing. With alltoall-vote rank 0 tallies,
    and so knows the margins of, its own shard of the coordinates. It switches
    ``mpisign.log.sample_votes`` on, on the ranks that write.

    Tags: ``votes/margin`` (a histogram: of so many coordinates the majority won by so many votes),
    ``votes/mean margin``, ``votes/ties``, ``votes/unanimous``, ``votes/abstentions``,
    ``gradients/zeros`` (shares), ``bytes per step/sent`` and ``received``, ``seconds per
    step/pack`` and so on, ``against the majority/rank 3`` (of that rank's votes, the share that
    lost), with groups ``against its group/rank 3``, and what ``step`` is given.

    Args:
        directory: where event files go; with ``all_ranks`` in ``rank0``, ``rank1``, ...
        every: steps from one point of the curves to the next.
        rank: of this process, default what torch.distributed or the launcher says, else 0.
        all_ranks: every rank writes, not rank 0 alone.

    Raises:
        ImportError: on the ranks that write, where torch or tensorboard is not installed.
        ValueError: for ``every`` or ``rank`` that is no whole number.

    Example:
        >>> import mpisign, mpisign.log, numpy as np, tempfile
        >>> with mpisign.log.TensorBoard(tempfile.mkdtemp(), every=1) as board:
        ...     for step in range(3):
        ...         _ = mpisign.majority_vote(np.ones(16, np.float32), step=step)
        ...         board.step(loss=1 / (1 + step))
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 10,
        rank: int | None = None,
        all_ranks: bool = False,
    ) -> None:
        if policies.whole(every, 1) is None:
            raise ValueError(f"TensorBoard: every must be a whole number from 1, got {every!r}")
        own = _rank() if rank is None else policies.whole(rank, 0)
        if own is None:
            raise ValueError(f"TensorBoard: rank must be a whole number from 0, got {rank!r}")
        self.every, self.steps = int(every), 0
        self._writer: Any = None
        self._logged = 0  # steps until the last point
        if own == 0 or all_ranks:
            path = Path(directory) / f"rank{own}" if all_ranks else Path(directory)
            self._writer = _summary_writer()(str(path))
            sample_votes(self.every)
            self._before = _Totals()

    def step(self, step: int | None = None, **scalars: Any) -> None:
        """To be called after each step of the optimizer; writes every ``every`` steps.

        Args:
            step: the number that the curves have, default how often this was called.
            **scalars: more of them, as ``loss=0.5``; read only where they are written, so that a
                tensor on a GPU is waited for no more often. Underscores become spaces.
        """
        if self._writer is None:
            return
        self.steps += 1
        if self.steps - self._logged >= self.every:
            self._write(self.steps if step is None else int(step))
            self.scalars(self.steps if step is None else int(step), scalars)

    def scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes a point of some curves now.

        Args:
            step: of the point.
            scalars: values by tag: numbers, or tensors of one element.
        """
        if self._writer is not None:
            for name, value in scalars.items():
                number = value.detach() if hasattr(value, "detach") else value
                self._writer.add_scalar(name.replace("_", " "), float(number), step)

    def close(self) -> None:
        """Writes what is left, closes the file, and ends the sampling. A second time is nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            sample_votes(0)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, step: int) -> None:
        """What happened since the last point."""
        now, steps = _Totals(), self.steps - self._logged
        since, self._before, self._logged = now.since(self._before), now, self.steps
        points = {}
        for name, seconds in since.seconds.items():
            points[f"seconds per step/{name}"] = seconds / steps
        for name, nbytes in since.nbytes.items():
            points[f"bytes per step/{name}"] = nbytes / steps
        points |= _of_votes(since.votes)
        for rank, (differing, coordinates) in since.groups.items():
            if rank < _RANKS and coordinates:
                points[f"against its group/rank {rank}"] = differing / coordinates
        for name, value in points.items():
            self._writer.add_scalar(name, value, step)
        if margins := {m: n for m, n in since.votes.margins.items() if n}:
            bins = _histogram(margins)
            self._writer.add_histogram_raw("votes/margin", **bins, global_step=step)


def _of_votes(votes: VoteCounts) -> dict[str, float]:
    points: dict[str, float] = {}
    if votes.coordinates:
        n = votes.coordinates
        margins = sum(margin * count for margin, count in votes.margins.items())
        points["votes/mean margin"] = margins / n
        points["votes/ties"] = votes.ties / n
        points["votes/unanimous"] = votes.unanimous / n
        points["votes/abstentions"] = votes.abstentions / max(1, votes.votes + votes.abstentions)
    if votes.gradients:
        points["gradients/zeros"] = votes.zeros / votes.gradients
    for rank, cast in sorted(votes.cast.items()):
        if cast and rank < _RANKS:
            points[f"against the majority/rank {rank}"] = votes.against[rank] / cast
    return points


def _histogram(margins: Mapping[int, int]) -> dict[str, Any]:
    """One bin for each margin, that of m from m - 1 to m."""
    most = max(margins)
    return {
        "min": min(margins),
        "max": most,
        "num": sum(margins.values()),
        "sum": sum(m * n for m, n in margins.items()),
        "sum_squares": sum(m * m * n for m, n in margins.items()),
        "bucket_limits": [float(m) for m in range(most + 1)],
        "bucket_counts": [margins.get(m, 0) for m in range(most + 1)],
    }


class _Totals:
    """``mpisign.stats()`` at one moment, or what was added between two."""

    def __init__(self) -> None:
        now = stats()
        stages = now.as_dict()
        self.seconds = {name: s["seconds"] for name, s in stages.items()}
        self.nbytes = {key: sum(s[key] for s in stages.values()) for key in ("sent", "received")}
        self.votes = now.votes.copy()
        self.groups = {r: _counts(d) for r, d in dict(now.suspects).items()}

    def since(self, before: _Totals) -> _Totals:
        """What was added, or all of it where totals were reset in between."""
        new = _Totals.__new__(_Totals)
        new.seconds = _minus(self.seconds, before.seconds)
        new.nbytes = _minus(self.nbytes, before.nbytes)
        old = vars(before.votes) if self.votes.samples >= before.votes.samples else {}
        more: dict[str, Any] = {}
        for name, value in vars(self.votes).items():
            earlier = old.get(name)
            if isinstance(value, dict):
                more[name] = _minus(value, earlier or {})
            else:
                more[name] = value - (earlier or 0)
        new.votes = VoteCounts(**more)
        new.groups = {}
        for rank, (differing, of) in self.groups.items():
            then, of_then = before.groups.get(rank, (0, 0))
            more_of = of >= of_then  # else reset
            new.groups[rank] = (differing - then, of - of_then) if more_of else (differing, of)
        return new


def _minus(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> dict[Any, Any]:
    if any(value < before.get(key, 0) for key, value in now.items()):
        return dict(now)
    return {key: value - before.get(key, 0) for key, value in now.items()}


def _counts(d: Distance) -> tuple[int, int]:
    return d.differing, d.coordinates


def _rank() -> int:
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_rank())
    return launcher.rank() or 0


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"mpisign.log.TensorBoard needs torch and tensorboard ({error}): "
            'pip install "mpisign[tensorboard]"'
        ) from error
    return SummaryWriter
