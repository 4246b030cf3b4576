"""A vendor's HTTP client that looks at the deadline with every piece it reads.

A server that keeps a connection alive, with comments or pings, gives its client nothing
to pass on: no token comes, and each ping begins the time-out of a read anew. A thread
that was given up would listen for as long as the server talks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from ._runnables import class_of
from ._scope import check


class _CheckedBytes:
    """A response's bytes; mixed into the class of what it reads from."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            check()
            yield piece

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()


class _CheckedClient:
    """What an HTTP client gains; mixed into its class."""

    def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        """Send a request, and read what is not streamed piece by piece."""
        sent: Any = super()
        response = sent.send(request, stream=True, **kwargs)
        cls = class_of(_CheckedBytes, type(response.stream))
        response.stream = cls(response.stream)
        if not stream:
            try:
                response.read()
            except BaseException:
                response.close()
                raise
        return response

    def __del__(self) -> None:
        """Leave the connections to the client that this is a copy of."""


def checked(client: Any) -> Any:
    """Return a copy of a sync `httpx` client; both share their connections."""
    copied: Any = copy.copy(client)
    copied.__class__ = class_of(_CheckedClient, type(client))
    copied.original = client  # whose end would close the connections
    return copied
