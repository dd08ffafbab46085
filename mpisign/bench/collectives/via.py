"""The libraries that connect ranks, as the peers and the clock use them.

These are raw calls of MPI, Gloo and Horovod, without mpisign's transports: peers are measured as
their users call them. Only buffers are sent; nothing is pickled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from mpisign.experiments.errors import SettingsError

Bytes = npt.NDArray[np.uint8]
_MESSAGE = 512  # bytes of an error message that reach the other ranks

T = TypeVar("T")


class Via(ABC):
    """All ranks of the job over one library. Every method but ``stop`` is collective."""

    name: ClassVar[str]
    rank: int
    size: int
    #: What connects the ranks, for the report.
    library: str

    @abstractmethod
    def barrier(self) -> None:
        """Returns when every rank has called it."""

    @abstractmethod
    def allgather(self, send: Bytes, received: Bytes) -> None:
        """Every rank's ``send`` (n,) into ``received`` (size, n)."""

    @abstractmethod
    def alltoall(self, send: Bytes, received: Bytes) -> None:
        """Row r of ``send`` (size, n) into row ``rank`` of rank r's ``received`` (size, n)."""

    @abstractmethod
    def shift(self, by: int, send: Bytes, received: Bytes) -> None:
        """``send`` (n,) to rank + by, ``received`` (n,) from rank - by, modulo the size."""

    @abstractmethod
    def argument(self) -> Any:
        """The argument of ``mpisign.Communicator`` for these ranks."""

    @abstractmethod
    def methods(self) -> Iterator[Any]:
        """The library's own ``CollectiveMethod``s: allreduces, and more where it has them."""

    def stop(self) -> None:  # noqa: B027 (MPI has no threads to end)
        """Ends the library's threads, if it has any, before the process ends."""

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Every rank's ``values`` (n,), of one n and dtype: (size, n), on every rank."""
        send = np.array(values, order="C").view(np.uint8)  # torch warns of what it may not write to
        received = np.empty((self.size, len(send)), dtype=np.uint8)
        self.allgather(send, received)
        return received.view(values.dtype)

    def gather_text(self, text: str) -> list[str]:
        """Every rank's ``text``, cut to 512 bytes of UTF-8, in rank order."""
        buffer = np.zeros(_MESSAGE, dtype=np.uint8)
        encoded = np.frombuffer(text.encode()[:_MESSAGE], dtype=np.uint8)
        buffer[: len(encoded)] = encoded
        rows = self.gather(buffer)
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]

    def agreed(self, action: Callable[[], T]) -> T:
        """``action()``, or the first rank's error as a SettingsError on all of them."""
        text, value = "", None
        try:
            value = action()
        except Exception as error:
            text = one_line(error)
        for rank, error_text in enumerate(self.gather_text(text)):
            if error_text:
                raise SettingsError(error_text if rank == 0 else f"rank {rank}: {error_text}")
        return value  # type: ignore[return-value]  # no rank raised, so action() returned


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SettingsError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
