"""A bad update harms only its sender: the result is bit-equal to a round without it, and the sender is named."""

import itertools
import math

import pytest
import torch
from bad_updates import TAMPERINGS, Scene, Tampering, check_harmless

from roundelay.errors import RoundelayError
from roundelay.guard import Guard, Reason, Refusal, all_finite


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("slot", [0, 1, 3])
@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_bad_update_harms_only_its_sender(scene: Scene, tampering: tuple[Tampering, Reason], slot: int) -> None:
    check_harmless(scene, tampering, Guard(), slot)


class Blind:
    """The planted bug: a guard that lacks one rule."""

    def __init__(self, missing: Reason) -> None:
        self.missing = missing

    def check(self, *args: object, **kwargs: object) -> Refusal | None:
        refusal = Guard().check(*args, **kwargs)
        return None if refusal is not None and refusal.reason is self.missing else refusal


@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS)
def test_the_test_catches_a_guard_without_the_rule(scene: Scene, tampering: tuple[Tampering, Reason]) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError, KeyError, OverflowError, ValueError, RoundelayError)):
        check_harmless(scene, tampering, Blind(tampering[1]), slot=1)


def test_a_second_answer_is_refused_and_the_first_one_stays(scene: Scene) -> None:
    again = scene.bad
    twice = scene.outcome([*scene.updates, again], Guard())
    assert scene.result(twice) == scene.result(scene.outcome(scene.updates, Guard()))
    assert twice.fold.count == 4
    with pytest.raises((AssertionError, IndexError)):  # the planted bug: a guard that counts it again
        assert scene.outcome([*scene.updates, again], Blind(Reason.DUPLICATE)).fold.count == 4


def test_finite_values_whose_sum_overflows_are_admitted() -> None:
    assert all_finite(torch.full((10,), 3e38))
    assert not all_finite(torch.tensor([math.inf, -math.inf]))


def test_every_arrival_order_gives_the_same_bits(scene: Scene) -> None:

    hashes = {scene.result(scene.outcome(list(p), Guard())) for p in itertools.permutations(scene.updates)}
    assert len(hashes) == 1


def test_a_window_that_spills_to_a_file_gives_the_same_bits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scene.result(scene.outcome(scene.updates, Guard()))
    monkeypatch.setattr("roundelay.intake.WINDOW_BYTES", 0)
    assert scene.result(scene.outcome(scene.updates[::-1], Guard())) == expected
