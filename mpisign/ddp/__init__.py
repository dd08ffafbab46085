"""torch DDP: ``model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)``."""

from __future__ import annotations

try:
    import torch.distributed  # noqa: F401
except ImportError as error:
    raise ImportError('mpisign.ddp needs torch: pip install "mpisign[torch]"') from error

from mpisign.ddp.hook import majority_vote_hook
from mpisign.ddp.state import MajorityVoteState

__all__ = ["MajorityVoteState", "majority_vote_hook"]
