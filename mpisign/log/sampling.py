"""Switches the census of votes on and off."""

from __future__ import annotations

from mpisign import census, policies


def sample_votes(every: int) -> None:
    """Has this process look closely at a sample of every so many votes: ``stats().votes``.

    Of each vote whose step is a multiple of ``every``, the rank that tallies it counts margins,
    ties, abstentions, and votes against the majority, on up to 4,096 coordinates of each piece that
    it tallies; front ends also count zeros in as many coordinates of each gradient. Not collective,
    and may differ from rank to rank: nothing is sent for it. On a GPU the sample is copied to the
    host, which waits for the device.

    Args:
        every: steps from one look to the next; 0 switches it off, which is the default.

    Raises:
        ValueError: if it is no whole number from 0.

    Example:
        >>> import mpisign, mpisign.log, numpy as np
        >>> mpisign.stats().reset()
        >>> mpisign.log.sample_votes(every=1)
        >>> _ = mpisign.majority_vote(np.ones(16, np.float32))
        >>> mpisign.stats().votes.margins
        {1: 16}
        >>> mpisign.log.sample_votes(every=0)
    """
    whole = policies.whole(every, 0)
    if whole is None:
        raise ValueError(f"sample_votes: every must be a whole number from 0, got {every!r}")
    census.every = whole
