"""The communication hook itself."""

# Annotations must be the types themselves, not text: DDP compares them.

import torch
import torch.distributed as dist

from mpisign.ddp.state import MajorityVoteState
from mpisign.exchange.after_backward import raise_after_backward


def majority_vote_hook(
    state: MajorityVoteState, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """DDP's gradients become what all ranks' compressors agree on: of votes +1, -1, or 0.

    For ``DistributedDataParallel.register_comm_hook(state, majority_vote_hook)``, before the first
    backward pass. Gradients travel while others are computed: with every bucket and every gradient
    that DDP sees, what is in flight moves on; the last bucket waits for all. What the optimizer
    finds in ``grad`` is a vote, not a mean: there is nothing to clip or to unscale.

    ``backward()`` raises what ``mpisign.majority_vote`` raises, the same on every rank: NaNError,
    DisagreementError, CollectiveError, CollectiveTimeout, WireError. Gradients are of no use then;
    DDP goes on to work unless the communicator broke.
    """
    with state.lock:
        return _hook(state, bucket)


def _hook(state: MajorityVoteState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    if bucket.index() == 0:
        state.begin()
    buffer = bucket.buffer()
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(
        devices=[] if buffer.device.type == "cpu" else [buffer.device]
    )
    state.results.append((future, buffer))
    try:
        state.take(bucket)
    except Exception as error:
        state.error = error
    if not bucket.is_last():
        return future
    try:
        state.finish()
    except Exception as error:
        state.error = state.error or error
    first, results = state.error, state.results
    state.begin()
    for each, result in results:
        each.set_result(result)
    if first is not None:
        raise_after_backward(first)
    return future
