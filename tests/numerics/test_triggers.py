"""Event triggers against optional stopping, in their limits, and the bugs that these must catch."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.messages import Memory
from roundelay.stages.triggers import (
    SENT,
    SILENT,
    Always,
    Lag,
    MaxSilence,
    Moment,
    SendOnDelta,
    Trigger,
    verdict,
)
from roundelay.stages.uplink import Uplink

Planting = Callable[[pytest.MonkeyPatch], None]
NEVER = SendOnDelta(threshold=math.inf)


def sendings(trigger: Trigger, points: Sequence[Tensor], model_steps: Sequence[float] = ()) -> list[int]:
    """Return the rounds, from 1, in which a client sends whose training ends at these points, one after another."""
    sent, memory, start = [], {}, torch.zeros_like(points[0])
    for number, point in enumerate(points, start=1):
        moment = Moment(number, memory, model_steps)
        came = verdict(trigger, point - start, start, moment)
        memory, start = {**memory, **came.memory}, point
        if came.fires:
            sent.append(number)
    return sent


# ---- a random walk: E[tau] d sigma^2 = E|S_tau|^2, a little above delta^2 -------------------------------------------


def check_random_walk() -> None:
    """Optional stopping (Wald's second identity): between two sendings a walk of unit steps in d dimensions needs
    E|S|^2 / d steps, and |S|^2 exceeds delta^2 by the overshoot of one step at most.
    """
    d, sigma, delta, rounds = 5, 0.5, 5.0, 6000
    draw = torch.Generator().manual_seed(1)
    points = (sigma * torch.randn(rounds, d, generator=draw, dtype=torch.float64)).cumsum(0) + 100
    sent = sendings(SendOnDelta(threshold=delta, of="point"), [torch.full((d,), 100.0, dtype=torch.float64), *points])
    assert len(sent) > 50
    path = torch.stack([torch.full((d,), 100.0, dtype=torch.float64), *points])
    squares = torch.tensor([
        float((path[now - 1] - path[before - 1]).square().sum()) for before, now in itertools.pairwise(sent)
    ])  # fmt: skip
    mean_tau = (sent[-1] - sent[0]) / (len(sent) - 1)
    assert squares.min() >= delta**2
    assert float(squares.mean()) <= (delta + 3 * sigma * math.sqrt(d)) ** 2
    spread = delta**2 / d / sigma**2 * math.sqrt(2 / d / (len(sent) - 1))  # of tau: about sqrt(2/d) of its mean
    assert abs(mean_tau - float(squares.mean()) / d / sigma**2) < 5 * spread


def norms_compared(patch: pytest.MonkeyPatch) -> None:
    init = SendOnDelta.__init__
    patch.setattr(SendOnDelta, "__init__", lambda self, **settings: init(self, **{**settings, "compare": "norms"}))


def threshold_squared(patch: pytest.MonkeyPatch) -> None:
    fires = SendOnDelta.fires
    patch.setattr(SendOnDelta, "fires", lambda self, *a: fires(replace(self, threshold=self.threshold**2), *a))


def compared_with_the_round_before(patch: pytest.MonkeyPatch) -> None:
    """What was not sent is remembered as if it had been."""
    judge = verdict

    def forgetful(trigger: Trigger, step: Tensor, start: Tensor, moment: Moment) -> object:
        came = judge(trigger, step, start, moment)
        return replace(came, memory={**came.memory, **trigger.remembered(step, start, moment)})

    patch.setitem(globals(), "verdict", forgetful)


def never_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SendOnDelta, "remembered", lambda self, step, start, moment: {})


WALKS: dict[str, Planting] = {
    "lengths compared, not vectors": norms_compared,
    "the threshold squared": threshold_squared,
    "compared with the round before": compared_with_the_round_before,
    "what was sent is forgotten": never_remembered,
}


def test_a_random_walk_is_sent_as_often_as_optional_stopping_says() -> None:
    check_random_walk()


@pytest.mark.parametrize("plant", WALKS.values(), ids=WALKS)
def test_the_check_of_walks_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_random_walk()


# ---- limits: threshold 0 is Always, infinity is silence but for its bound -------------------------------------------


def check_limits() -> None:
    points = [torch.full((3,), float(n % 4)) for n in range(12)]  # some steps are zero
    everything = list(range(1, 13))
    assert sendings(Always(), points) == everything
    for of in ("step", "point"):
        for compare in ("vectors", "norms"):
            nothing = SendOnDelta(threshold=0, of=of, compare=compare)
            for trigger in (nothing, replace(nothing, relative=True), replace(nothing, decaying=True), Lag(xi=0)):
                assert sendings(trigger, points, [1.0]) == everything
            for trigger in (
                replace(nothing, threshold=math.inf), replace(nothing, threshold=math.inf, relative=True, decaying=True)
            ):  # fmt: skip
                assert sendings(trigger, points) == []
                assert sendings(MaxSilence(rounds=3, then=trigger), points) == [4, 8, 12]
    assert sendings(MaxSilence(rounds=0, then=NEVER), points) == everything
    assert sendings(Lag(), points, []) == everything  # the model has not moved yet
    assert sendings(Lag(), points, [1e9]) == []


def above_not_at(patch: pytest.MonkeyPatch) -> None:
    """What changed by less than rounding does is held back."""
    fires = SendOnDelta.fires
    patch.setattr(SendOnDelta, "fires",
                  lambda self, *a: fires(replace(self, threshold=max(self.threshold, 1e-9)), *a))  # fmt: skip


def one_silent_round_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Moment, "silent_rounds", property(lambda self: int(self.memory.get(SILENT, torch.tensor(0))) - 1))


LIMITS: dict[str, Planting] = {
    "above the threshold, not at it": above_not_at,
    "one silent round more": one_silent_round_more,
    "silence is not counted": lambda patch: patch.setattr(Moment, "silent_rounds", 0),
}


def test_the_limits_of_every_rule() -> None:
    check_limits()


@pytest.mark.parametrize("plant", LIMITS.values(), ids=LIMITS)
def test_the_check_of_limits_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_limits()


# ---- LAG: in steps, as the paper has it in gradients ----------------------------------------------------------------


def test_lag_in_steps_is_lag_in_gradients() -> None:
    """|g - g_sent|^2 >= 1/(a M)^2 sum xi_d |theta step d|^2, with gradients g, rate a and M workers, is our rule for
    the steps -a M g that the server averages.
    """
    draw, a, workers, depth, xi = torch.Generator().manual_seed(3), 0.05, 9, 10, 0.8
    seen = set()
    for _ in range(200):
        g, sent = torch.randn(2, 4, generator=draw, dtype=torch.float64)
        models = torch.randn(depth, 4, generator=draw, dtype=torch.float64) * a * workers
        papers = (g - sent).square().sum() >= sum(xi / depth * m.square().sum() for m in models) / (a * workers) ** 2
        moment = Moment(5, {SENT: -a * workers * sent}, [float(m.square().sum()) for m in models])
        ours = Lag(xi=xi, depth=depth).fires(-a * workers * g, torch.zeros(4), moment)
        assert ours == bool(papers)
        seen.add(ours)
    assert seen == {True, False}


def test_lag_looks_at_the_newest_steps_only() -> None:
    step = torch.tensor([1.0])
    assert Lag(xi=1, depth=2).fires(step, step, Moment(9, {}, [1.0, 1.0, 1e9]))
    assert not Lag(xi=1, depth=2).fires(step, step, Moment(9, {}, [1.0, 1.1]))


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_norms_do_not_see_a_vector_that_turns() -> None:
    points = [torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0])]
    assert sendings(SendOnDelta(threshold=4, of="point"), points) == [1, 2]
    assert sendings(SendOnDelta(threshold=4, of="point", compare="norms"), points) == [1]


def test_relative_and_decaying_thresholds() -> None:
    steps = [torch.tensor([float(value)]) for value in (10, 11, 12, 14)]
    ends = list(torch.stack(steps).cumsum(0))
    assert sendings(SendOnDelta(threshold=0.15, relative=True), ends) == [1, 3]  # 12 - 10 >= 0.15 * 12 > 11 - 10
    assert sendings(SendOnDelta(threshold=3, decaying=True), ends) == [1, 3, 4]  # 3, 2.12, 1.73, 1.5


def test_what_a_client_remembers_comes_with_the_verdict_and_changes_nothing_by_itself() -> None:
    step, start = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])
    memory: Memory = {SENT: torch.zeros(2), SILENT: torch.tensor(2), "cursor": torch.tensor([1, 0])}
    held = verdict(SendOnDelta(threshold=9), step, start, Moment(4, memory))
    assert (held.fires, {name: int(value) for name, value in held.memory.items()}) == (False, {SILENT: 3})
    sent = verdict(SendOnDelta(threshold=2, of="point"), step, start, Moment(4, memory))
    assert sent.fires
    assert sent.memory[SENT].tolist() == [6, 7]
    assert int(sent.memory[SILENT]) == 0
    assert int(memory[SILENT]) == 2
    short = verdict(SendOnDelta(threshold=0, compare="norms"), step, start, Moment(1))
    assert short.memory[SENT].tolist() == [pytest.approx(math.sqrt(5))]
    assert verdict(Always(), step, start, Moment(1)).memory == {}


def test_an_update_that_is_not_finite_is_sent_for_the_guard_to_refuse() -> None:
    came = verdict(NEVER, torch.tensor([math.nan]), torch.zeros(1), Moment(1))
    assert (came.fires, came.why) == (True, "not finite")


@dataclass(frozen=True)
class OnSundays:
    """A user's own rule."""

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool:
        return moment.round % 7 == 0

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Memory:
        return {}


def test_a_rule_of_ones_own_may_be_bounded_too() -> None:
    points = [torch.zeros(1)] * 15
    assert sendings(OnSundays(), points) == [7, 14]
    assert sendings(MaxSilence(rounds=4, then=OnSundays()), points) == [5, 7, 12, 14]


def test_what_silence_means_has_to_be_said() -> None:
    with pytest.raises(ConfigError, match="on_silence must be one of 'exclude', 'zero', 'reuse', got None"):
        Uplink(trigger=NEVER)
    with pytest.raises(ConfigError, match="on_silence must be one of 'exclude', 'zero', 'reuse', got 'forget'"):
        Uplink(trigger=NEVER, on_silence="forget")
    with pytest.raises(ConfigError, match="threshold must be a number of at least 0, got -1"):
        SendOnDelta(threshold=-1)
    with pytest.raises(ConfigError, match="depth must be a whole number of at least 1, got 0"):
        Lag(depth=0)
    assert Uplink(trigger=Always(), on_silence="zero").skip_bits == 8
