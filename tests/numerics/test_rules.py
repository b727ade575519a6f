"""Aggregation rules: by hand on tiny inputs, within the proven bounds on hostile ones, and the same bits in any order.

The bound: ||F(x) - mean_S||^2 <= kappa / |S| * sum over S of ||x_i - mean_S||^2, S the honest clients, |S| = n - f,
with r = f / (n - 2f): kappa = 6 r (1 + r) for the trimmed mean, 6 (1 + r) for Krum, 4 (1 + r)^2 for the medians
(Y. Allouah et al., "Fixing by Mixing", AISTATS 2023, table 1).
"""

import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import roundelay as rd
from roundelay import aggregators, spans
from roundelay.aggregators import Rule, Updates, protocol

MEDIANS = [rd.CoordinateMedian(f=1), rd.GeometricMedian(f=1)]
RULES = [
    rd.Mean(), *MEDIANS, rd.TrimmedMean(f=1), rd.Krum(f=1), rd.MultiKrum(f=1), rd.CentredClipping(tau=1.0),
    rd.NormBounding(), rd.FLTrust(root="c0"), rd.NearestNeighbourMixing(f=1, then=rd.TrimmedMean(f=1)),
    rd.Bucketing(size=2, then=rd.CoordinateMedian()), rd.Robust(f=1),
]  # fmt: skip


def updates(
    rows: Sequence[Sequence[float]] | Tensor, previous: Sequence[float] | None = None, **more: object
) -> Updates:
    points = torch.tensor(rows) if not isinstance(rows, Tensor) else rows.clone()
    before = torch.zeros(points.shape[1], dtype=points.dtype) if previous is None else torch.tensor(previous)
    names = [f"c{i}" for i in range(len(points))]
    return replace(Updates(points, before, torch.zeros_like(before), names, [1.0] * len(points)), **more)


def check(result: Tensor, expected: Sequence[float], **tolerance: float) -> None:
    torch.testing.assert_close(result, torch.tensor(expected), **tolerance)


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_the_median_of_odd_and_of_even_numbers() -> None:
    rows = [[5.0, 1.0], [1.0, 2.0], [2.0, 900.0]]
    check(rd.CoordinateMedian()(updates(rows)), [2.0, 2.0], rtol=0, atol=0)
    check(rd.CoordinateMedian()(updates([*rows, [3.0, 4.0]])), [2.5, 3.0], rtol=0, atol=0)
    check(rd.CoordinateMedian()(updates([[3e38], [3e38]])), [3e38])  # the sum of the two would overflow
    assert aggregators.median(torch.tensor([[1], [9], [4], [5]])).tolist() == [4]  # counters: one that was sent


def test_the_trimmed_mean_leaves_the_f_highest_and_lowest_out() -> None:
    rows = [[-1e30, 4.0], [1.0, 1e30], [2.0, 5.0], [6.0, 6.0], [1e30, -7.0]]
    check(rd.TrimmedMean(f=1)(updates(rows)), [3.0, 5.0])
    check(rd.TrimmedMean(f=2)(updates(rows)), [2.0, 5.0])


def test_krum_takes_the_update_with_the_nearest_neighbours() -> None:
    rows = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.5], [10.0, 10.0], [0.4, 0.4]]
    # n - f - 2 = 2 neighbours; squared: c0 .32 + 1, c1 .52 + 1, c2 1.37 + 2.25, c4 .32 + .52: the least
    check(rd.Krum(f=1)(updates(rows)), [0.4, 0.4], rtol=0, atol=0)
    check(rd.MultiKrum(f=1, m=2)(updates(rows)), [0.2, 0.2])
    check(rd.MultiKrum(f=1)(updates(rows)), [0.35, 0.475])  # n - f = 4: all but the far one
    same = [[2.0], [2.0], [2.0], [2.0], [7.0]]
    check(rd.Krum(f=1)(updates(same)), [2.0], rtol=0, atol=0)


def test_the_geometric_median_of_a_triangle_and_of_a_line() -> None:
    # all angles of an equilateral triangle see each other under 120 degrees from its centre: the Fermat point
    rows = [[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]]
    check(rd.GeometricMedian(tolerance=1e-9, iterations=500)(updates(rows)), [0.5, math.sqrt(0.75) / 3])
    check(rd.GeometricMedian()(updates([[0.0], [1.0], [100.0]])), [1.0])
    check(rd.GeometricMedian()(updates([[3.0, 3.0], [3.0, 3.0], [3.0, 3.0], [9.0, 1.0]])), [3.0, 3.0], rtol=0, atol=0)


