"""plan_majority_vote: the agreement and the memory of a vote, before its first call."""

from __future__ import annotations

from typing import Any

from mpisign import policies
from mpisign.backend import arrays
from mpisign.collectives import majority_vote
from mpisign.collectives.majority_vote import ArrayCall, check_options
from mpisign.collectives.vote_task import ArrayTask
from mpisign.engine.engine import Engine
from mpisign.engine.handle import Handle

_FUNCTION = "plan_majority_vote"


class MajorityVotePlan:
    """Votes of one length, dtype and policy: ``Communicator.plan_majority_vote`` makes it.

    Attributes:
        length: coordinates of ``x``.
        dtype: its dtype, by name.

    Example:
        >>> import numpy as np, mpisign
        >>> x = np.array([3.0, -0.5], np.float32)
        >>> plan = mpisign.Communicator().plan_majority_vote(x)
        >>> plan(x, out=x).tolist()
        [1.0, -1.0]
    """

    def __init__(self, engine: Engine, x: Any, groups: Any, options: dict[str, Any]) -> None:
        self._engine, self._groups, self._options = engine, groups, options
        self.length, self.dtype = 0, ""
        self._key: Any = None

        def make(number: int, step: int) -> Any:
            view = _view(x)
            self.length, self.dtype = view.length, view.dtype
            given = {**options, "step": step}
            partition = majority_vote.partition_option(engine, groups, given)
            if view.device != "cpu":
                raise TypeError(f"{_FUNCTION}: x must be in host memory, got {view.device}")
            check_options(_FUNCTION, **given)
            call = ArrayCall(engine, "majority_vote", ArrayTask, view, None, given, partition)
            self._key = call.key
            return call.make_plan

        engine.start(_FUNCTION, _FUNCTION, None, make).wait()

    @property
    def nbytes(self) -> int:
        """Bytes of the plan's buffers on this rank."""
        return sum(plan.nbytes for plan in self._engine.plans.of(self._key))

    def __call__(self, x: Any, *, step: int | None = None, out: Any = None) -> Any:
        """The vote on ``x``. Collective.

        Args:
            x: an array of the plan's length and dtype.
            step: key of the random bits, default the communicator's count of calls.
            out: C-contiguous, of x's shape and dtype; may be ``x``. Without it NumPy results
                take memory of earlier ones that nobody refers to; others are new.

        Returns:
            ``out``, or a new array of x's framework: +1, -1, or 0 where ``ties="zero"``.

        Raises:
            CollectiveError: as ``Communicator.majority_vote``, on all ranks alike; also where a
                rank calls something else than its plan.
        """
        if self._misfit(x):
            return self.start(x, step=step, out=out).wait()
        options = self._options
        return majority_vote.run(self._engine, x, out, self._groups, step=step, **options)

    def start(self, x: Any, *, step: int | None = None, out: Any = None) -> Handle:
        """``plan(x)`` that returns at once: ``wait()`` of the handle returns the result.

        Args:
            x: packed before this returns, and may be changed then.
            step, out: as in a call; ``out`` must be left alone until ``wait``.

        Returns:
            A handle: ``wait()`` returns the result or raises, ``done()`` never blocks.

        Raises:
            CollectiveError: as a call, out of ``wait()``.
        """
        misfit = self._misfit(x)
        if misfit:

            def make(number: int, step: int) -> Any:
                raise ValueError(f"majority_vote: {misfit}")

            return self._engine.start("majority_vote", "majority_vote", step, make)
        return majority_vote.start(
            self._engine, x, out, self._groups, True, step=step, **self._options
        )

    def free(self) -> None:
        """Releases the buffers. Not collective; no call may be in flight."""
        self._engine.plans.drop(self._key)

    def _misfit(self, x: Any) -> str:
        try:
            view = arrays.view_floats("majority_vote", "x", x)
        except (TypeError, ValueError) as error:  # which the other ranks must know of
            return str(error).removeprefix("majority_vote: ")
        if (view.length, view.dtype) == (self.length, self.dtype):
            return ""
        return (
            f"x must fit its plan of {self.length} coordinates of {self.dtype}, "
            f"got {view.length} of {view.dtype}"
        )


def _view(x: Any) -> arrays.View:
    """Of an array, or of (shape, dtype) without memory."""
    if not isinstance(x, tuple):
        return arrays.view_floats(_FUNCTION, "x", x)
    shape, dtype = x if len(x) == 2 else (None, None)
    dims = shape if isinstance(shape, (tuple, list)) else (shape,)
    numbers = [policies.whole(n) for n in dims]
    if None in numbers:
        raise TypeError(f"{_FUNCTION}: x must be an array or (shape, dtype), got {x!r}")
    name = arrays.float_name(_FUNCTION, "dtype", dtype)
    return arrays.View(None, 0, tuple(numbers), name, True, "cpu")  # type: ignore[arg-type]
