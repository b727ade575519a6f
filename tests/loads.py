"""Many clients at once: their names, and what they heard until their answers were taken."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fronts import Said


def names(count: int) -> list[str]:
    return [f"site-{number + 1}" for number in range(count)]


@dataclass
class Told:
    """By verdict how many answers were settled, how often somebody was to come again, and how often it was not said
    when.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    without_time: int = 0


async def asked(told: Told, ask: Callable[[], Awaitable[Said]]) -> Said:
    """Ask until it is not "come again later", as an honest device does."""
    while True:
        said = await ask()
        if said.status != 503:
            return said
        told.busy += 1
        told.without_time += "Retry-After" not in said.headers
        await asyncio.sleep(float(said.headers.get("Retry-After", 1)))
