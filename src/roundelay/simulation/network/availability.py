"""When a client is there: a function of seed, client and moment, in whole nanoseconds of virtual time.

``is_available`` may be asked about any moment in any order. ``next_change_ns`` is the first later moment at which the
answer is another one; None is never.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from roundelay import seeds
from roundelay.errors import ConfigError, DataError
from roundelay.simulation.network.capacities import chosen
from roundelay.simulation.network.checks import check_choice, check_number, check_numbers
from roundelay.simulation.network.tables import rows_of

__all__ = ["Always", "Diurnal", "OnOff", "TracedAvailability"]
"""What a job file can name; the rest is for Python."""

NS = 1_000_000_000
DAY_S = 86_400.0


class Availability(Protocol):
    def is_available(self, seed: int, client: str, at_ns: int) -> bool: ...

    def next_change_ns(self, seed: int, client: str, at_ns: int) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """Nobody is ever away."""

    def is_available(self, seed: int, client: str, at_ns: int) -> bool:
        return True

    def next_change_ns(self, seed: int, client: str, at_ns: int) -> int | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnOff:
    """A Markov chain: there for ``mean_on_s``, away for ``mean_off_s``, each exponential; in its steady state at 0.

    With ``slot_s`` it changes at multiples of that only, and the times are geometric.

    The chain is drawn without a walk from the beginning: departures and returns come as two Poisson processes, of the
    rates 1/on and 1/off, whatever the state, and the last of either before a moment says how it stands. That makes the
    same chain, since a departure of who is away changes nothing. Both processes are drawn window by window.
    """

    mean_on_s: float
    mean_off_s: float
    slot_s: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "mean_on_s", "mean_off_s", above=0)
        if self.slot_s is not None:
            check_number(self, "slot_s", least=1 / NS)
            longest = 1 / (1 / self.mean_on_s + 1 / self.mean_off_s)
            if self.slot_s > longest:
                raise ConfigError(
                    f"OnOff: slot_s must be at most {longest:g}, 1 / (1/mean_on_s + 1/mean_off_s), got {self.slot_s!r}"
                )

    def is_available(self, seed: int, client: str, at_ns: int) -> bool:
        return self._returns.last(seed, client, at_ns) > self._departures.last(seed, client, at_ns)

    def next_change_ns(self, seed: int, client: str, at_ns: int) -> int | None:
        now = self.is_available(seed, client, at_ns)
        following = self._departures if now else self._returns
        change = following.after(seed, client, at_ns)
        while self.is_available(seed, client, change) == now:  # a return at the moment of a departure comes to nothing
            change = following.after(seed, client, change)
        return change

    @property
    def _departures(self) -> "_Moments":
        chance = None if self.slot_s is None else self.slot_s / self.mean_on_s
        return _Moments("departure", self.mean_on_s, self.slot_s, chance)

    @property
    def _returns(self) -> "_Moments":
        if self.slot_s is None:
            return _Moments("return", self.mean_off_s, None, None)
        with_nothing = 1 - self.slot_s / self.mean_on_s  # of the slots; in the others a return comes to nothing
        return _Moments("return", self.mean_off_s, self.slot_s, min(1.0, self.slot_s / self.mean_off_s / with_nothing))


@dataclass(frozen=True, slots=True)
class _Moments:
    """A Poisson process, or moments that each slot has with a chance of its own; drawn by windows of about one."""

    purpose: str
    mean_s: float
    slot_s: float | None
    chance: float | None

    def last(self, seed: int, client: str, at_ns: int) -> int:
        """Return the last moment up to and with ``at_ns``, which may lie before 0."""
        for window in count(at_ns // self._window_ns, -1):
            if past := [moment for moment in self._drawn(seed, client, window) if moment <= at_ns]:
                return past[-1]
        raise AssertionError("count() has no end")

    def after(self, seed: int, client: str, at_ns: int) -> int:
        for window in count(at_ns // self._window_ns):
            if later := [moment for moment in self._drawn(seed, client, window) if moment > at_ns]:
                return later[0]
        raise AssertionError("count() has no end")

    @property
    def _unit_ns(self) -> int:
        """A slot, or a nanosecond."""
        return 1 if self.slot_s is None else max(1, round(self.slot_s * NS))

    @property
    def _window_ns(self) -> int:
        return max(1, round(self.mean_s * NS / self._unit_ns)) * self._unit_ns

    def _drawn(self, seed: int, client: str, window: int) -> list[int]:
        found: list[int] = []
        units = 0.0 if self.chance is None else -1  # passed, in nanoseconds or in slots
        for number in count():
            gap = -math.log(seeds.uniform(seed, window, number, client, self.purpose))
            if self.chance is None:
                units += gap * self.mean_s * NS
            elif self.chance < 1:  # geometric: how many slots until one has a moment, itself counted
                units += 1 + math.floor(gap / -math.log1p(-self.chance))
            else:
                units += 1
            if units * self._unit_ns >= self._window_ns:
                return found
            found.append(window * self._window_ns + int(units) * self._unit_ns)
        raise AssertionError("count() has no end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """A share of the clients that follows a sine over the day, from ``lowest`` to ``highest``, which it reaches at
    ``peak_s``; each client is there in one stretch a day, the same every day.

    A client is there while the sine is above a threshold of its own, uniform between 0 and 1, so that the share at a
    moment is the sine's value. ``phase_spread_s`` shifts each client's day, uniformly, as time zones do.
    """

    lowest: float = 0.1
    highest: float = 0.9
    peak_s: float = 2 * 3600.0
    phase_spread_s: float = 0.0
    period_s: float = DAY_S

    def __post_init__(self) -> None:
        check_number(self, "lowest", least=0, most=1)
        check_number(self, "highest", least=self.lowest, most=1)
        check_number(self, "peak_s")
        check_number(self, "phase_spread_s", least=0)
        check_number(self, "period_s", least=1e-6)

    def is_available(self, seed: int, client: str, at_ns: int) -> bool:
        begins_ns, length_ns = self._stretch(seed, client)
        return (at_ns - begins_ns) % self._period_ns < length_ns

    def next_change_ns(self, seed: int, client: str, at_ns: int) -> int | None:
        begins_ns, length_ns = self._stretch(seed, client)
        if length_ns in (0, self._period_ns):
            return None
        since = (at_ns - begins_ns) % self._period_ns
        return at_ns - since + (length_ns if since < length_ns else self._period_ns)

    @property
    def _period_ns(self) -> int:
        return round(self.period_s * NS)

    def _stretch(self, seed: int, client: str) -> tuple[int, int]:
        """Return when a client's stretch begins, and how long it is."""
        threshold = seeds.uniform(seed, 0, 0, client, "availability")
        if not self.lowest < threshold < self.highest:
            return 0, self._period_ns if threshold <= self.lowest else 0
        level = 2 * (threshold - self.lowest) / (self.highest - self.lowest) - 1
        length_s = self.period_s * math.acos(level) / math.pi
        shift_s = self.phase_spread_s * (seeds.uniform(seed, 0, 0, client, "time zone") - 0.5)
        length_ns = min(round(length_s * NS), self._period_ns)
        return round((self.peak_s + shift_s) * NS) - length_ns // 2, length_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedAvailability:
    """Stretches from a CSV file, ``client,start_s,end_s``, read when this is made; a client is there from a start up to
    its end, without that. ``repeat_s`` begins the trace anew after that time.

    A client that it does not name is refused, or with ``unknown`` "draw" has another's trace, drawn by the seed.
    """

    path: str | os.PathLike[str]
    repeat_s: float | None = None
    unknown: str = "refuse"
    _changes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)  # start, end, start, end ...

    def __post_init__(self) -> None:
        check_choice(self, "unknown", "refuse", "draw")
        if self.repeat_s is not None:
            check_number(self, "repeat_s", least=1e-9)
        object.__setattr__(self, "_changes", _read_stretches(self.path, self.repeat_s))

    def is_available(self, seed: int, client: str, at_ns: int) -> bool:
        return bisect_right(self._of(seed, client), self._in_trace(at_ns)) % 2 == 1

    def next_change_ns(self, seed: int, client: str, at_ns: int) -> int | None:
        changes, moment = self._of(seed, client), self._in_trace(at_ns)
        now, later = self.is_available(seed, client, at_ns), changes[bisect_right(changes, moment) :]
        candidates = [at_ns + change - moment for change in later]
        if self.repeat_s is not None:  # its last end may be the moment of its first start, which is no change
            rest = changes[: len(changes) - len(later)]
            candidates += [at_ns + change - moment + round(self.repeat_s * NS) for change in rest]
        return next((c for c in candidates if self.is_available(seed, client, c) != now), None)

    def _in_trace(self, at_ns: int) -> int:
        return at_ns if self.repeat_s is None else at_ns % round(self.repeat_s * NS)

    def _of(self, seed: int, client: str) -> tuple[int, ...]:
        if client not in self._changes and self.unknown == "draw":
            client = chosen(seed, client, self._changes, "availability trace")
        if client not in self._changes:
            raise ConfigError(f'{self.path}: no trace for client {client!r}; unknown = "draw" gives it one of others')
        return self._changes[client]


def _read_stretches(path: str | os.PathLike[str], repeat_s: float | None) -> dict[str, tuple[int, ...]]:
    """Return each client's changes, ascending, with stretches that overlap or touch made one."""
    found: dict[str, list[tuple[int, int]]] = {}
    for client, (start_s, end_s) in rows_of(path, ("start_s", "end_s")):
        if not 0 <= start_s <= end_s or (repeat_s is not None and end_s > repeat_s):
            last = "" if repeat_s is None else f" <= repeat_s = {repeat_s:g}"
            raise DataError(f"{path}: client {client!r}: expected 0 <= start_s <= end_s{last}, got {start_s}, {end_s}")
        found.setdefault(client, []).append((round(start_s * NS), round(end_s * NS)))
    if not found:
        raise DataError(f"{path}: it holds no stretches")
    merged: dict[str, tuple[int, ...]] = {}
    for client, stretches in found.items():
        changes: list[int] = []
        for start, end in sorted(stretches):
            if changes and start <= changes[-1]:
                changes[-1] = max(changes[-1], end)
            elif start < end:
                changes += [start, end]
        merged[client] = tuple(changes)
    return merged
