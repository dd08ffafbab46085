"""Whether all ranks hold the same bytes, in as few messages as the logarithm of their number."""

from __future__ import annotations

import numpy as np

from mpisign.transports.base import Bytes, Steps
from mpisign.transports.tagged import TaggedTransport


def all_same(wire: TaggedTransport, word: Bytes) -> Steps[bool]:
    """Whether all ranks' ``word``, uint8 (n,), are equal and start with 0: one answer for all.

    After round i a rank knows whether the words of the 2^(i+1) ranks up to itself are equal, so
    after the last whether all are. The first byte of a word is 0; a rank that passes on 1 there
    says that they are not, and may say so from the start.

    Wire: ceil(log2 p) rounds of one message each; in round i, n bytes to rank r + 2^i (mod p): the
    word, or, where words differ, 1 and the rest of the word. Source: Bruck et al. 1997, Efficient
    algorithms for all-to-all communications in multiport message-passing systems (concatenation);
    Hensgen, Finkel and Manber 1988, Two algorithms for barrier synchronization (dissemination).
    """
    own, p = word.copy(), wire.size
    reach = 1
    while reach < p:
        came = np.empty_like(own)
        sent = own.copy()  # an exchange owns its parts, and ``own`` may change before it is over
        to, of = (wire.rank + reach) % p, (wire.rank - reach) % p
        yield wire.exchange([(to, sent)], [(of, came)])
        if (came != own).any():
            own[0] = 1
        reach *= 2
    return not own[0]
