"""How a Horovod job ends after a collective broke off."""

from __future__ import annotations

import os
import sys
import threading

_LAST_SECONDS = 5.0
_STOPS = threading.Event()  # Horovod is being shut down
_OVER = threading.Event()  # and has been


def expect() -> None:
    """Prepares for ``shut_down``: threads cannot start when the program ends."""
    if not any(t.name == _watch.__name__ for t in threading.enumerate()):
        threading.Thread(target=_watch, name=_watch.__name__, daemon=True).start()


def shut_down(hvd: object, rank: int) -> None:
    """Shuts Horovod down, as its own exit handler would, but not for ever.

    Horovod waits for all ranks, and over MPI for one that is stopped too. A process that ends with
    an error makes the launcher end the others.
    """
    _watch.rank = rank  # type: ignore[attr-defined]
    _STOPS.set()
    hvd.shutdown()  # type: ignore[attr-defined]
    _OVER.set()


def _watch() -> None:
    _STOPS.wait()
    if _OVER.wait(_LAST_SECONDS):
        return
    sys.stdout.flush()
    print(
        f"mpisign: rank {_watch.rank} ends the job: Horovod "  # type: ignore[attr-defined]
        f"waits for ranks {_LAST_SECONDS:.0f} s after a collective broke off",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
