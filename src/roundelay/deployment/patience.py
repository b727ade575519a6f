"""How long to wait for a server: for ever, ever less often, and saying so."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from roundelay.deployment.device.trouble import LONGEST_S, Again, OwnDisk, Refusal, Unreachable

FIRST_S = 0.5
SAY_S = 60.0
TRIES = 3
"""A signature that was refused is made anew so often: an answer may have been lost after its request was counted."""

UNSIGNED = 401
Trouble = Unreachable | Again | OwnDisk
TROUBLE = (Unreachable, Again, OwnDisk)
_T = TypeVar("_T")
Sleep = Callable[[float], Awaitable[object]]


class Backoff:
    """The next pause: twice the one before, up to a longest one."""

    def __init__(self, longest_s: float = LONGEST_S, first_s: float = FIRST_S) -> None:
        self._longest_s = longest_s
        self._next_s = min(first_s, longest_s)

    def pause_s(self, draw: float) -> float:
        """Return half to all of it, so that those who were cut off together do not come back together. ``draw`` is
        from [0, 1).
        """
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._longest_s)
        return pause_s * (0.5 + draw / 2)


class Patience:
    def __init__(
        self,
        say: Callable[[str], None],
        sleep: Sleep,
        now_s: Callable[[], float],
        draw: Callable[[], float],
        longest_s: float = LONGEST_S,
    ) -> None:
        """``now_s`` must be monotonic; ``draw`` returns numbers from [0, 1)."""
        self._say, self._sleep, self._now_s, self._draw, self._longest_s = say, sleep, now_s, draw, longest_s
        self._said_s: float | None = None

    async def insist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until there is an answer.

        Raises:
            Refusal: the server will not.
        """
        backoff, tries = self.backoff(), 0
        while True:
            try:
                answer = await ask()
            except TROUBLE as trouble:
                await self.rest(trouble, backoff)
            except Refusal as refusal:
                tries += 1
                if refusal.status != UNSIGNED or tries >= TRIES:
                    raise
                await self._sleep(backoff.pause_s(self._draw()))
            else:
                self.well()
                return answer

    def backoff(self) -> Backoff:
        return Backoff(self._longest_s)

    async def rest(self, trouble: Trouble, backoff: Backoff) -> None:
        """Wait before another try."""
        self.mention(trouble)
        after_s = trouble.after_s if isinstance(trouble, Again) else 0.0
        await self._sleep(max(after_s, backoff.pause_s(self._draw())))

    def mention(self, trouble: Trouble) -> None:
        """Say what is wrong, at first and then once a minute."""
        now_s = self._now_s()
        if self._said_s is None or now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            self._say(f"waiting: {trouble}")

    def well(self) -> None:
        """Note that the server answers, and say so where it was said that it did not."""
        if self._said_s is not None:
            self._said_s = None
            self._say("it goes on: the server answers")
