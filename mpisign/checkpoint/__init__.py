"""Checkpoints of a job: a file of each rank and one of what all ranks share, complete or ignored.

    folder/step-0000000025/
        shared.pt       what is equal on all ranks: parameters, the optimizer's state, the step
        rank-0.pt ..    what differs: momenta, residuals, random states, a batch norm's buffers
        manifest.json   ranks, sizes and digests of these files; written by rank 0 at the end

Files are written into ``step-0000000025.partial``. Once all ranks agree that theirs are on disk,
rank 0 writes the manifest and renames the folder: a checkpoint is there for all ranks or for none.
"""

from mpisign.checkpoint.folder import complete_steps
from mpisign.checkpoint.loading import load
from mpisign.checkpoint.saving import save

__all__ = ["complete_steps", "load", "save"]
