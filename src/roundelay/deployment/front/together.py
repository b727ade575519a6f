"""Calls that come while one is under way are served together by the next: one sync does for all of them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from roundelay.deployment.front.threads import InThread

MOST_AT_ONCE = 64
"""Those of a crowd wait for their own batch, and not for that of all."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class Together(Generic[_T, _R]):
    """All belongs to one loop, but ``serve``, which is called in a thread, once at a time."""

    def __init__(self, serve: Callable[[Sequence[_T]], Sequence[_R | Exception]], in_thread: InThread) -> None:
        """``serve`` returns for each of those that it is given what comes of it, or what to raise."""
        self._serve, self._in_thread = serve, in_thread
        self._waiting: list[tuple[_T, asyncio.Future[_R]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def __call__(self, one: _T) -> _R:
        future: asyncio.Future[_R] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve_all())
        return await future

    async def _serve_all(self) -> None:
        try:
            while self._waiting:
                served, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                try:
                    came: Sequence[_R | Exception] = await self._in_thread(self._serve, [one for one, _ in served])
                except Exception as error:
                    came = [error] * len(served)
                for (_, future), result in zip(served, came, strict=True):
                    if future.done():  # whoever asked has hung up
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._serving = None
