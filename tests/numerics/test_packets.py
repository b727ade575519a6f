"""Packets that are lost, against the negative binomial distribution, and the bugs that this must catch."""

from collections.abc import Callable

import numpy as np
import pytest

from roundelay import seeds
from roundelay.errors import ConfigError
from roundelay.simulation.network.packets import Arq, Crossing, Erasure

Planting = Callable[[pytest.MonkeyPatch], None]
DRAWS = 4000


def key(number: int, client: str = "alice") -> int:
    return seeds.key(7, number, 0, client, "packets")


def check_tries() -> None:
    """Mean n/(1-q) and variance nq/(1-q)^2 of the tries of n packets, within five standard errors."""
    for q, n in ((0.1, 40), (0.5, 10), (0.9, 1)):
        arq = Arq(packet_bits=100)
        sent = [arq.crossing(100 * n, key(number), q) for number in range(DRAWS)]
        tries = np.array([one.bits / 100 for one in sent])
        assert all(one.retransmitted_bits == one.bits - 100 * n and not one.lost for one in sent)
        mean, variance = n / (1 - q), n * q / (1 - q) ** 2
        assert abs(tries.mean() - mean) < 5 * np.sqrt(variance / DRAWS)
        kurtosis = 3 + 6 / n + (1 - q) ** 2 / (n * q)
        assert abs(tries.var() - variance) < 5 * variance * np.sqrt((kurtosis - 1) / DRAWS)


def one_draw_for_all(patch: pytest.MonkeyPatch) -> None:
    right = Arq._tries

    def same(self: Arq, n: int, q: float, key: int) -> object:
        return np.full(n, right(self, 1, q, key)[0])

    patch.setattr(Arq, "_tries", same)


def lost_for_received(patch: pytest.MonkeyPatch) -> None:
    right = Arq._tries
    patch.setattr(Arq, "_tries", lambda self, n, q, key: right(self, n, 1 - q, key))


def tries_from_zero(patch: pytest.MonkeyPatch) -> None:
    right = Arq._tries
    patch.setattr(Arq, "_tries", lambda self, n, q, key: right(self, n, q, key) - 1)


def expected_tries(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Arq, "_tries", lambda self, n, q, key: np.full(n, 1 / (1 - q)))


def decibels(patch: pytest.MonkeyPatch) -> None:
    right = Arq._tries
    patch.setattr(Arq, "_tries", lambda self, n, q, key: right(self, n, 10 ** (-q / 10), key))


TRIES: dict[str, Planting] = {
    "one draw for all packets": one_draw_for_all,
    "q for 1 - q": lost_for_received,
    "the first try not counted": tries_from_zero,
    "the mean in place of a draw": expected_tries,
    "a probability taken for decibels": decibels,
}


def test_the_number_of_tries_has_its_mean_and_its_variance() -> None:
    check_tries()


@pytest.mark.parametrize("plant", TRIES.values(), ids=TRIES)
def test_the_check_of_tries_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_tries()


def test_the_last_packet_is_as_long_as_what_is_left() -> None:
    for number in range(200):
        crossing = Arq(loss_probability=0.5, packet_bits=1000).crossing(2001, key(number))
        tries_of_last = crossing.bits % 1000  # of a packet of one bit
        assert tries_of_last >= 1
        assert crossing.bits - tries_of_last >= 2000


def test_a_packet_that_is_lost_too_often_ends_its_message_there() -> None:
    outcomes = [
        Arq(loss_probability=0.5, packet_bits=100, max_tries=2).crossing(350, key(number)) for number in range(DRAWS)
    ]
    lost = [one for one in outcomes if one.lost]
    assert all(one.lost == "a packet was lost 2 times" for one in lost)
    assert abs(len(lost) / DRAWS - (1 - 0.75**4)) < 5 * np.sqrt(0.25 / DRAWS)
    assert {one.bits for one in lost} >= {200, 300, 400}  # lost with the first packet, or later
    assert max(one.bits for one in outcomes) <= 2 * 350
    assert Arq(loss_probability=1, packet_bits=100, max_tries=3).crossing(350, key(0)) == Crossing(
        300, 200, "a packet was lost 3 times"
    )


def test_an_erased_message_was_sent_all_the_same() -> None:
    outcomes = [Erasure(loss_probability=0.2).crossing(1234, key(number)) for number in range(DRAWS)]
    assert {one.bits for one in outcomes} == {1234}
    lost = sum(bool(one.lost) for one in outcomes) / DRAWS
    assert abs(lost - 0.2) < 5 * np.sqrt(0.16 / DRAWS)
    assert not Erasure(loss_probability=1.0).crossing(5, key(0), loss_probability=0.0).lost
    assert "probability 1" in Erasure().crossing(5, key(0), loss_probability=1.0).lost


def test_what_befalls_a_message_follows_from_its_key_alone() -> None:
    arq = Arq(loss_probability=0.3, packet_bits=10)
    assert arq.crossing(1000, key(1)) == arq.crossing(1000, key(1))
    assert arq.crossing(1000, key(1)) != arq.crossing(1000, key(1, "bob"))
    longer = arq.crossing(2000, key(1))  # the same luck for the packets that both have: codecs are compared under it
    assert longer.retransmitted_bits >= arq.crossing(1000, key(1)).retransmitted_bits
    assert Arq().crossing(77, key(1)) == Crossing(77)


def test_losses_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError, match="Arq: loss_probability must be at least 0 and at most 1, got"):
        Arq(loss_probability=1.5)
    with pytest.raises(ConfigError, match="a loss of 1 needs max_tries"):
        Arq(loss_probability=1)
    with pytest.raises(ConfigError, match="loses every packet"):
        Arq().crossing(10, 1, loss_probability=1.0)
    with pytest.raises(ConfigError, match="Erasure: loss_probability must be a probability, got nan"):
        Erasure().crossing(10, 1, loss_probability=float("nan"))
    with pytest.raises(ConfigError, match="packet_bits must be a whole number of at least 1, got 0"):
        Arq(packet_bits=0)
