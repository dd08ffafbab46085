"""The key-value store of horovodrun's Gloo launcher, for notices."""

from __future__ import annotations

import os
from http.client import HTTPConnection
from urllib.parse import quote

_SECONDS = 0.5  # the launcher answers within a millisecond or two, or never


class HTTPStore:
    """A store for ``Mailbox`` over HTTP: raw values at ``/scope/key``.

    Horovod's own client pickles, and urllib uses proxies; this does neither.
    """

    def __init__(self, address: str, port: int, scope: str) -> None:
        self._address, self._port = address, port
        self._scope = quote(scope, safe="")

    @classmethod
    def of_launcher(cls, scope: str) -> HTTPStore | None:
        """The store of the launcher that started this process; None if it has none."""
        address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
        port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")
        return cls(address, int(port), scope) if address and port.isdecimal() else None

    def put(self, key: str, value: bytes) -> None:
        if self._ask("PUT", key, value) is None:
            raise OSError("the launcher's store does not take notices")

    def get(self, key: str) -> bytes | None:
        return self._ask("GET", key)

    def _ask(self, method: str, key: str, body: bytes | None = None) -> bytes | None:
        """The body of a successful answer, else None."""
        connection = HTTPConnection(self._address, self._port, timeout=_SECONDS)
        try:
            connection.request(method, f"/{self._scope}/{quote(key, safe='')}", body)
            answer = connection.getresponse()
            return answer.read() if answer.status == 200 else None
        finally:
            connection.close()
