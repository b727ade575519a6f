"""Central differential privacy: the accountant's published values, what one client can move, the noise, the clip."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Awkward, Plain, federated, small_job

import roundelay as rd
from roundelay import privacy
from roundelay.errors import ConfigError
from roundelay.messages import Payload, Task, Update
from roundelay.privacy import CentralDP, Noised, noise_key

pytest.importorskip("dp_accounting", reason="the accountant comes with the extra: pip install 'roundelay[privacy]'")
DP = CentralDP(noise_multiplier=1.0, clip_norm=0.5, delta=1e-3)
NOTHING = torch.empty(0)


def fold(dp: CentralDP, expected: float = 4, clip: float | None = None) -> Noised:
    sent = Payload({"params": torch.tensor([1.0, -2.0, 0.5])}, NOTHING, NOTHING)
    lengths = {"params": 3, "control": 2}
    return Noised.begin(dp, {"params": "examples", "control": "one"}, lengths, sent, clip, expected, noise_key(1, 1, 0))


def update(client: str, step: list[float], weight: float = 1.0) -> Update:
    vector = torch.tensor(step)
    vectors = {"params": torch.tensor([1.0, -2.0, 0.5]) + vector[:3], "control": vector[3:]}
    return Update(Task(1, client, 1), Payload(vectors, NOTHING, NOTHING), weight)


# ---- the accountant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta", "epsilon"),
    [
        (0.04, 1.5, 2250, 1e-5, 7.32911117143),  # Opacus' test of its RDP accountant, whose orders are finer
        (1.0, 4.530877117, 1, 1e-6, 1.0),  # dp-accounting's calibration of one Gaussian
        (1.0, 1.0, 1, 1e-5, 4.728507),  # in closed form
        (0.01, 1.0, 1000, 1e-5, 2.101365),
        (5000 / 763430, 1.0, 5000, 1e-9, 4.1833),  # McMahan 2018 by the improved conversion; 4.634 by the classic one
    ],
)
def test_epsilon_is_that_of_published_examples(
    rate: float, noise: float, rounds: int, delta: float, epsilon: float
) -> None:
    assert CentralDP(noise, 1.0, delta).epsilon(rate, rounds) == pytest.approx(epsilon, rel=2e-4)


def test_the_noise_on_the_sum_leaves_the_budget_whole() -> None:
    """z_delta and sigma_b together cost what z alone would: z**-2 = z_delta**-2 + (2 sigma_b)**-2."""
    adaptive = CentralDP(0.8, 1.0, 1e-5, target_quantile=0.5)
    assert adaptive.sum_noise(100) ** -2 + (2 * 100 / 20) ** -2 == pytest.approx(0.8**-2)
    assert CentralDP(0.8, 1.0, 1e-5).sum_noise(100) == 0.8
    with pytest.raises(ConfigError, match=r"quantile_noise = 0\.1 spends more than all.*must be above 0\.4"):
        CentralDP(0.8, 1.0, 1e-5, target_quantile=0.5, quantile_noise=0.1).sum_noise(100)


# ---- the fold -------------------------------------------------------------------------------------------------------


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_normal", lambda key, size: torch.zeros(size, dtype=torch.float64).numpy())


def test_all_vectors_are_clipped_together_and_divided_by_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    without_noise(monkeypatch)
    round_ = fold(DP)
    round_.add(update("a", [0.3, 0.0, 0.0, 0.4, 0.0], weight=9))  # norm 0.5: as it is, whatever weight it claims
    round_.add(update("b", [0.0, 6.0, 0.0, 0.0, 8.0]))  # norm 10: a twentieth of it
    total = round_.totals()[0]
    torch.testing.assert_close(total.mean("params"), torch.tensor([1 + 0.3 / 4, -2 + 0.3 / 4, 0.5]))
    torch.testing.assert_close(total.mean("control"), torch.tensor([0.4 / 4, 0.4 / 4]))


STEPS = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=5, max_size=5)


def check_influence(steps: list[list[float]], mine: list[float]) -> None:
    one, other = fold(DP), fold(DP)
    for number, step in enumerate(steps):
        one.add(update(f"c{number}", step))
        other.add(update(f"c{number}", step))
    other.add(update("me", mine))
    moved = (one._sum.double() - other._sum.double()).norm()
    slack = 1e-6 * len(steps)  # sums are float32
    assert moved <= DP.clip_norm * (1 + 1e-6) + slack


@given(st.lists(STEPS, max_size=4), STEPS)
@settings(max_examples=60, deadline=None)
def test_one_client_moves_the_sum_by_the_clip_norm_at_most(steps: list[list[float]], mine: list[float]) -> None:
    check_influence(steps, mine)


def test_the_influence_test_would_see_a_missing_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noised, "add", lambda self, u: self._sum.add_(torch.cat([*u.payload.vectors.values()])))
    with pytest.raises(AssertionError):
        check_influence([], [3.0, 0.0, 0.0, 0.0, 0.0])


def noise_of(dp: CentralDP, expected: float) -> torch.Tensor:
    sent = Payload({"params": torch.zeros(1_000_000)}, NOTHING, NOTHING)
    empty = Noised.begin(dp, {"params": "one"}, {"params": 1_000_000}, sent, None, expected, noise_key(3, 1, 0))
    return empty.totals()[0].mean("params")


def check_noise(dp: CentralDP, expected: float) -> None:
    wanted = dp.noise_multiplier * dp.clip_norm / expected
    assert float(noise_of(dp, expected).std()) == pytest.approx(wanted, rel=0.005)
    assert abs(float(noise_of(dp, expected).mean())) < 5 * wanted / 1000


def test_a_round_to_which_nobody_came_is_noise_of_the_stated_size() -> None:
    check_noise(CentralDP(noise_multiplier=1.5, clip_norm=2.0, delta=1e-5), expected=10)


def test_the_noise_test_would_see_half_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = privacy._normal
    monkeypatch.setattr(privacy, "_normal", lambda key, size: sound(key, size) / 2)
    with pytest.raises(AssertionError):
        check_noise(CentralDP(noise_multiplier=1.5, clip_norm=2.0, delta=1e-5), expected=10)


def test_the_same_round_has_the_same_noise_and_another_round_another() -> None:
    first, again, other = (privacy._normal(noise_key(1, number, 0), 4) for number in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).all()


def test_the_clip_follows_the_quantile_of_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms 1 to 100, each client in every round: the clip settles where nine tenths of them lie below."""
    dp = CentralDP(0.5, clip_norm=0.1, delta=1e-5, target_quantile=0.9)
    clip: float | None = None
    for number in range(150):
        round_ = fold(dp, expected=100, clip=clip)
        round_.noise_key = noise_key(7, number, 0)
        round_._below = sum(norm <= round_.clip for norm in range(1, 101))
        clip = round_.clip_norm
    assert clip == pytest.approx(90, rel=0.1)


