"""Hugging Face Trainer: ``trainer.add_callback(MajorityVoteCallback(trainer, "signum"))``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mpisign.compressors import Compressor
from mpisign.ddp import MajorityVoteState
from mpisign.exchange import rank_files

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    from mpisign.accelerate import any_of, register_comm_hook, unwrap_optimizer
except ImportError as error:
    raise ImportError(
        'mpisign.transformers needs both: pip install "transformers>=4.46" "accelerate>=1.0"'
    ) from error

__all__ = ["MajorityVoteCallback"]

_FUNCTION = "MajorityVoteCallback"


class MajorityVoteCallback(TrainerCallback):
    """Has the ranks of a ``Trainer`` vote on gradients, and save what each keeps of its own.

    Every checkpoint of the Trainer gets ``votes-rank0.pt`` and so on, which
    ``trainer.train(resume_from_checkpoint=...)`` continues from.

    Args:
        trainer: whose callback it is; started with several ranks, as by torchrun, without FSDP or
            DeepSpeed.
        compression: a name (see ``mpisign.Compression``) or a Compressor.
        resume_from_checkpoint: the folder that ``train()`` resumes from, which it does not tell
            callbacks. Needed if it is neither ``args.resume_from_checkpoint`` nor in
            ``args.output_dir``.
        settings: other arguments of ``mpisign.ddp.MajorityVoteState``.

    Raises:
        TypeError, ValueError: for invalid arguments; out of ``train()`` if it clips gradients,
            which are votes by then: ``TrainingArguments(max_grad_norm=0)`` is needed.

    Example:
        >>> MajorityVoteCallback(None)
        Traceback (most recent call last):
        TypeError: MajorityVoteCallback: trainer must be a transformers.Trainer, got NoneType
    """

    def __init__(
        self,
        trainer: Trainer,
        compression: str | Compressor = "signum",
        *,
        resume_from_checkpoint: str | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"{_FUNCTION}: trainer must be a transformers.Trainer, got {type(trainer).__name__}"
            )
        self._compressor = MajorityVoteState(None, compression, **settings).compressor
        self._settings = settings
        self._trainer = trainer
        self._folder = resume_from_checkpoint
        self._model: Any = None  # the one with the hook
        self._state: MajorityVoteState | None = None

    @property
    def state(self) -> MajorityVoteState | None:
        """The votes' state on this rank.

        Returns:
            None before ``train()``.
        """
        return self._state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer, once its checkpoint is loaded.

        Args:
            args, state, control: the Trainer's.
            kwargs: not used.
        """
        trainer = self._trainer
        self._check(args)
        if self._model is not trainer.model_wrapped:  # else train() was called before
            self._model = trainer.model_wrapped
            self._state = register_comm_hook(
                trainer.accelerator,
                trainer.model_wrapped,
                trainer.optimizer,
                self._compressor,
                **self._settings,
            )
        assert self._state is not None
        self._state.optimizer = unwrap_optimizer(trainer.optimizer)
        if state.global_step:
            own = partial(self._saved, args, state)
            any_rank = partial(any_of, trainer.accelerator)
            self._state.load_state_dict(rank_files.read_by_all(own, any_rank, _FUNCTION))

    def _check(self, args: Any) -> None:
        changed = self._settings.get("changed_votes", "raise")
        if self._compressor.aggregate == "average":
            return
        if args.max_grad_norm and args.max_grad_norm > 0 and changed == "raise":
            raise ValueError(
                f"{_FUNCTION}: TrainingArguments(max_grad_norm={args.max_grad_norm}), the default "
                "is 1.0, clips gradients after backward(), when they are votes: +1, -1 or 0. Take "
                "max_grad_norm=0; changed_votes='allow' steps on clipped votes"
            )

    def _saved(self, args: Any, state: Any) -> dict[str, Any]:
        """This rank's votes' state in the checkpoint that was loaded."""
        given = self._folder or args.resume_from_checkpoint
        guessed = _folder(args, state)
        folder = Path(given) if isinstance(given, str) and Path(given).is_dir() else guessed
        remedy = f"give {_FUNCTION}(resume_from_checkpoint=...) the folder that train() is given"
        try:
            saved = rank_files.load(folder, self._trainer.args.process_index)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{_FUNCTION}: {error}. If it is another one, {remedy}"
            ) from None
        if saved["parameters"] != self._digest():
            raise ValueError(
                f"{_FUNCTION}: the votes' state in {folder} was saved with other parameters than "
                f"those that train() has loaded: {remedy}"
            )
        return saved["votes"]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer on every rank, once it has saved a checkpoint.

        Args:
            args, state, control: the Trainer's.
            kwargs: not used.
        """
        if self._state is not None and not args.save_only_model:
            more = {"parameters": self._digest()}
            saved = rank_files.contents(self._state, args.world_size, **more)
            rank_files.save(_folder(args, state), args.process_index, saved)

    def _digest(self) -> str:
        return rank_files.digest(self._model.parameters())


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
