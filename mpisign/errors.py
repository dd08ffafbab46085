"""The errors that collectives raise, the same one on every rank."""

from __future__ import annotations

from collections.abc import Sequence


class CollectiveError(RuntimeError):
    """A collective could not run. Every rank of the communicator raises the same text.

    The base class of the errors below but LauncherError: ``except CollectiveError`` takes
    the same branch on every rank.
    """


class DisagreementError(CollectiveError):
    """Ranks called one collective with different lengths, dtypes, policies, algorithms or steps."""


class NaNError(CollectiveError, FloatingPointError):
    """A rank's tensor holds NaN under ``nan="raise"``; NaN is never a vote."""


class WireError(CollectiveError):
    """Received bytes break the protocol: a wrong size, magic number, version or padding."""


class CollectiveTimeout(CollectiveError, TimeoutError):
    """Ranks did not join a collective within the communicator's timeout.

    Args:
        text: The message.
        ranks: The missing ranks, empty where the wire does not know them.

    Example:
        >>> from mpisign.errors import CollectiveTimeout
        >>> CollectiveTimeout("majority_vote: rank 3 is missing", ranks=[3]).ranks
        (3,)
    """

    def __init__(self, text: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.ranks = tuple(ranks)


class BrokenError(CollectiveError):
    """An earlier collective of this communicator broke off half way; make a new communicator."""


#: How to install torch: the default index has the CUDA build, whether there is a GPU or not.
TORCH = (
    "pip install torch --index-url https://download.pytorch.org/whl/cpu (200 MB; with a GPU "
    "without --index-url: 5.8 GB, with CUDA)"
)


class LauncherError(RuntimeError):
    """The launcher started more processes than the communicator sees."""