# ---- jobs -----------------------------------------------------------------------------------------------------------


def job(**changes: object) -> rd.Job:
    settings = {"model": Plain, "privacy": DP, "clients_per_round": 0.5, "num_rounds": 4}
    return small_job(**{**settings, **changes})


def test_every_round_says_its_epsilon_and_nothing_of_single_clients() -> None:
    rounds = list(job().rounds())
    epsilons = [finished.metrics["epsilon"] for finished in rounds]
    assert epsilons == [DP.epsilon(0.5, number) for number in (1, 2, 3, 4)]
    assert "train_loss" not in rounds[0].row
    assert all(not report.metrics and not report.num_examples for finished in rounds for report in finished.clients)


def test_cohorts_are_drawn_client_by_client() -> None:
    sizes = [row["admitted"] for row in job(num_rounds=20, learner=lambda model, part, task: (1, {})).run().rows]
    assert len(set(sizes)) > 2
    assert sum(sizes) / len(sizes) == pytest.approx(3, abs=0.6)


@pytest.mark.parametrize("dp", [DP, CentralDP(1.0, 0.5, 1e-3, target_quantile=0.5, quantile_noise=2.0)],
                         ids=["fixed", "adaptive"])  # fmt: skip
def test_the_same_bits_in_every_executor_and_after_a_resume(dp: CentralDP, tmp_path: Path) -> None:
    whole = job(privacy=dp).run()
    pooled = job(privacy=dp, simulation=rd.Simulation(num_workers=2)).run()
    tracked = job(privacy=dp, tracking=rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0))
    for finished in tracked.rounds():
        if finished.number == 2:
            break
    resumed = tracked.run(resume=tmp_path / "run")
    assert len({whole.sha256, pooled.sha256, resumed.sha256}) == 1
    for name in ("epsilon", "clip_norm"):
        assert [row[name] for row in whole.rows] == [row[name] for row in resumed.rows]
    assert math.isfinite(whole.metrics["epsilon"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": Awkward}, r"BatchNorm statistics.*keep_local = \[\"@batch_norm\"\]"),
        ({"evaluation": rd.Evaluation(clients_every=1)}, "does not cover what clients measure"),
        ({"workflow": rd.Rounds(goal=2)}, "members are drawn by chance alone"),
        ({"workflow": rd.Buffered(2)}, "reckoned for synchronous rounds"),
        ({"aggregator": rd.CoordinateMedian(f=1)}, "unknown sensitivity"),
    ],
)  # fmt: skip
def test_what_would_release_more_than_is_counted_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        job(**changes).run()


def test_batchnorm_that_stays_at_home_is_no_release() -> None:
    assert job(model=Awkward, keep_local=["@batch_norm"], data=federated).run().metrics["epsilon"] > 0


@pytest.mark.parametrize(
    "make",
    [lambda: CentralDP(0, 1, 1e-5), lambda: CentralDP(1, -1, 1e-5), lambda: CentralDP(1, 1, 1),
     lambda: CentralDP(1, 1, 1e-5, target_quantile=1.5)],
    ids=["noise", "clip", "delta", "quantile"],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make: Callable[[], CentralDP]) -> None:
    with pytest.raises(ConfigError, match="privacy"):
        make()
