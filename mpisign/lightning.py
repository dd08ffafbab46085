"""PyTorch Lightning: ``Trainer(strategy=mpisign.lightning.MajorityVoteStrategy("signum"))``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from mpisign import policies
from mpisign.compressors import Compressor
from mpisign.ddp import MajorityVoteState, majority_vote_hook
from mpisign.exchange import rank_files
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.pending_step import ChangedVotes
from mpisign.exchange.skip import Rule

try:
    from lightning.pytorch.strategies import DDPStrategy
except ImportError as error:
    raise ImportError('mpisign.lightning needs Lightning: pip install "lightning>=2.6"') from error

__all__ = ["MajorityVoteStrategy"]

_FUNCTION = "MajorityVoteStrategy"
_KEY = "mpisign"  # in Lightning's checkpoint


class MajorityVoteStrategy(DDPStrategy):
    """Lightning's DDP, whose gradients become the votes of all ranks.

    ``DDPStrategy(ddp_comm_hook=...)`` registers a hook on CUDA devices alone and has rank 0 save
    alone. This one registers mpisign's on any device, and every rank saves its own momentum or
    residual beside Lightning's checkpoint, in ``NAME.ckpt.votes/rank0.pt`` and so on;
    ``Trainer.fit(ckpt_path=...)`` and ``ModelCheckpoint`` find and remove them.

    Args:
        compression, algorithm, seed, skip, bucket_size, changed_votes, warmup_steps: as in
            ``mpisign.ddp.MajorityVoteState``. Parameters have the names of the LightningModule's.
        vote_timeout: seconds that a rank waits for the others, default ``MPISIGN_TIMEOUT``.
            ``timeout`` is that of torch's process group.
        ddp: what else ``DDPStrategy`` takes, as ``find_unused_parameters`` or ``bucket_cap_mb``.

    Raises:
        TypeError, ValueError: for invalid arguments; out of ``fit()`` for a Trainer that clips
            gradients, which are votes by then: ``gradient_clip_val``.

    Example:
        >>> strategy = MajorityVoteStrategy("signum", find_unused_parameters=True)
        >>> strategy.state is None  # until Trainer(strategy=strategy).fit(...)
        True
    """

    def __init__(
        self,
        compression: str | Compressor = "signum",
        *,
        algorithm: policies.Algorithm = "auto",
        seed: int = 0,
        skip: str | Rule | None = "auto",
        bucket_size: int | None = BUCKET_SIZE,
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
        vote_timeout: float | None = None,
        **ddp: Any,
    ) -> None:
        hooks = [key for key in ddp if key.startswith("ddp_comm_")]
        if hooks:
            raise TypeError(f"{_FUNCTION}: {hooks[0]} must be left out: the hook is mpisign's")
        super().__init__(**ddp)
        self._settings: dict[str, Any] = {
            "algorithm": algorithm,
            "seed": seed,
            "skip": skip,
            "bucket_size": bucket_size,
            "changed_votes": changed_votes,
            "warmup_steps": warmup_steps,
            "timeout": vote_timeout,
        }
        self._compressor = MajorityVoteState(None, compression, **self._settings).compressor
        self._state: MajorityVoteState | None = None
        self._resumed_from = ""

    @property
    def state(self) -> MajorityVoteState | None:
        """The votes' state of the fit that runs or ran last, on this rank.

        Returns:
            None before the first fit.
        """
        return self._state

    def setup(self, trainer: Any) -> None:
        """Called by Lightning.

        Args:
            trainer: whose ``fit()`` begins.
        """
        if trainer.state.fn == "fit":
            self._check(trainer)
        super().setup(trainer)

    def _check(self, trainer: Any) -> None:
        if self._compressor.aggregate == "average":
            return
        clip = trainer.gradient_clip_val
        if clip and self._settings["changed_votes"] == "raise":
            raise ValueError(
                f"{_FUNCTION}: Trainer(gradient_clip_val={clip!r}) clips gradients after "
                "backward(), when they are votes: +1, -1 or 0. Take gradient_clip_val=None, and "
                "lower the learning rate instead; changed_votes='allow' steps on clipped votes"
            )

    def setup_optimizers(self, trainer: Any) -> None:
        """Called by Lightning: the hook is registered once the optimizers are known.

        Args:
            trainer: whose ``fit()`` begins.
        """
        super().setup_optimizers(trainer)
        module = self.lightning_module
        assert module is not None and self.model is not None
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        # That of a GAN's half is not the optimizer of all: then the state does without.
        of_all = [o for o in self.optimizers if {p for _, p in named} <= _held_by(o)]
        self._state = MajorityVoteState(
            None,
            self._compressor,
            named_parameters=named,
            optimizer=of_all[0] if len(of_all) == len(self.optimizers) == 1 else None,
            scaler=getattr(self.precision_plugin, "scaler", None),  # of "16-mixed"
            **self._settings,
        )
        self.model.register_comm_hook(self._state, majority_vote_hook)  # type: ignore[operator]

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Called by Lightning on every rank: each saves its votes' state, then rank 0 the rest.

        Args:
            checkpoint: what Lightning saves.
            filepath: where.
            storage_options: for the ``CheckpointIO``.
        """
        # Slurm's is numbered by what a rank finds in the folder, which may be rank 0's already.
        filepath = self.broadcast(os.fspath(filepath))
        if self._state is not None and "optimizer_states" in checkpoint:
            saved = rank_files.contents(self._state, self.world_size)
            more = {} if storage_options is None else {"storage_options": storage_options}
            self.checkpoint_io.save_checkpoint(saved, _file(filepath, self.global_rank), **more)
            checkpoint[_KEY] = {"ranks": self.world_size, "steps": saved["votes"]["steps"]}
            self.barrier()  # there is a checkpoint once all of it is there
        super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Called by Lightning.

        Args:
            checkpoint_path: of Lightning's checkpoint.
            weights_only: as for ``torch.load``.

        Returns:
            Lightning's checkpoint.
        """
        self._resumed_from = os.path.realpath(checkpoint_path)  # ModelCheckpoint(save_last="link")
        if not os.path.exists(self._resumed_from):
            self._resumed_from = str(checkpoint_path)  # a URL
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Called by Lightning when a fit resumes.

        Args:
            checkpoint: what ``load_checkpoint`` returned.
        """
        super().load_optimizer_state_dict(checkpoint)
        saved = checkpoint.get(_KEY)
        if self._state is None or saved is None:  # a checkpoint of training without mpisign
            return

        own = partial(self._votes, saved)
        votes = rank_files.read_by_all(
            own, lambda failed: not self.reduce_boolean_decision(not failed), _FUNCTION
        )
        self._state.load_state_dict(votes)

    def _votes(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """This rank's votes' state beside the checkpoint that says ``saved`` of it."""

        def read(rank: int) -> dict[str, Any]:
            file = _file(self._resumed_from, rank)
            if rank >= saved["ranks"]:
                raise FileNotFoundError(file)  # one that is there is an older job's
            return self.checkpoint_io.load_checkpoint(file, weights_only=True)

        votes = rank_files.votes_of(self.global_rank, read, self._resumed_from)["votes"]
        if votes["steps"] != saved["steps"]:
            raise ValueError(
                f"{_FUNCTION}: {self._resumed_from} is of step {saved['steps']}, the votes' state "
                f"of rank {self.global_rank} beside it of step {votes['steps']}: saving was broken "
                "off; take an older checkpoint"
            )
        return votes  # type: ignore[no-any-return]

    def remove_checkpoint(self, filepath: Any) -> None:
        """Called by Lightning, as by ``ModelCheckpoint(save_top_k=...)``.

        Args:
            filepath: of the checkpoint that goes.
        """
        super().remove_checkpoint(filepath)
        file = _file(filepath, self.global_rank)
        self.checkpoint_io.remove_checkpoint(file)
        with contextlib.suppress(OSError):  # while other ranks' are there
            os.rmdir(os.path.dirname(file))


def _held_by(optimizer: Any) -> set[Any]:
    return {p for group in optimizer.param_groups for p in group["params"]}


def _file(checkpoint: Any, rank: int) -> str:
    # Lightning takes all digits of a name in the folder for the number of Slurm's hpc_ckpt_N.ckpt:
    # the rank's must not be there.
    return f"{checkpoint}.votes/rank{rank}.pt"
