"""Many chunks of a small tensor, as of a large one."""

from __future__ import annotations

from mpisign.transports.base import Transport


def small_messages(monkeypatch, nbytes):
    """Until the test is over every wire likes messages of so many bytes."""
    kinds = [Transport]
    for kind in kinds:
        kinds += kind.__subclasses__()
        monkeypatch.setattr(kind, "message", nbytes)
