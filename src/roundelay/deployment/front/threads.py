"""Work that blocks is done in threads, and a request may be cancelled meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

InThread = Callable[..., Awaitable[Any]]  # Any: what the function returns that runs there
_T = TypeVar("_T")


async def outlasting(work: "asyncio.Future[_T]") -> _T:
    """Return what comes of work in a thread; whoever is cancelled meanwhile ends when the work has."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