def test_the_geometric_median_has_a_zero_gradient() -> None:
    points = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    centre = rd.GeometricMedian(tolerance=1e-10, iterations=1000)(updates(points))
    towards = (points - centre) / (points - centre).norm(dim=1, keepdim=True)
    assert towards.sum(0).norm() < 1e-6


def by_differences(points: Tensor, iterations: int) -> Tensor:
    """Return the geometric median of float64 points by Weiszfeld's iteration on differences, begun at the median."""
    centre = points.quantile(0.5, dim=0)
    for _ in range(iterations):
        weights = 1 / (points - centre).norm(dim=1)
        centre = (weights[:, None] * points).sum(0) / weights.sum()
    return centre


@pytest.mark.parametrize(("drift", "hostile"), [(0.0, 0.0), (0.0, 1e30), (1e3, 0.0), (1e3, 1e12)])
def test_the_geometric_median_is_that_of_differences_whatever_the_scales(drift: float, hostile: float) -> None:
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(11, 40, dtype=torch.float64, generator=generator)
    points[:4] += hostile * torch.randn(4, 40, dtype=torch.float64, generator=generator)
    previous = torch.full((40,), 1e6, dtype=torch.float64)  # lengths from zero would leave nothing of the distances
    given = replace(updates(points + previous + drift), previous=previous, last=torch.zeros_like(previous))
    rule = rd.GeometricMedian(f=4, tolerance=1e-12, iterations=2000)
    expected = by_differences(given.points - previous, 2000) + previous
    torch.testing.assert_close(rule(given), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("spread", "drift", "hostile"), [
    (1.0, 0.0, 1.0), (1e-3, 1.0, 1.0), (1.0, 0.0, 1e30), (1e-22, 0.0, 1e-22), (1e-3, 1.0, 1e30),
])  # fmt: skip
def test_the_geometric_median_of_float32_is_good_to_its_tolerance(spread: float, drift: float, hostile: float) -> None:
    generator = torch.Generator().manual_seed(6)
    points = drift + spread * torch.randn(11, 5000, generator=generator)
    points[:4] = hostile * (1 + torch.randn(4, 5000, generator=generator))
    got = rd.GeometricMedian(f=4, tolerance=1e-5, iterations=500)(updates(points)).double()
    expected = by_differences(points.double(), 500)
    scale = (points[4:].double() - expected).norm(dim=1).median()
    rounding = 6e-8 * (abs(drift) + spread) * 5000**0.5  # of the answer, a float32 vector
    assert (got - expected).norm() < 1e-4 * scale + rounding


def test_the_median_of_many_columns_has_the_same_bits_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BLOCK_VALUES", 2**9)
    points = torch.randn(8, 30_001, generator=torch.Generator().manual_seed(5))
    results = []
    for cores in (1, 2, 7):
        threads = ThreadPoolExecutor(cores)
        monkeypatch.setattr(spans, "_threads", lambda threads=threads: threads)
        rules = partial(aggregators.products, dtype=torch.float32), rd.GeometricMedian(), rd.Robust(), rd.Mean()
        results.append([rule(updates(points)) for rule in rules])
        assert len(threads._threads) == cores, "they were asked"
        threads.shutdown()
    for one, two, seven in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, seven)


def test_a_span_that_fails_says_so_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BLOCK_VALUES", 2)
    given = updates(torch.zeros(2, 300))

    def fails(blocks: Sequence[slice]) -> None:
        if blocks[0].start:
            raise ArithmeticError(f"columns from {blocks[0].start}")

    with pytest.raises(ArithmeticError, match="columns from 64"):
        given.by_span(fails)


def test_centred_clipping_moves_from_the_last_step_by_clipped_differences() -> None:
    rows = [[1.0, 0.0], [1.0, 10.0], [-1.0, 0.0]]
    given = updates(rows, previous=[0.0, 0.0], last=torch.tensor([1.0, 0.0]))
    check(rd.CentredClipping(tau=1.0)(given), [1 + (0 + 0 - 1) / 3, (0 + 1 + 0) / 3])
    # the steps count from what was broadcast: shifting both shifts the result
    shifted = updates([[x + 5, y - 2] for x, y in rows], previous=[5.0, -2.0], last=torch.tensor([1.0, 0.0]))
    check(rd.CentredClipping(tau=1.0)(shifted), [1 - 1 / 3 + 5, 1 / 3 - 2])


