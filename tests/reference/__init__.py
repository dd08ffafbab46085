"""Every algorithm of mpisign as its equations read, in NumPy alone: the definition of the results.

Slow, plain and exact. The tests compare the kernels and the collectives with these functions: bit
for bit where the order of every operation is fixed, else within rounding.

Conventions. Arrays are flat. A sign plane holds element i at bit i, 1 = negative; a mask plane
holds 1 where a coordinate votes. ``seed``, ``step``, ``rank`` (or a stream) and ``offset``, in
coordinates, address random bits: equal addresses give equal bits, whatever computes them.

- ``planes``: Philox bits, packing, zeros and NaN.
- ``lowrank``: factors of weights, layers made of them, and their optimizers' states.
- ``golomb``: Golomb-Rice coded sparse planes.
- ``votes``: majority votes (weighted, in groups, over nodes), tallies, means.
- ``compressors``: what a rank sends and keeps.
- ``muon``: polar factors by Newton-Schulz.
- ``compressed_mean``: two-sided error feedback.
- ``ranks``: one step of p ranks with any compressor.
- ``accordion``: which compressor each tensor has in an epoch.
- ``rules``: robust rules on rows (n, d).

Example:
    >>> import numpy as np
    >>> import reference
    >>> reference.majority_vote([np.array([1.0, -2.0]), np.array([3.0, -4.0])])
    array([ 1., -1.], dtype=float32)
    >>> reference.rules.krum(np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), f=1)
    array([1., 2., 3.])
"""

# ruff: noqa: F401
from __future__ import annotations

from reference import golomb, lowrank, muon, rules
from reference.accordion import AccordionRanks, is_steady
from reference.compressed_mean import CompressedMean, shard_bounds
from reference.compressors import (
    error_feedback,
    largest,
    lion,
    local_steps,
    noisy_sign,
    participants,
    qsgd,
    server_residual,
    signum,
    sparsign,
    stochastic_sign,
    terngrad,
    tree_sum,
    widened,
)
from reference.planes import (
    TIE_STREAM,
    bits_to_plane,
    pack,
    philox,
    plane_to_bits,
    random_bits,
    random_halves,
    random_words,
)
from reference.ranks import Ranks
from reference.votes import (
    bf16_mean,
    group_distances,
    grouped_vote,
    hierarchical_vote,
    majority,
    majority_vote,
    mean_of_counts,
    mean_of_signs,
    tally,
    unpack_add,
    update,
    vote,
    vote_of_votes,
    votes_of,
    weighted_sum,
)
