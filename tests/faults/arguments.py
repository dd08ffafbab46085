"""Ranks that call something else than the others, or with other values."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from faults.kinds import OPTIMIZERS, OURS, kind

_VOTE = ("functions",)
_STATE = ("plain", "overlap", "ddp", "mpisign.horovod")


@kind("alike", fronts=OURS)
def skips_a_call(fault: Any) -> None:
    """Leaves one step out, and is done before the others."""
    fault.skip = True


@kind("named", fronts=_VOTE, told=True)
def calls_another_function(fault: Any) -> None:
    """Calls tally where the others vote."""
    fault.front.comm.tally(fault.front.values(fault.step))


@kind("named", fronts=_VOTE, told=True)
def another_length(fault: Any) -> None:
    """A tensor that is one longer."""
    fault.front.lengthen()


@kind("named", fronts=_VOTE, told=True)
def another_dtype(fault: Any) -> None:
    """float64 where the others have float32."""
    fault.front.dtype = "float64"


@kind("named", fronts=_VOTE, told=True)
def another_step(fault: Any) -> None:
    """Another number of the step."""
    fault.front.shift = 1


@kind("named", fronts=_VOTE, told=True, settings={"algorithm": "alltoall"})
def another_algorithm(fault: Any) -> None:
    """allgather where the others have alltoall."""
    fault.front.options["algorithm"] = "allgather"


@kind("named", fronts=_VOTE, told=True)
def no_tensor(fault: Any) -> None:
    """A list where an array is due."""
    fault.front.dtype = "list"


@kind("named", when="start", told=True)
def another_seed(fault: Any) -> None:
    """Another seed than the others have, from the start."""
    fault.front.options["seed"] = 12345


@kind("named", when="start", told=True)
def other_ties(fault: Any) -> None:
    """Another rule for ties, from the start."""
    fault.front.options["ties"] = "random"


@kind("named", fronts=("plain", "overlap", "mpisign.horovod"), when="start", told=True)
def another_size_of_a_parameter(fault: Any) -> None:
    """A model with one layer of another size, from the start."""
    fault.front.shapes[1] = (144,)


@kind("named", fronts=("plain", "overlap", "mpisign.horovod"), when="start", told=True)
def another_bucket_size(fault: Any) -> None:
    """Other buckets than the others have, from the start."""
    fault.front.options["bucket_size"] = 1  # every parameter alone


# mpisign.horovod warns: Horovod's broadcast may follow.
@kind("named", fronts=OPTIMIZERS[:3], when="start", told=True)
def other_parameters(fault: Any) -> None:
    """Starts with other parameters than the others have: a forgotten seed or broadcast."""
    fault.front.offset = 1.0


@kind("named", told=True)
def a_nan(fault: Any) -> None:
    """One NaN in its gradient."""


@kind("right", settings={"compression": "sign"})
def an_infinity(fault: Any) -> None:
    """One infinite value in its gradient, which is a vote as any other."""


@kind("right", fronts=OPTIMIZERS[:3] + ("mpisign.horovod",), settings={"compression": "sign"})
def no_gradient(fault: Any) -> None:
    """One parameter is not used on this rank: it abstains."""


@kind("named", fronts=("plain",), told=True)
def a_sparse_gradient(fault: Any) -> None:
    """A sparse gradient where the others' are dense."""
    fault.front.sparse = True


@kind("named", fronts=OPTIMIZERS)
def another_learning_rate(fault: Any) -> None:
    """Its learning rate parts from the others': a scheduler that looks at its own loss."""
    fault.front.optimizer.param_groups[0]["lr"] /= 2


@kind("named", fronts=("overlap", "ddp", "mpisign.horovod"), when="between")
def changes_its_votes(fault: Any) -> None:
    """Clips the votes between the exchange and the step."""
    for p in fault.front.optimizer.param_groups[0]["params"]:
        p.grad.mul_(0.01)


def _loads(fault: Any, change: Any) -> None:
    saved = fault.front.state_dict()
    change(saved)
    fault.front.load_state_dict(saved)


@kind("named", fronts=_STATE)
def loads_another_checkpoint(fault: Any) -> None:
    """Loads a checkpoint of a later step than the others are at."""

    def later(saved: Any) -> None:
        saved["steps"] += 7

    _loads(fault, later)


@kind("named", fronts=_STATE)
def loads_a_checkpoint_without_steps(fault: Any) -> None:
    """Loads a checkpoint whose number of steps is None."""

    def without(saved: Any) -> None:
        saved["steps"] = None

    _loads(fault, without)


@kind("either", fronts=_STATE, settings={"compression": "signum"})
def loads_a_checkpoint_without_a_momentum(fault: Any) -> None:
    """Loads a checkpoint in which one parameter has no momentum."""

    def without(saved: Any) -> None:
        del saved["state"][next(iter(saved["state"]))]

    _loads(fault, without)


def _variable(name: str, value: str, ends: str, **more: Any) -> Any:
    def act(fault: Any) -> None:
        os.environ[name] = value

    act.__name__ = f"{name.lower().removeprefix('mpisign_')}_{more.pop('what')}"
    act.__doc__ = f"{name}={value} on this rank alone."
    return kind(ends, when="start", fronts=("functions", "plain", "ddp"), **more)(act)


_variable("MPISIGN_CHECK_EVERY", "3", "either", what="differs")
_variable("MPISIGN_CHECK_EVERY", "often", "named", what="is_no_number")
_variable("MPISIGN_TIMEOUT", "soon", "named", what="is_no_number")
_variable("MPISIGN_TIMEOUT", "30", "right", what="differs")
_variable("MPISIGN_NUM_THREADS", "2", "right", what="differs")
_variable("MPISIGN_DEBUG", "1", "right", what="differs")
_variable("MPISIGN_ISA", "portable", "right", what="differs")
_variable(
    "MPISIGN_COSTS", "/no/such/file", "named", what="is_missing", says="MPISIGN_COSTS", ranks=(3, 4)
)


@kind(
    "named",
    fronts=("functions", "plain", "ddp"),
    when="start",
    says="MPISIGN_COSTS",
    told=True,
    ranks=(3, 4),
)
def costs_of_its_own(fault: Any) -> None:
    """MPISIGN_COSTS, a good file, on this rank alone."""
    from mpisign.collectives.costs import Costs

    with tempfile.NamedTemporaryFile(suffix=".json", delete=False) as file:
        os.environ["MPISIGN_COSTS"] = file.name
    Costs(1e-5, 1e-9, 0.0, 0.0).save(file.name)
