"""The interface of an attack: what a hostile rank sends, given what honest ranks send."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

from mpisign import policies
from mpisign.backend import arrays

Sees = Literal["honest", "own", "nothing"]
_HALVES = ("float16", "bfloat16")


class Attack(ABC):
    """What hostile ranks send: ``attack(honest)``, (n, d) -> (d,).

    Attributes:
        sees: The rows that hostile ranks get in a job: "honest" (those of the honest ranks), "own"
            (their own gradient as the only row) or "nothing" (rows whose values do not matter).
        coordinatewise: Whether a coordinate of the result depends on that coordinate of the rows
            alone, so that a job may process them in pieces.
        momenta: Whether the rows of a job may be momenta instead of gradients.

    Example:
        >>> import numpy as np
        >>> from mpisign.attacks import SignFlipping
        >>> SignFlipping()(np.array([[1.0, 4.0], [3.0, 0.0]])).tolist()
        [-2.0, -2.0]
    """

    sees: ClassVar[Sees] = "honest"
    coordinatewise: ClassVar[bool] = True
    momenta: ClassVar[bool] = True

    def __call__(self, honest: Any) -> Any:
        """The vector that hostile ranks send.

        Args:
            honest: The honest ranks' rows: NumPy or CuPy array or torch tensor (n, d), float32,
                float64, float16 or bfloat16 (computed in float32), or a list of n vectors (d,).

        Returns:
            A vector (d,) of the same framework and dtype.

        Raises:
            TypeError: ``honest`` is of another type.
            ValueError: It has another shape, or ``check`` refuses n rows.
        """
        rows = stacked(self.name, honest)
        self.check(len(rows))
        return like(self.of(wide(rows)), rows)

    @abstractmethod
    def of(self, rows: Any) -> Any:
        """The attack's formula; subclasses define it.

        Args:
            rows: (n, d), float32 or float64.

        Returns:
            The vector (d,) that is sent.
        """

    def check(self, n: int) -> None:  # noqa: B027
        """Checks that the attack works with the rows; by default any number will do.

        Args:
            n: Number of rows; ValueError if they are too few.
        """

    def reduce(self, rows: Any) -> Any:
        """What ``finish`` needs of the rows; a job calls it for pieces of the coordinates.

        Args:
            rows: (n, d), of the honest ranks.

        Returns:
            An array (k, d); by default the attack's vector, k = 1.
        """
        return self(rows)[None]

    def finish(self, own: Any, reduced: Any, n: int) -> Any:
        """The vector that a hostile rank sends in a job.

        Args:
            own: Its own gradient (d,).
            reduced: The result of ``reduce``, (k, d).
            n: Number of honest rows.

        Returns:
            A vector (d,).
        """
        return reduced[0]

    def batch(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """The batch that a hostile rank trains on.

        Args:
            images: NumPy array or torch tensor (n, ...).
            labels: The same, (n,).

        Returns:
            Both; by default as they were given.
        """
        return images, labels

    @property
    def replaces(self) -> bool:
        """Whether gradients are replaced; False for attacks on the data."""
        return True

    @property
    def name(self) -> str:
        """The attack's name in messages."""
        return type(self).__name__


def stacked(function: str, rows: Any) -> Any:
    """``rows`` as one array (n, d), n at least 1; TypeError, ValueError if they are none."""
    if isinstance(rows, (list, tuple)):
        if not rows:
            raise ValueError(f"{function}: honest must have at least one row, got none")
        views = [arrays.view_floats(function, "honest", row) for row in rows]
        if len({(v.framework, v.shape, v.dtype) for v in views}) > 1:
            raise ValueError(
                f"{function}: honest must have rows of one framework, shape and dtype, got "
                + ", ".join(f"{v.dtype} {v.shape}" for v in views)
            )
        rows = _framework(rows[0]).stack(list(rows))
    v = arrays.view_floats(function, "honest", rows)
    if len(v.shape) != 2 or not v.shape[0]:
        raise ValueError(f"{function}: honest must be of shape (n, d), n from 1, got {v.shape}")
    return rows.detach() if v.is_torch else rows


def check_from_0(attack: Attack, field: str, *, integer: bool = False) -> None:
    """ValueError unless the field is a number, or an integer, from 0."""
    value = getattr(attack, field)
    if (integer and policies.whole(value) is None) or not value >= 0:
        least = "an int from 0" if integer else "at least 0"
        raise ValueError(f"{attack.name}: {field} must be {least}, got {value!r}")


def copied(x: Any) -> Any:
    """A copy of an array or tensor."""
    return x.clone() if arrays.is_torch(x) else x.copy()


def wide(x: Any) -> Any:
    """``x``, or float32 of what is narrower."""
    if str(x.dtype).removeprefix("torch.") not in _HALVES:
        return x
    return x.float() if arrays.is_torch(x) else x.astype(np.float32)


def like(x: Any, rows: Any) -> Any:
    """``x`` in the dtype of ``rows``."""
    return x.to(rows.dtype) if arrays.is_torch(rows) else x.astype(rows.dtype, copy=False)


def filled(rows: Any, value: Any) -> Any:
    """A vector (d,) of ``rows``' framework, dtype and device: ``value``, or NumPy's (d,) as is."""
    if arrays.is_torch(rows):
        import torch

        if isinstance(value, np.ndarray):
            return torch.from_numpy(value).to(device=rows.device, dtype=rows.dtype)
        return torch.full_like(rows[0], value)
    out = _framework(rows).empty_like(rows[0])
    cupy = sys.modules.get("cupy")
    if isinstance(value, np.ndarray) and cupy is not None and isinstance(rows, cupy.ndarray):
        value = cupy.asarray(value)
    out[...] = value
    return out


def variance(rows: Any) -> Any:
    """Of each coordinate among ``rows`` (n, d), n at least 2, divided by n - 1."""
    return rows.var(dim=0, correction=1) if arrays.is_torch(rows) else rows.var(axis=0, ddof=1)


def _framework(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return np
    return sys.modules["torch" if arrays.is_torch(x) else "cupy"]
