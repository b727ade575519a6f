"""Calls that are served together: what comes meanwhile makes the next turn, and each caller gets its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from roundelay.deployment.front.together import Together


def test_what_comes_while_one_turn_is_under_way_makes_the_next() -> None:
    turns: list[list[int]] = []

    def serve(some: Sequence[int]) -> list[int | Exception]:
        turns.append(list(some))
        return [ValueError(str(one)) if one == 3 else 10 * one for one in some]

    async def go() -> None:
        gate = asyncio.Event()

        async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
            await gate.wait()
            return work(*args)

        together = Together(serve, in_thread)
        calls = [asyncio.ensure_future(together(1))]
        await asyncio.sleep(0)
        calls += [asyncio.ensure_future(together(one)) for one in (2, 3, 4)]
        await asyncio.sleep(0)
        calls[1].cancel()  # who hangs up costs nobody else an answer
        gate.set()
        came = await asyncio.gather(*calls, return_exceptions=True)
        assert came[0] == 10
        assert isinstance(came[1], asyncio.CancelledError)
        assert isinstance(came[2], ValueError)
        assert came[3] == 40
        assert turns == [[1], [2, 3, 4]]
        assert await together(5) == 50

    asyncio.run(go())


def test_what_fails_for_all_is_told_to_all_and_the_next_turn_is_served() -> None:
    async def go() -> None:
        failing = True

        async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
            await asyncio.sleep(0)
            if failing:
                raise OSError("the disk")
            return work(*args)

        together: Callable[[int], Awaitable[int]] = Together(list, in_thread)
        for one in await asyncio.gather(together(1), together(2), return_exceptions=True):
            assert isinstance(one, OSError)
        failing = False
        assert await together(3) == 3

    asyncio.run(go())
