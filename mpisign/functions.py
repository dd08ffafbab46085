"""The collectives of ``Communicator`` as functions of an array and ``comm``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from mpisign import launcher
from mpisign.communicator import Communicator
from mpisign.connect import resolve
from mpisign.engine.engine import Engine

_LAUNCHED: list[Communicator] = []
_KEPT: dict[Any, tuple[Communicator, Any]] = {}  # with what the key's id belongs to
_COMM_ENTRY = "    comm: whatever ``Communicator`` takes; default: what the launcher started."


def communicator_for(function: str, comm: Any) -> Communicator:
    """The Communicator of what a front end was given as ``comm``.

    Made by the first call for it (collective), and kept as long as ``comm`` lives.
    """
    if isinstance(comm, Communicator):
        return comm
    mpi4py = sys.modules.get("mpi4py.MPI")
    if comm is not None and mpi4py is not None and isinstance(comm, mpi4py.Intracomm) and comm:
        from mpisign.transports import mpi

        kept = mpi.kept(comm)
        if kept is not None:
            return kept  # type: ignore[no-any-return]
    default = comm is None
    if default and _LAUNCHED:
        return _LAUNCHED[0]
    kind, comm, _ = resolve(function, comm)
    if kind == "mpi":
        from mpisign.transports import mpi

        kept = mpi.kept(comm)
        if kept is None:
            kept = Communicator(comm)
            mpi.keep(comm, kept)
        assert isinstance(kept, Communicator)
        if default and launcher.launched_size() is not None:
            _LAUNCHED.append(kept)  # what a launcher started stays the same
        return kept
    key = _key(kind, comm)
    if key not in _KEPT:
        _KEPT[key] = Communicator(kind if kind == "horovod" and comm is None else comm), comm
    return _KEPT[key][0]


def engine_of(function: str, comm: Any) -> Engine:
    """The engine of ``communicator_for(function, comm)``."""
    return communicator_for(function, comm).engine


def _key(kind: str, x: Any) -> Any:
    if kind == "horovod":
        import horovod.torch as hvd

        process_set = hvd.global_process_set if x is None else x
        # Elastic training changes the ranks behind a process set.
        return kind, process_set.process_set_id, process_set.rank(), process_set.size()
    return kind, id(x)


def _functional(method: Callable[..., Any], like: Callable[..., Any] | None = None) -> Any:
    """``method`` as a function with ``comm=None`` behind its arrays, for ``help()`` too.

    ``like``: the method whose options ``help()`` shows.
    """
    name = method.__name__
    own = list(inspect.signature(like or method).parameters.values())[1:]
    arrays = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    comm_parameter = inspect.Parameter("comm", kind, default=None, annotation="Any")
    returns = inspect.signature(method).return_annotation
    signature = inspect.Signature(
        [*arrays, comm_parameter, *own[len(arrays) :]], return_annotation=returns
    )
    n, known = len(arrays), frozenset(p.name for p in own[len(arrays) :])

    def function(*args: Any, **options: Any) -> Any:
        comm = None
        if len(args) != n or not known.issuperset(options):
            # A wrong call must raise before the communicator, whose making is collective.
            try:
                bound = signature.bind(*args, **options)
            except TypeError as error:
                raise TypeError(f"{name}() {error}") from None
            comm = bound.arguments.pop("comm", None)
            args = tuple(bound.arguments.pop(p.name) for p in arrays)
            options = bound.arguments
        return method(communicator_for(name, comm), *args, **options)

    function.__name__ = function.__qualname__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]
    doc = (inspect.getdoc(method) or "").replace("mpisign.Communicator().", "mpisign.")
    options = ", ".join(p.name for p in own[len(arrays) :])
    function.__doc__ = doc.replace("options: those of", f"{options}: as").replace(
        "\n\nReturns:", f"\n{_COMM_ENTRY}\n\nReturns:", 1
    )
    return function


majority_vote = _functional(Communicator.majority_vote)
majority_vote_async = _functional(Communicator.majority_vote_async, Communicator.majority_vote)
tally = _functional(Communicator.tally)
tally_async = _functional(Communicator.tally_async, Communicator.tally)
mean_of_signs = _functional(Communicator.mean_of_signs)
compressed_mean = _functional(Communicator.compressed_mean)
robust_aggregate = _functional(Communicator.robust_aggregate)
