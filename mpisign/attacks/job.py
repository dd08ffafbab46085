"""Adversaries: ranks of a real job that are hostile, for experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mpisign.attacks.base import Attack
from mpisign.attacks.names import by_name
from mpisign.attacks.side_channel import honest_rows
from mpisign.communicator import Communicator

if TYPE_CHECKING:
    import torch

_FUNCTION = "Adversaries"
_STREAM = 7  # in the generator's seed; batches and noise use other streams


class Adversaries:
    """Makes ranks ``hostile`` of ``comm`` follow ``attack``, for experiments.

    Gradients are changed between ``backward()`` and ``step()``: not with ``overlap=True``, nor
    where torch's DDP averages them first. In DETOX's groups honest rows repeat.

    Args:
        attack: A name of ``ATTACKS``, an ``Attack``, or a function of honest rows (n, d), NumPy, to
            (d,), such as ByzFL's attacks. The same on all ranks, like all arguments.
        hostile: The hostile ranks.
        comm: The job's communicator.
        seed: Seed of random attacks.
        momentum: Beta of what honest ranks send, 0.9 for ``Signum()``. The attack then gets the
            honest ranks' momenta, m = beta m + (1 - beta) g, and the gradient is set such that the
            hostile rank's own momentum becomes what the attack sends. 0: gradients.

    Raises:
        TypeError: ``comm`` is no Communicator, or ``attack`` of another type.
        ValueError: A value is out of range, or too few ranks are honest.

    Example:
        >>> import torch
        >>> from mpisign import simulation
        >>> def job(comm):
        ...     p = torch.nn.Parameter(torch.zeros(2))
        ...     p.grad = torch.ones(2)
        ...     Adversaries("sign-flip", [2], comm).gradients([p])
        ...     return p.grad.tolist()
        >>> simulation.run(3, job)
        [[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]
    """

    def __init__(
        self,
        attack: str | Attack | Callable[[Any], Any],
        hostile: Sequence[int],
        comm: Communicator,
        *,
        seed: int = 0,
        momentum: float = 0.0,
    ) -> None:
        if not isinstance(comm, Communicator):
            raise TypeError(f"{_FUNCTION}: comm must be a Communicator, got {type(comm).__name__}")
        self.hostile = tuple(sorted(int(r) for r in hostile))
        if sorted(set(self.hostile).intersection(range(comm.size))) != [*self.hostile]:
            raise ValueError(
                f"{_FUNCTION}: hostile must be distinct ranks from 0 to {comm.size - 1}, "
                f"got {list(hostile)}"
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"{_FUNCTION}: momentum must be in [0, 1), got {momentum!r}")
        self.attack = _attack(attack, len(self.hostile), [seed, comm.rank, _STREAM])
        self.honest = tuple(r for r in range(comm.size) if r not in self.hostile)
        self._looks = bool(self.hostile) and self.attack.replaces and self.attack.sees == "honest"
        if self._looks:
            if not self.honest:
                raise ValueError(
                    f"{_FUNCTION}: {self.attack.name} looks at honest ranks, of which hostile "
                    f"leaves none of {comm.size}"
                )
            self.attack.check(len(self.honest))
        self.comm = comm
        self.momentum = momentum if self.attack.momenta else 0.0
        self._momenta: Any = None  # of the honest ranks (n, d), on hostile ranks
        self._sent: Any = None  # the own momentum (d,)

    @property
    def here(self) -> bool:
        """Whether this rank is hostile."""
        return self.comm.rank in self.hostile

    def batch(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """The batch that this rank trains on. No communication.

        Args:
            images: NumPy array or torch tensor (n, ...).
            labels: The same, (n,).

        Returns:
            Both; changed on hostile ranks if the attack changes data.
        """
        return self.attack.batch(images, labels) if self.here else (images, labels)

    def gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replaces hostile ranks' gradients. Collective: between backward() and step().

        Where the attack uses honest rows, honest ranks send theirs to the hostile ranks: 4 d bytes
        (8 d with float64 parameters), not counted in the statistics.

        Args:
            parameters: The same on all ranks, any float dtype and device. A missing gradient counts
                as zeros; a hostile rank gets one if it sends anything else.

        Raises:
            DisagreementError: Ranks differ in d or in the hostile ranks.
        """
        if not self.hostile or not self.attack.replaces:
            return
        trained = [p for p in parameters if p.requires_grad]
        if self._looks:
            own = _flat(trained)
            reduced = honest_rows(
                self.comm,
                self.hostile,
                own,
                self._reduce if self.here else None,
                pieces=self.attack.coordinatewise,
                about=f"{self.attack!r} {self.momentum}",
            )
            if self.here:
                sent = self.attack.finish(own, reduced, len(self.honest))
                _write(self._compensated(sent), trained)
        elif self.here:
            _write(self.attack(_flat(trained)[None]), trained)

    def forget(self) -> None:
        """Restarts momenta at zero, as ``Compression.detox`` does with new groups."""
        self._momenta = self._sent = None

    def _reduce(self, rows: Any, first: int, length: int) -> Any:
        """Rows (n, b) from coordinate ``first`` of ``length`` on, as gradients or as momenta."""
        if self.momentum:
            if self._momenta is None or self._momenta.shape[1] != length:
                self._momenta = np.zeros((len(rows), length), dtype=rows.dtype)
            m = self._momenta[:, first : first + rows.shape[1]]
            m *= self.momentum
            m += rows * (1 - self.momentum)
            rows = m
        return self.attack.reduce(rows)

    def _compensated(self, wanted: Any) -> Any:
        """The gradient by which the own momentum becomes ``wanted``."""
        if not self.momentum:
            return wanted
        if self._sent is None or self._sent.shape != wanted.shape:
            self._sent = np.zeros_like(wanted)
        gradient = (wanted - self.momentum * self._sent) / (1 - self.momentum)
        self._sent = wanted
        return gradient


def _attack(attack: Any, f: int, seed: Sequence[int]) -> Attack:
    if isinstance(attack, str):
        return by_name(attack, f, seed)
    if isinstance(attack, Attack):
        return attack
    if not callable(attack):
        raise TypeError(
            f"{_FUNCTION}: attack must be a name, an Attack or a function of honest rows, "
            f"got {type(attack).__name__}"
        )
    return _Foreign(attack)


@dataclass(frozen=True, repr=False)
class _Foreign(Attack):
    """Another function of honest rows."""

    function: Callable[[Any], Any]
    coordinatewise: ClassVar[bool] = False

    def of(self, rows: Any) -> Any:
        return np.asarray(self.function(rows))

    def __repr__(self) -> str:
        return f"{type(self.function).__module__}.{type(self.function).__qualname__}"

    @property
    def name(self) -> str:
        return repr(self)


def _flat(parameters: Sequence[torch.Tensor]) -> Any:
    """All gradients in a row, NumPy float32, or float64 if a parameter is of it."""
    double = any(str(p.dtype) == "torch.float64" for p in parameters)
    flat = np.zeros(sum(p.numel() for p in parameters), dtype="float64" if double else "float32")
    for p, part in _parts(flat, parameters):
        if p.grad is not None:
            part.copy_(p.grad)
    return flat


def _write(vector: Any, parameters: Sequence[torch.Tensor]) -> None:
    from torch import empty_like

    for p, part in _parts(vector, parameters):
        if p.grad is None:
            # The vote skips a parameter for which no rank has a gradient.
            if not part.any():
                continue
            p.grad = empty_like(p)
        p.grad.copy_(part)


def _parts(
    vector: Any, parameters: Sequence[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each parameter with its part of the NumPy vector (d,), as a tensor of its shape."""
    import torch

    at = 0
    for p in parameters:
        part = np.ascontiguousarray(vector[at : at + p.numel()])
        at += p.numel()
        yield p, torch.from_numpy(part).view(p.shape)
