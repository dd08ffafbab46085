"""Whether all ranks may go ahead, by what their headers say: the same answer on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpisign.engine.header import NBYTES, RANK, REASON_AT, Header
from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError
from mpisign.transports.base import Bytes

#: Of mpisign.optim: they vote on nothing.
_OPTIMIZERS = ("OneBitAdam", "ZeroOneAdam", "OneBitLamb")
_OF_X = ("majority_vote", "tally", "mean_of_signs")  # front ends that are given one array
_FEW = 32  # ranks, up to which NumPy costs more than it saves

#: By the kind of a replica's digest.
_REPLICAS = {
    1: "an earlier vote's result: %s. A rank sent some ranks another vote than others, or has "
    "other memory or software than they",
    2: "the parameters they start from: %s. All ranks must start from the same parameters: one "
    "seed, or a broadcast",
}


@dataclass(slots=True)
class Agreed:
    """What all ranks' headers said, where they agree.

    ``header``: this rank's. ``function``: the caller's name for messages. ``weights``: by rank,
    None if all are 1. ``presences``: by rank, or the one that all have. ``nan_count_pending``,
    ``fresh``, ``stop``: whether any rank said so.
    """

    function: str
    header: Header
    nan_count_pending: bool
    weights: list[float] | None
    presences: list[bytes]
    fresh: bool = False
    stop: bool = False

    @property
    def same_presence(self) -> bool:
        """Whether all ranks have gradients for the same slots."""
        return len(set(self.presences)) == 1


def agree(rows: Bytes, own: Header, function: str, alike: bool, size: int) -> Agreed:
    """The headers (ranks, 512) of all ranks; the same error on every rank unless all may go ahead.

    ``alike``: what ``all_alike`` said of them, or that all ``size`` are known to be as the one
    given.

    CollectiveError: a rank refused. DisagreementError: a field differs; names ranks and values.
    NaNError: a rank holds NaN under nan="raise". CollectiveError: replicas differ. WireError: a
    message is no header, or holds a weight that is none.
    """
    if alike and not (own.reason or own.nans):
        all_weights = None if own.weight == 1.0 else [own.weight] * size
        presences = [own.presence]
        pending = own.nan_count_pending
        return Agreed(function, own, pending, all_weights, presences, own.fresh, own.stop)
    headers = [Header.decode(row, r) for r, row in enumerate(rows)]
    _check(headers, function)
    weights = [h.weight for h in headers]
    for rank, weight in enumerate(weights):
        if not 0 <= weight < float("inf"):
            raise WireError(f"rank {rank} sent a weight of {weight}")
    return Agreed(
        function,
        own,
        any(h.nan_count_pending for h in headers),
        None if all(w == 1.0 for w in weights) else weights,
        [h.presence for h in headers],
        any(h.fresh for h in headers),
        any(h.stop for h in headers),
    )


def all_alike(rows: Bytes, own: int) -> bool:
    """Whether all headers are the own one but for their ranks: the usual case, in one look."""
    size = len(rows)
    if size > _FEW:
        ranks = np.arange(size, dtype="<u4").view(np.uint8).reshape(size, 4)
        same = rows[:, :REASON_AT] == rows[own, :REASON_AT]
        same[:, RANK] = rows[:, RANK] == ranks
        return bool(same.all())
    data = rows.tobytes()
    mine = data[own * NBYTES : own * NBYTES + REASON_AT]
    before, after = mine[: RANK.start], mine[RANK.stop :]
    for rank in range(size):
        at = rank * NBYTES
        if data[at : at + REASON_AT] != before + rank.to_bytes(4, "little") + after:
            return False
    return True


def _check(headers: Sequence[Header], function: str) -> None:
    # Where ranks call different functions the text must not start with each one's own.
    operations = dict.fromkeys(h.operation for h in headers)
    if len(operations) > 1:
        function = " and ".join(operations)
    reasons = _group([h for h in headers if h.reason], lambda h: h.reason)
    if reasons:
        refused = "; ".join(f"{name_ranks(r)}: {reason}" for reason, r in reasons.items())
        raise CollectiveError(f"{function}: cannot go on because of {refused}")
    differences = []
    said = {
        "tensor": "names, shapes or dtypes of the parameters",
        "settings": "optimizer settings: learning rates, groups, what the compressor was given, "
        "warmup_steps, participation, or what Accordion decided (call next_epoch on every rank)",
    }
    if headers[0].operation == "compressed_mean":
        said["settings"] = "blocks of the states"
    if headers[0].operation == "robust_aggregate":
        said["settings"] = "the rules"
    if headers[0].operation == "factorize":
        said["settings"] = "arguments, or what the optimizers keep"
    if headers[0].operation == "found_inf":
        said["settings"] = "GradScaler's scale, or its count of steps without inf (load_state_dict)"
    if headers[0].operation == "majority_vote":
        said["settings"] = "the groups that vote"
    for name in Header.AGREED:
        groups = _group(headers, lambda h, name=name: getattr(h, name))  # type: ignore[misc]
        if len(groups) > 1:
            if name in said:
                sides = " against ".join(name_ranks(r) for r in groups.values())
                differences.append(f"{said[name]} ({sides})")
                continue
            values = "; ".join(f"{name_ranks(r)}: {v}" for v, r in groups.items())
            differences.append(f"{name} ({values})")
    if differences:
        raise DisagreementError(f"{function}: ranks disagree on {', '.join(differences)}")
    if headers[0].nan == "raise":
        refuse_nans(function, [h.nans for h in headers])
    # Ranks that wait in other orders than the rest may be behind: what they say is compared later.
    for head in sorted({h.replica[:2] for h in headers if h.replica[0] in _REPLICAS}):
        said_so = [h for h in headers if h.replica[:2] == head]
        replicas = _group(said_so, lambda h: h.replica)
        if len(replicas) > 1:
            sides = " against ".join(name_ranks(r) for r in replicas.values())
            raise CollectiveError(f"{function}: replicas differ in {_REPLICAS[head[0]] % sides}")


def refuse_nans(function: str, nans: Sequence[int]) -> None:
    """NaNError if any rank holds NaN. ``nans``: how many, by rank."""
    if any(nans):
        held = ", ".join(f"{n} on rank {r}" for r, n in enumerate(nans) if n)
        if function in _OPTIMIZERS:
            raise NaNError(f"{function}: gradients must be finite, got NaN or infinity: {held}")
        raise NaNError(
            f"{function}: {'x' if function in _OF_X else 'gradients'} must hold no NaN "
            f"under nan='raise', got {held} (nan='abstain', an argument of majority_vote and of "
            "the compressor, leaves them out of the vote)"
        )


def _group(headers: Sequence[Header], key: Callable[[Header], Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for h in headers:
        groups.setdefault(key(h), []).append(h.rank)
    return groups


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 3" or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for r in ranks:
        if runs and runs[-1][1] == r - 1:
            runs[-1][1] = r
        else:
            runs.append([r, r])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
