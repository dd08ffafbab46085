"""The errors that collectives raise, the same one on every rank."""

from __future__ import annotations

from collections.abc import Sequence


class CollectiveError(RuntimeError):
    """A collective could not run; every rank of the communicator raises the same text."""


class DisagreementError(CollectiveError):
    """Ranks called one collective with different lengths, dtypes, policies, algorithms or steps."""


class NaNError(CollectiveError, FloatingPointError):
    """A rank's tensor holds NaN under ``nan="raise"``; NaN is never a vote."""


class WireError(CollectiveError):
    """What arrived is not what the protocol allows: a wrong size, magic, version or padding."""


class CollectiveTimeout(CollectiveError, TimeoutError):
    """Ranks did not come within the communicator's timeout; ``ranks`` are those, if known."""

    def __init__(self, text: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.ranks = tuple(ranks)


class BrokenError(CollectiveError):
    """An earlier collective of this communicator broke off half way: it is of no more use."""


class LauncherError(RuntimeError):
    """The launcher started more processes than the communicator sees."""
