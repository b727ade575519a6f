"""Requests that wait for something to do, and what wakes them."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress


class Polls:
    """All belongs to one loop, but ``wake``."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closing = False

    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()

    def wake(self, clients: Collection[str] | None) -> None:
        """Have the polls of these clients look anew, or all of them. May be called from any thread, at any time."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(self._wake, None if clients is None else frozenset(clients))

    def close(self) -> None:
        """Have every poll end; those that come from now on do not wait."""
        self.closing = True
        self._wake(None)

    def _wake(self, clients: Collection[str] | None) -> None:
        for client in self._waiting if clients is None else self._waiting.keys() & set(clients):
            for woken in self._waiting[client]:
                woken.set()

    @contextmanager
    def watching(self, client: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at each wake, from now on; whoever has looked clears it before looking again."""
        woken = asyncio.Event()
        self._waiting.setdefault(client, set()).add(woken)
        try:
            yield woken
        finally:
            self._waiting[client].discard(woken)
            if not self._waiting[client]:
                del self._waiting[client]
