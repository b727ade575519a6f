"""Readiness: a round begins when enough of its clients are not busy with something else.

As in the protocol of FATE's federated object detection benchmark, the server asks each client that was drawn for its
load, and goes on when more than a share of them is under the limits; else it waits, ever longer, and asks again. There
a client's load average must be below 0.4, the share is one half, and who is above is left out of the round.
"""

import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from roundelay.errors import ConfigError
from roundelay.federation import Federation
from roundelay.intake import ClientReport
from roundelay.load import Load

log = logging.getLogger(__name__)

GROWTH = 2.0
SHOWN = 5
"""So many clients are named where it is said for whom a round waits."""


@dataclass(frozen=True, slots=True)
class Begun:
    """How a round begins: who trains, by id, and who was left out, with the reason; how many were ready, and how often
    the server waited for that.
    """

    cohort: tuple[str, ...]
    left_out: tuple[ClientReport, ...]
    num_ready: int
    num_waits: int


@dataclass(frozen=True, slots=True)
class Readiness:
    """Begin a round when more than ``share`` of the clients that were drawn are ready.

    A client is ready when every reading that it knows is below its limit (that of the battery: not below it); None is
    no limit. What it does not know is not held against it. A client that does not answer within ``answer_s`` is not
    ready. While too few are, the server waits ``first_wait_s``, then twice as long, up to ``longest_wait_s``, and asks
    the same clients again. Waits that come to ``give_up_s`` together are enough: then the round begins with all of
    them; None is to wait for ever. ``busy`` says what becomes of the others when a round begins: they are left out
    ("skip"), or asked to train like everybody else ("ask").
    """

    share: float = 0.5
    cpu_percent: float | None = 80.0
    memory_percent: float | None = 90.0
    gpu_percent: float | None = 80.0
    battery_percent: float | None = 20.0
    first_wait_s: float = 5.0
    longest_wait_s: float = 60.0
    give_up_s: float | None = None
    answer_s: float = 60.0
    busy: str = "skip"

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"readiness share must be at least 0 and below 1, got {self.share!r}: more than this "
                              "share of the clients must be ready")  # fmt: skip
        for name in ("cpu_percent", "memory_percent", "gpu_percent", "battery_percent"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise ConfigError(f"readiness {name} must be from 0 to 100, got {value!r}")
        for name in ("first_wait_s", "longest_wait_s", "answer_s"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"readiness {name} must be a positive number of seconds, got {value!r}")
        if self.longest_wait_s < self.first_wait_s:
            raise ConfigError(f"readiness longest_wait_s = {self.longest_wait_s!r} is below first_wait_s = "
                              f"{self.first_wait_s!r}")  # fmt: skip
        if self.give_up_s is not None and not self.give_up_s > 0:
            raise ConfigError(f"readiness give_up_s must be positive, got {self.give_up_s!r}")
        if self.busy not in ("skip", "ask"):
            raise ConfigError(f'readiness busy must be "skip" or "ask", got {self.busy!r}')

    async def gathered(self, fed: Federation, number: int, attempt: int, cohort: tuple[str, ...], quorum: int) -> Begun:
        """Wait until enough of a cohort are ready, and at least ``quorum``."""
        waited_s, wait_s = 0.0, self.first_wait_s
        for num_waits in itertools.count():
            loads = await fed.loads(number, attempt, cohort, self.answer_s)
            reasons = {client: reason for client in cohort if (reason := self.excess(loads.get(client))) is not None}
            ready = tuple(client for client in cohort if client not in reasons)
            if self._enough(len(ready), len(cohort), quorum):
                if self.busy == "ask":
                    return Begun(cohort, (), len(ready), num_waits)
                left_out = tuple(ClientReport(client, "busy", reason) for client, reason in reasons.items())
                return Begun(ready, left_out, len(ready), num_waits)
            needed = f"more than {self.share:.0%} are needed" + (f", and at least {quorum}" if quorum > 1 else "")
            why = (f"round {number}: {len(ready)} of {len(cohort)} clients are ready, {needed}; not ready: "
                   f"{_named(reasons)}")  # fmt: skip
            if self.give_up_s is not None and waited_s >= self.give_up_s:
                log.warning("%s; after %g s of waiting it begins with all of them", why, waited_s)
                return Begun(cohort, (), len(ready), num_waits)
            log.log(logging.INFO if num_waits else logging.WARNING, "%s; asking again in %g s", why, wait_s)
            await fed.rest(wait_s, why)
            waited_s, wait_s = waited_s + wait_s, min(GROWTH * wait_s, self.longest_wait_s)
        raise AssertionError("counting does not end")

    def excess(self, load: Load | None) -> str | None:
        """Return what keeps a client of this load from being ready, in words; None: nothing. No load: no answer.

        >>> Readiness(cpu_percent=40).excess(Load(cpu_percent=97.0))
        'cpu_percent 97'
        """
        if load is None:
            return "no answer"
        for name, value in load.readings.items():
            limit: float | None = getattr(self, name)
            if limit is None:
                continue
            if value < limit if name == "battery_percent" else value >= limit:
                return f"{name} {value:.4g}"
        return None

    def _enough(self, num_ready: int, num_asked: int, quorum: int) -> bool:
        # rounded: in floats, a share of 0.29 of 100 clients is a hair less than 29
        return not num_asked or (num_ready > round(self.share * num_asked, 9) and num_ready >= min(quorum, num_asked))


def _named(reasons: Mapping[str, str]) -> str:
    shown = [f"{client} ({why})" for client, why in itertools.islice(reasons.items(), SHOWN)]
    return ", ".join(shown) + (f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else "")