def test_norm_bounding_scales_long_steps_down_and_leaves_the_others() -> None:
    rows = [[0.0, 3.0], [4.0, 0.0], [6.0, 8.0]]
    check(rd.NormBounding()(updates(rows)), [(4 + 2.4) / 3, (3 + 3.2) / 3])  # the median length is 4
    check(rd.NormBounding(bound=2.0)(updates(rows)), [(2 + 1.2) / 3, (2 + 1.6) / 3])
    check(rd.NormBounding(then=rd.CoordinateMedian())(updates(rows)), [2.4, 3.0])
    check(rd.NormBounding()(updates([[1e30, 0.0], [1.0, 0.0], [2.0, 0.0]])), [5 / 3, 0.0])


def test_fltrust_weighs_by_cosine_scales_to_the_roots_length_and_gives_the_root_no_vote() -> None:
    rows = [[2.0, 0.0], [30.0, 0.0], [5.0, 5.0], [-9.0, 0.0], [0.0, 0.0]]
    w = math.sqrt(0.5)  # c2 points 45 degrees away; c3 the other way; c4 did not move
    check(rd.FLTrust(root="c0")(updates(rows)), [(2 + w * w * 2) / (1 + w), w * w * 2 / (1 + w)])
    check(rd.FLTrust(root="c0")(updates([[1.0], [-2.0]], previous=[0.5])), [0.5])  # nobody points its way
    check(rd.FLTrust(root="c0")(updates([[0.5], [-2.0]], previous=[0.5])), [0.5])  # the root did not move


def test_mixing_averages_the_nearest_and_bucketing_the_drawn() -> None:
    rows = [[0.0], [1.0], [3.0], [100.0]]
    seen: list[list[list[float]]] = []

    def noted(given: Updates) -> Tensor:
        seen.append(given.points.tolist())
        return given.points[0]

    rd.NearestNeighbourMixing(f=1, then=noted)(updates(rows))
    torch.testing.assert_close(torch.tensor(seen[0]), torch.tensor([[4 / 3], [4 / 3], [4 / 3], [104 / 3]]))
    rd.Bucketing(size=3, then=noted)(updates(rows, seed=5, round=2))
    (whole,), (alone,) = seen[1]
    assert alone in (0.0, 1.0, 3.0, 100.0)
    assert whole == pytest.approx((104 - alone) / 3)


def test_buckets_are_drawn_by_the_seed_and_the_round_and_leave_the_global_generator_alone() -> None:
    rows, rule = torch.arange(40.0)[:, None] ** 2, rd.Bucketing(size=4, then=rd.CoordinateMedian())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    results = [rule(updates(rows, seed=s, round=r)).item() for s, r in ((1, 1), (1, 1), (1, 2), (2, 1))]
    assert torch.equal(before, torch.get_rng_state())
    assert results[0] == results[1]
    assert len(set(results)) == 3


def test_the_default_for_robustness_is_norm_bounding_and_the_geometric_median() -> None:
    points = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    points[6] *= 1e20
    expected = rd.NormBounding(then=rd.GeometricMedian())(updates(points))
    assert torch.equal(rd.Robust()(updates(points)), expected)


# ---- the proven bounds ----------------------------------------------------------------------------------------------

PLACEMENTS = 1000


