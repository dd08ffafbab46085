"""Stop requests: what one rank was asked by a signal, and what all ranks know since an exchange."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_OFTEN = (signal.SIGUSR1, signal.SIGUSR2)  # may reach a rank twice, and mean no harm


class StopRequest:
    """What this rank was asked, and what its ranks agreed on.

    ``asked``: on this rank, or on others with which it has agreed since. ``agreed``: an exchange
    has carried it, so that all its ranks know. ``round``: counts what was taken back.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self.round = 0

    def agree(self) -> None:
        """An exchange carried the request of some rank to all."""
        self.asked = self.agreed = True

    def withdraw(self) -> None:
        """Takes everything back."""
        self.asked = self.agreed = False
        self.round += 1


class StopChannel:
    """Carries a request over the exchanges of one communicator, once."""

    def __init__(self) -> None:
        self._request = current()
        self._carried = -1  # the request's round

    @property
    def asking(self) -> bool:
        """Whether the next exchange must carry a request of this rank."""
        request = self._request
        return request.asked and self._carried != request.round

    def carried(self) -> None:
        """An exchange of this communicator did."""
        self._request.agree()
        self._carried = self._request.round


class _OfThread(threading.local):
    request: StopRequest | None = None


_PROCESS = StopRequest()
_OF_THREAD = _OfThread()


def current() -> StopRequest:
    """That of the process, or of the thread that is a rank."""
    return _OF_THREAD.request or _PROCESS


def thread_is_a_rank() -> None:
    """This thread has requests of its own from now on."""
    _OF_THREAD.request = StopRequest()


def request_stop(stop: bool = True) -> None:
    """Asks all ranks to stop, from this one: ``stop_requested()`` is True after the next exchange.

    Not collective, and safe in a signal handler.

    Args:
        stop: False takes back what was asked and agreed. Then all ranks must call it, after the
            same exchange.

    Example:
        >>> import mpisign, numpy as np
        >>> mpisign.request_stop()
        >>> mpisign.stop_requested()  # not agreed on yet
        False
        >>> _ = mpisign.majority_vote(np.ones(3, np.float32))
        >>> mpisign.stop_requested()
        True
        >>> mpisign.request_stop(False)
    """
    request = current()
    if stop:
        request.asked = True
    else:
        request.withdraw()


def stop_requested() -> bool:
    """Whether any rank was asked to stop, as all ranks agreed in an exchange that has ended.

    Ranks that call this after the same exchange get the same answer, so that all leave their
    training loop after the same step, with replicas that are equal. Not collective: the request
    travels with votes, averages and counters that are exchanged anyway (a vote that carries one
    takes a header more). Of several communicators each carries it once; the answer is the same on
    the ranks of the first that did.

    Returns:
        True once ``request_stop()`` of any rank was carried, until ``request_stop(False)``.

    Example:
        >>> import mpisign
        >>> mpisign.stop_requested()
        False
    """
    return current().agreed


def stop_on_signals(*numbers: int) -> None:
    """Has signals of this process call ``request_stop()``, from the main thread.

    A second signal of the same number does what it did before, so that a job that waits for a lost
    rank can still be ended. SIGUSR1 and SIGUSR2, where they would only have killed the process, may
    come as often as they like: a batch system signals all processes, and a launcher passes it on.

    Args:
        numbers: of the signals, default SIGTERM (``scancel``, launchers) and SIGUSR1
            (``#SBATCH --signal=USR1@60``).

    Raises:
        ValueError: from another thread than the main one.

    Example:
        >>> import os, signal, mpisign, numpy as np
        >>> mpisign.stop_on_signals(signal.SIGUSR1)
        >>> os.kill(os.getpid(), signal.SIGUSR1)  # from outside: kill -USR1, scancel
        >>> _ = mpisign.majority_vote(np.ones(3, np.float32))
        >>> mpisign.stop_requested()
        True
        >>> mpisign.request_stop(False)
    """
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        if before[number] is not signal.SIG_DFL or number not in _OFTEN:
            signal.signal(number, before[number])
        request_stop()

    for number in numbers or (signal.SIGTERM, signal.SIGUSR1):
        found = signal.getsignal(number)
        if found is not ask:
            before[number] = signal.SIG_DFL if found is None else found
            signal.signal(number, ask)
