"""Clocks that jump a day: rounds close at the moments that a monotonic clock gives, and never under their quorum."""

import time
from collections.abc import Callable
from functools import cache

import pytest
from bad_updates import Scene
from fake_time import NUM_CLIENTS, run_on_fake_time
from figures import Figures
from networks import Plain

import roundelay as rd
from roundelay.deployment.running.calls import Calls
from roundelay.intake import Intake

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def scene() -> Scene:
    return Scene(NUM_CLIENTS, model=Plain)


def check_clocks(num_seeds: int, figures: Figures, seed: int = 0) -> None:
    came_to = [run_on_fake_time(f"{seed} {number}", scene()) for number in range(num_seeds)]
    figures("seeds, each with a wall clock that jumps up to a day", num_seeds)
    figures("attempts at rounds", sum(one.attempts for one in came_to))
    figures("closed at the very moment", sum(one.exact for one in came_to))
    figures("closed within what a loss takes", sum(one.attempts - one.exact for one in came_to))
    figures("pauses under the quorum", sum(one.pauses for one in came_to))


def test_rounds_close_when_they_must_whatever_the_wall_clock_says(figures: Figures) -> None:
    check_clocks(20, figures)


@pytest.mark.chaos
def test_three_hundred_runs_close_their_rounds_when_they_must(figures: Figures, chaos_seed: int) -> None:
    check_clocks(300, figures, chaos_seed)


# ---- planted bugs ---------------------------------------------------------------------------------------------------

Planting = Callable[[pytest.MonkeyPatch], None]


def wait_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Calls, "now_s", lambda self: time.time())


def be_content_with_less(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rd.Rounds, "shortfall", lambda self, outcome: outcome.fold.shortfall())


def look_at_heartbeats_only(patch: pytest.MonkeyPatch) -> None:
    rest = Calls._rest

    async def planted(self: Calls, until_s: float | None) -> None:
        await rest(self, None)

    patch.setattr(Calls, "_rest", planted)


def wait_for_the_silent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Calls, "_lose_the_silent", lambda self: None)


def wait_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "closed", property(lambda self: not self.open_tasks))


PLANTINGS: dict[str, Planting] = {
    "deadlines are the wall clock's": wait_by_the_wall_clock,
    "less than the quorum is enough": be_content_with_less,
    "a deadline waits for the next heartbeat": look_at_heartbeats_only,
    "the silent are waited for": wait_for_the_silent,
    "the goal is not enough": wait_for_all,
}


def run_many(board_by_wall: bool = False) -> None:
    for number in range(60):
        run_on_fake_time(f"planted {number}", scene(), board_by_wall)


@pytest.mark.parametrize("plant", PLANTINGS.values(), ids=PLANTINGS)
def test_the_check_of_clocks_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        run_many()  # the first that fails is enough


def test_the_check_of_clocks_catches_a_board_that_goes_by_the_wall() -> None:
    with pytest.raises(AssertionError):
        run_many(board_by_wall=True)