def placement(draw: random.Random, n: int, num_hostile: int) -> tuple[Tensor, list[int]]:
    """Draw honest points of some spread and offset, and hostile ones where they may hurt; float32, up to 1e30."""
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    length = draw.choice([1, 2, 5])
    spread = torch.rand(length, generator=generator) ** 4 if draw.random() < 0.5 else torch.ones(length)
    honest = torch.randn(n - num_hostile, length, generator=generator) * spread
    if draw.random() < 0.3:  # honest clients fall into two camps
        honest[: len(honest) // 2] += 3 * torch.randn(length, generator=generator)
    honest += draw.choice([0.0, 3.0])
    mean, std = honest.mean(0), honest.std(0, correction=0)
    direction = torch.nn.functional.normalize(torch.randn(length, generator=generator), dim=0)
    shape = draw.choice(["far", "apart", "like", "reflected", "on one", "near", "axis"])
    size = 10.0 ** draw.choice([-2, 0, 0.5, 1, 3, 10, 30])
    hostile = {
        "far": direction * size + torch.zeros(num_hostile, length),
        "apart": torch.randn(num_hostile, length, generator=generator) * size,
        "like": (mean - draw.uniform(0.1, 4) * std).expand(num_hostile, length),
        "reflected": (-draw.uniform(0.1, 5) * mean).expand(num_hostile, length),
        "on one": honest[draw.randrange(len(honest))].expand(num_hostile, length),
        "near": mean + direction * std * draw.uniform(0, 3) + torch.zeros(num_hostile, length),
        "axis": torch.nn.functional.one_hot(torch.tensor(draw.randrange(length)), length) * size
        + torch.zeros(num_hostile, length),
    }[shape]
    order = torch.randperm(n, generator=generator)
    points = torch.cat([honest, hostile])[order]
    return points, (order < len(honest)).nonzero().flatten().tolist()


def ratio(rule: Rule, points: Tensor, honest: list[int]) -> float:
    """Return the squared distance of the aggregate to the honest mean, in units of the honest clients' variance."""
    own = points[honest].double()
    mean = own.mean(0)
    error = (rule(updates(points)).double() - mean).square().sum()
    return float(error / ((own - mean).square().sum() / len(own) + 1e-12 * mean.square().sum()))


def worst(rule: Rule, n: int, num_hostile: int, count: int, seed: int = 1) -> float:
    draw = random.Random(seed)
    return max(ratio(rule, *placement(draw, n, num_hostile)) for _ in range(count))


def kappa(rule: Rule, n: int, f: int) -> float:
    r = f / (n - 2 * f)
    if isinstance(rule, rd.TrimmedMean):
        return 6 * r * (1 + r)
    return 6 * (1 + r) if isinstance(rule, rd.Krum | rd.MultiKrum) else 4 * (1 + r) ** 2


BOUNDED = [
    *((rule(f=f), 11, f) for f in (3, 5) for rule in (rd.CoordinateMedian, rd.TrimmedMean, rd.GeometricMedian)),
    *((rule(f=f), 11, f) for f in (3, 4) for rule in (rd.Krum, rd.MultiKrum)),  # n >= 2f + 3
]


@pytest.mark.parametrize(("rule", "n", "f"), BOUNDED, ids=str)
def test_rules_keep_their_bound_against_f_hostile_clients(rule: Rule, n: int, f: int) -> None:
    assert worst(rule, n, f, PLACEMENTS) <= kappa(rule, n, f)


@pytest.mark.parametrize(
    ("rule", "n", "num_hostile"),
    [
        (rd.Mean(), 11, 1),
        (rd.CoordinateMedian(f=5), 11, 6),
        (rd.GeometricMedian(f=5), 11, 6),
        (rd.TrimmedMean(f=3), 11, 4),
        (rd.TrimmedMean(f=5), 11, 6),
        (rd.MultiKrum(f=3), 11, 4),
        (rd.MultiKrum(f=4), 11, 5),
        (
            rd.Krum(f=4),
            11,
            6,
        ),  # n - f - 2 = 5 neighbours in one place: one hostile client more than n - 2f - 3 = 0 saves
    ],
    ids=str,
)
def test_the_bound_is_broken_where_more_are_hostile(rule: Rule, n: int, num_hostile: int) -> None:
    assert worst(rule, n, num_hostile, 200) > 1e6


def test_a_planted_bug_breaks_the_bound() -> None:
    def biased(given: Updates) -> Tensor:  # a trimmed mean that forgets the lower end
        return given.points.sort(dim=0).values[: len(given.points) - 3].mean(0)

    assert worst(biased, 11, 3, PLACEMENTS) > kappa(rd.TrimmedMean(f=3), 11, 3)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_magnitudes_up_to_1e30_give_finite_values_and_harm_nobody_else(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(11, 6, generator=generator)
    points[7] = 1e30 * torch.randn(6, generator=generator)
    result = rule(updates(points))
    assert torch.isfinite(result).all()
    if not isinstance(rule, rd.Mean):
        assert result.norm() < 10


def test_distances_beside_a_giant_keep_their_digits() -> None:
    points = torch.tensor([[1e30, 1.0], [0.25, 0.0], [0.0, 0.0]])
    assert aggregators.squared_distances(updates(points))[1, 2].item() == pytest.approx(0.0625, rel=1e-6)


# ---- order, identical clients, memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("length", [3, 40_000])
def test_identical_clients_give_what_they_sent(rule: Rule, length: int) -> None:
    point = torch.randn(length, generator=torch.Generator().manual_seed(2))
    given = updates(point.repeat(7, 1), previous=None)
    tau = {"last": point.clone()} if isinstance(rule, rd.CentredClipping) else {}
    torch.testing.assert_close(rule(replace(given, **tau)), point, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_blocks_change_no_more_than_the_last_bits(
    rule: Rule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = torch.randn(9, 501, generator=torch.Generator().manual_seed(6), dtype=dtype)
    whole = rule(updates(points))
    monkeypatch.setattr(aggregators.protocol, "BLOCK_VALUES", 9 * 100)
    torch.testing.assert_close(rule(updates(points)), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        rd.NearestNeighbourMixing(f=1, then=rd.Krum(f=1)),
        rd.TrimmedMean(f=1),
        rd.NormBounding(then=rd.GeometricMedian(iterations=2)),
    ],
    ids=["pairs", "columns", "iterations"],
)
def test_the_peak_beyond_the_updates_is_a_few_models(rule: Rule) -> None:
    n, length = 40, 100_000
    given = updates(torch.randn(n, length, generator=torch.Generator().manual_seed(1)))
    with Allocations() as made:
        rule(given)
    models = made.peak / (4 * length)
    assert models < 16, f"{models:.1f} models beside the {n} that were gathered"


def test_the_memory_test_catches_a_temporary_of_all_pairs() -> None:
    n, length = 40, 30_000
    given = updates(torch.randn(n, length, generator=torch.Generator().manual_seed(1)))
    with Allocations() as made:
        (given.points[:, None] - given.points[None]).square().sum(-1)
    assert made.peak / (4 * length) > 16


class Allocations:
    """Counts the bytes that torch's operations hold at a time, by their profiler's allocation events."""

    def __enter__(self) -> "Allocations":
        self._profile = torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU])
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(None, None, None)
        held, self.peak = 0, 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                self.peak = max(self.peak, held)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "n", "message"),
    [
        (rd.TrimmedMean(f=3), 6, r"TrimmedMean\(f=3\) needs n >= 2f \+ 1, here at least 7 updates, and n = 6"),
        (rd.CoordinateMedian(f=3), 6, r"n >= 2f \+ 1"),
        (rd.GeometricMedian(f=3), 6, r"n >= 2f \+ 1"),
        (rd.Robust(f=3), 6, r"n >= 2f \+ 1"),
        (rd.Krum(f=3), 8, r"Krum\(f=3\) needs n >= 2f \+ 3, here at least 9 updates, and n = 8"),
        (rd.MultiKrum(f=3), 8, r"n >= 2f \+ 3"),
        (rd.MultiKrum(f=1, m=9), 9, r"m <= n - f, and n - f = 9 - 1 = 8"),
        (rd.CentredClipping(tau=1.0, f=1), 9, r"n >= 10f"),
        (rd.NearestNeighbourMixing(f=1, then=rd.Krum(f=2)), 6, r"Krum\(f=2\) needs n >= 2f \+ 3"),
        (rd.NearestNeighbourMixing(f=3, then=rd.Mean()), 6, r"n >= 2f \+ 1"),
        (rd.NormBounding(then=rd.TrimmedMean(f=3)), 6, r"n >= 2f \+ 1"),
        (rd.Bucketing(size=2, then=rd.TrimmedMean(f=2)), 8, r"buckets of 2: 8 updates make 4"),
    ],
    ids=str,
)
def test_an_n_outside_the_guarantee_is_refused_with_the_inequality(rule: Rule, n: int, message: str) -> None:
    with pytest.raises(rd.errors.ConfigError, match=message):
        rule(updates(torch.zeros(n, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rd.Krum(f=-1), "at least 0; got -1"),
        (lambda: rd.TrimmedMean(f=1.5), "number of hostile clients"),
        (lambda: rd.MultiKrum(f=1, m=0), "m must be at least 1"),
        (lambda: rd.CentredClipping(tau=0.0), "tau must be a positive number"),
        (lambda: rd.CentredClipping(tau=1.0, iterations=0), "iterations must be at least 1"),
        (lambda: rd.GeometricMedian(iterations=0), "iterations must be at least 1"),
        (lambda: rd.GeometricMedian(tolerance=0.0), "must be positive"),
        (lambda: rd.NormBounding(bound=-1.0), "bound must be a positive number"),
        (lambda: rd.NormBounding(then=rd.Krum), "got the class Krum"),
        (lambda: rd.Bucketing(size=0, then=rd.Mean()), "size must be at least 1"),
        (lambda: rd.Bucketing(size=2, then="krum"), "then must be a rule"),
        (lambda: rd.NormBounding(then=rd.FLTrust(root="a")), "nothing comes before it"),
        (lambda: rd.FLTrust(root="z")(updates([[1.0]])), "needs the root client's update; came: 'c0'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(rd.errors.ConfigError, match=message):
        make()
