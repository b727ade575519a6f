"""Keyed draws for many clients: the right distributions, whoever else is there, and the same bits everywhere."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import special, stats

from roundelay import seeds
from roundelay.simulation.network import draws
from roundelay.simulation.network.draws import client_keys, exponentials, log, normal_quantile, normals, uniforms

CLIENTS = [f"c{n}" for n in range(1000)]
BLOCKS = 40
MASK = 2**64 - 1

Planting = Callable[[pytest.MonkeyPatch], None]


def table() -> np.ndarray:
    """One number for each block and client."""
    keys = draws.client_keys(3, CLIENTS, "fading")
    return np.stack([draws.uniforms(keys, block) for block in range(BLOCKS)])


def check_distribution() -> None:
    """The contract: uniform, and independent between blocks, between clients and between lanes."""
    u = table()
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    lanes = draws.uniforms(draws.client_keys(3, CLIENTS, "fading"), 0, lane=1)
    pairs = [(u[0], lanes), (u[:-1].ravel(), u[1:].ravel()), (u[:, :-1].ravel(), u[:, 1:].ravel())]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / math.sqrt(len(one))
        cells = np.histogram2d(one, other, bins=6, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-4
    bits = (u * 2**52).astype(np.uint64).ravel()
    for place in range(0, 52, 3):
        ones = np.count_nonzero(bits >> np.uint64(place) & np.uint64(1))
        assert abs(ones - len(bits) / 2) < 4.5 * math.sqrt(len(bits)) / 2


def check_alone() -> None:
    """The contract: a client's numbers are those that it gets alone, in any company, in any order."""
    keys = draws.client_keys(3, CLIENTS, "fading")
    everybody = draws.uniforms(keys, 7)
    assert draws.uniforms(draws.client_keys(3, CLIENTS[500:501], "fading"), 7) == everybody[500]
    backwards = draws.uniforms(draws.client_keys(3, ["newcomer", *reversed(CLIENTS)], "fading"), 7)
    np.testing.assert_array_equal(backwards[1:], everybody[::-1])
    own_blocks = draws.uniforms(keys, np.arange(1000) % 5)
    np.testing.assert_array_equal(own_blocks[7::10], draws.uniforms(keys, 2)[7::10])


def test_draws_are_uniform_and_independent() -> None:
    check_distribution()


def test_a_clients_draws_are_its_own() -> None:
    check_alone()


def keys_unmixed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(draws, "_mix", lambda bits: bits)


def one_round_of_shifts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(draws, "_mix", lambda bits: bits ^ (bits >> np.uint64(31)))


def lanes_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(draws, "uniforms", lambda keys, number=0, lane=0: uniforms(keys, number))


def blocks_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(draws, "uniforms", lambda keys, number=0, lane=0: uniforms(keys, 0, lane))


@pytest.mark.parametrize("plant", [keys_unmixed, one_round_of_shifts, lanes_ignored, blocks_ignored])
def test_the_check_of_distributions_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_distribution()


def a_generator_per_block(patch: pytest.MonkeyPatch) -> None:
    """What a vectorised draw usually is: one stream a block, dealt out in the order of the clients."""

    def drawn(keys: np.ndarray, number: int = 0, lane: int = 0) -> np.ndarray:
        return np.random.Generator(np.random.Philox(int(np.max(number)) + 1)).random(len(keys))

    patch.setattr(draws, "uniforms", drawn)


def keys_by_index(patch: pytest.MonkeyPatch) -> None:
    def keys(seed: int, clients: Sequence[str], purpose: str) -> np.ndarray:
        return client_keys(seed, [str(n) for n in range(len(clients))], purpose)

    patch.setattr(draws, "client_keys", keys)


@pytest.mark.parametrize("plant", [a_generator_per_block, keys_by_index])
def test_the_check_of_company_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_alone()


def mixed(bits: int) -> int:
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return bits ^ bits >> 31


@pytest.mark.parametrize(("number", "lane"), [(0, 0), (5, 0), (2**40, 3), (-1, 1)])
def test_the_hash_is_that_of_plain_integers(number: int, lane: int) -> None:
    key = seeds.key(7, 0, 0, "alice", "fading") & MASK
    position = mixed((number * 0x9E3779B97F4A7C15 + (lane + 1) * 0xD1B54A32D192ED03) & MASK)
    bits = mixed(mixed(key ^ position) + key & MASK)
    assert uniforms(client_keys(7, ["alice"], "fading"), number, lane) == [((bits >> 12) + 0.5) / 2**52]


def test_the_bits_are_these_for_ever() -> None:
    keys = client_keys(7, ["alice", "bob"], "fading")
    assert [value.hex() for value in uniforms(keys, 5)] == UNIFORMS
    assert [value.hex() for value in normals(keys, 5)] == NORMALS
    assert [value.hex() for value in exponentials(keys, 5)] == EXPONENTIALS


UNIFORMS = ["0x1.4b9cba5408ea1p-1", "0x1.b3ecb3ea7392ep-2"]
NORMALS = ["0x1.84298d8ed4fabp-2", "-0x1.7f9dede52cd2cp-3"]
EXPONENTIALS = ["0x1.bcc86fde6442dp-2", "0x1.b53fcfaffb20ep-1"]


def test_logarithms_and_quantiles_are_right_to_the_last_place_or_two() -> None:
    p = np.concatenate(
        [table().ravel(), 10.0 ** -np.linspace(0.31, 15.9, 999), 1 - 10.0 ** -np.linspace(0.31, 15, 999)]
    )
    np.testing.assert_array_max_ulp(log(p), np.log(p), 2)
    np.testing.assert_allclose(normal_quantile(p), special.ndtri(p), rtol=4e-15, atol=1e-16)
    large = np.array([1.0, 2.0, 1e300, 1e-300])
    np.testing.assert_allclose(log(large), np.log(large), rtol=4e-16)


def test_other_distributions_follow_from_the_uniform_numbers() -> None:
    keys = client_keys(3, CLIENTS, "fading")
    assert stats.kstest(normals(keys, 4), "norm").pvalue > 1e-3
    assert stats.kstest(exponentials(keys, 4), "expon").pvalue > 1e-3
    order = np.argsort(uniforms(keys, 4))
    assert np.all(np.diff(normals(keys, 4)[order]) > 0)
    assert np.all(np.diff(exponentials(keys, 4)[order]) < 0)
