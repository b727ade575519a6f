"""Who is chosen, by which rule; and a user's own transfer."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.errors import ConfigError
from roundelay.simulation.network.selection import BestChannel, Candidate, Choice, FedCs, RoundRobin, selected
from roundelay.simulation.network.transfer import Link, Transferred, transferred


def choice(candidates: list[Candidate], count: int = 2, round: int = 1) -> Choice:
    return Choice(round, 0, count, candidates, seed=7)


def round_s(order: list[Candidate]) -> float:
    """Return how long a round takes that uploads in this order, one after another, once the slowest has the model."""
    free = 0.0
    for one in order:
        free = max(free, one.compute_s) + one.upload_s
    return max((one.download_s for one in order), default=0.0) + free


def test_fedcs_takes_who_adds_least_and_keeps_the_deadline() -> None:
    fast = Candidate(client="fast", compute_s=1, upload_s=2)
    late = Candidate(client="late", compute_s=4, upload_s=1)  # its computing hides behind the upload of the first
    slow = Candidate(client="slow", compute_s=1, upload_s=9)
    far = Candidate(client="far", compute_s=0, upload_s=math.inf)
    some = choice([far, fast, late, slow])
    assert FedCs(deadline_s=14.5)(some) == ["fast", "late", "slow"]
    assert FedCs(deadline_s=14)(some) == ["fast", "late"]
    assert FedCs(deadline_s=14.5, overhead_s=1)(some) == ["fast", "late"]
    assert FedCs(deadline_s=3)(some) == []


def test_fedcs_on_drawn_clients_keeps_its_deadline_and_leaves_nobody_who_fits_behind() -> None:
    draw = random.Random(5)
    for _ in range(30):
        some = [
            Candidate(client=f"c{i}", compute_s=draw.uniform(0, 5), upload_s=draw.uniform(0.1, 3),
                      download_s=draw.uniform(0, 1)) for i in range(8)
        ]  # fmt: skip
        by_name = {one.client: one for one in some}
        chosen = [by_name[name] for name in FedCs(deadline_s=10)(choice(some))]
        assert round_s(chosen) < 10
        best = max(
            (
                n
                for n in range(9)
                if any(round_s(list(order)) < 10 for order in itertools.permutations(some[:5], min(n, 5)))
            ),
        )
        assert len(chosen) >= min(best, 3)
        for left in set(some) - set(chosen):
            assert round_s([*chosen, left]) >= 10


def test_the_best_channels_and_whose_turn_it_is() -> None:
    some = [Candidate(client=f"c{i}", rate_bps=float(i % 3), last_asked=i % 2) for i in range(6)]
    assert sorted(BestChannel()(choice(some))) == ["c2", "c5"]
    assert {one[1] for one in RoundRobin()(choice(some, 3))} == {"0", "2", "4"}
    asked = dict.fromkeys((one.client for one in some), 0)
    turns = []
    for number in range(1, 7):
        now = [Candidate(client=name, last_asked=last) for name, last in asked.items()]
        turn = selected(RoundRobin(), choice(now, 2, number))
        turns.append(turn)
        asked.update(dict.fromkeys(turn, number))
    assert turns[:3] == turns[3:]
    assert sorted(itertools.chain(*turns[:3])) == sorted(asked)


def test_equal_channels_are_drawn_from_and_not_by_name() -> None:
    some = [Candidate(client=f"c{i:02}") for i in range(40)]
    drawn = {selected(BestChannel(), choice(some, 3, number)) for number in range(20)}
    assert len(drawn) == 20
    without = [one for one in some if one.client != "c39"]
    assert all(
        set(selected(BestChannel(), choice(some, 3, n))) - {"c39"}
        <= set(selected(BestChannel(), choice(without, 3, n)))
        for n in range(20)
    )


def test_a_users_function_chooses_among_those_who_are_there() -> None:
    some = [Candidate(client=name, num_examples=len(name), snr_db=3.0) for name in ("a", "bb", "ccc")]

    def largest(choice: Choice) -> list[str]:
        return [one.client for one in choice.candidates if one.num_examples > 1]

    assert selected(largest, choice(some)) == ("bb", "ccc")
    with pytest.raises(ConfigError, match="chose 'z' for round 1, who is not among the 3 candidates"):
        selected(lambda _: ["a", "z"], choice(some))
    with pytest.raises(ConfigError, match="chose a client twice"):
        selected(lambda _: ["a", "a"], choice(some))
    with pytest.raises(ConfigError, match="deadline_s must be above 0, got 0"):
        FedCs(deadline_s=0)


LINK = Link("alice", "up", 3, 5, rate_bps=1e6, snr_db=10.0)


def test_a_users_transfer_is_taken_at_its_word_if_it_makes_sense() -> None:
    def noisy(vector: Tensor, link: Link, generator: torch.Generator) -> tuple[Tensor, int, float]:
        assert link.rate_bps is not None
        return vector + torch.randn(3, generator=generator), 96, 96 / link.rate_bps

    def sent() -> Transferred:
        return transferred(noisy, torch.zeros(3), LINK, seeds.generator(7, 3, 0, "alice", "transfer"))

    assert (sent().bits, sent().duration_ns) == (96, 96_000)
    assert sent().vector.equal(sent().vector)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (None, "must return .vector, bits, seconds., got NoneType for 'alice'"),
        ((torch.zeros(2), 8, 1.0), "like the one it got, .3,. torch.float32; for 'alice' it returned .2,."),
        ((torch.zeros(3, dtype=torch.float64), 8, 1.0), "torch.float64"),
        (([0.0] * 3, 8, 1.0), "it returned list"),
        ((torch.zeros(3), 8.5, 1.0), "a whole number of bits of at least 0, got 8.5"),
        ((torch.zeros(3), -8, 1.0), "got -8"),
        ((torch.zeros(3), 8, math.nan), "must return seconds, at least 0, got nan"),
        ((torch.zeros(3), 8, -1.0), "got -1.0"),
        ((torch.zeros(3), math.nan, 1.0), "a whole number of bits"),
        ((torch.zeros(3), "8", 1.0), "a whole number of bits"),
        ((torch.zeros(3), 8, "1"), "must return seconds"),
    ],
)
def test_a_users_transfer_that_makes_no_sense_is_told_why(result: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        transferred(lambda *_: result, torch.zeros(3), LINK, torch.Generator())
