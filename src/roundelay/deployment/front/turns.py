"""Long bodies take turns: however many are on their way, whoever has little to say is heard between them."""

import asyncio
from collections import deque

PER_TURN = 16
"""So many pieces of long bodies are worked on in each turn of the loop, which takes some milliseconds."""


class Turns:
    """All belongs to one loop. Nobody holds anything: a turn is over when its piece was worked on."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_next_asked = False

    async def turn(self) -> None:
        """Wait until it is this one's turn; who came first is first."""
        loop = asyncio.get_running_loop()
        if not self._is_next_asked:
            self._is_next_asked = True
            loop.call_soon(self._next)
        if self._left and not self._waiting:
            self._left -= 1
            return
        mine: asyncio.Future[None] = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _next(self) -> None:
        self._left, self._is_next_asked = self._per_turn, False
        while self._waiting and self._left:
            first = self._waiting.popleft()
            if not first.done():  # whoever waited may have hung up
                first.set_result(None)
                self._left -= 1
        if self._waiting:
            self._is_next_asked = True
            asyncio.get_running_loop().call_soon(self._next)
