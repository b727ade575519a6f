"""The ledger: energy and sums against closed forms, the chain of its hash, and the bugs that these must catch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from roundelay.errors import ConfigError
from roundelay.simulation.network import ledger as ledgers
from roundelay.simulation.network.ledger import Computation, Cost, Ledger, Message, Totals, Transmitter, trace_hash
from roundelay.tracking.run_folder import read_rows

Planting = Callable[[pytest.MonkeyPatch], None]
NS = 1_000_000_000


def update(round: int = 1, client: str = "alice", **changes: object) -> Message:
    row = Message(
        round=round, task=round, client=client, direction="up", kind="update", queued_ns=round * NS,
        first_bit_ns=round * NS + 10, last_bit_ns=round * NS + NS // 2, bits=1000,
    )  # fmt: skip
    return replace(row, **changes)


# ---- energy = sum of power times airtime + kappa f^2 cycles ---------------------------------------------------------


def check_energy() -> None:
    kappa, f, cycles = 1e-28, 1.5e9, 2e9
    ledger, sender = Ledger(), Transmitter(power_dbm=20, efficiency=0.4, circuit_w=0.05)
    airtimes_ns = (NS // 2, NS // 4, 3 * NS)
    for number, airtime in enumerate(airtimes_ns, start=1):
        ledger.add(update(number, last_bit_ns=number * NS + 10 + airtime, energy_j=sender.energy_j(airtime)))
        ledger.add(Computation(round=number, task=number, client="alice", start_ns=0, end_ns=NS,
                               energy_j=kappa * f**2 * cycles))  # fmt: skip
    total = ledger.up_to(3)
    assert total.radio_j == pytest.approx((0.1 / 0.4 + 0.05) * 3.75)  # 20 dBm are 0.1 W
    assert total.compute_j == pytest.approx(3 * 0.45)
    assert total.energy_j == pytest.approx(0.3 * 3.75 + 3 * 0.45)
    assert Transmitter(power_dbm=10).energy_j(500_000_000) == pytest.approx(0.005)
    assert Transmitter(power_dbm=30).energy_j(NS) == pytest.approx(1)


def watts_for_dbm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Transmitter, "energy_j", lambda self, ns: (self.power_dbm / self.efficiency + self.circuit_w) * ns / NS
    )


def dbw_for_dbm(patch: pytest.MonkeyPatch) -> None:
    energy_j = Transmitter.energy_j
    patch.setattr(Transmitter, "energy_j", lambda self, ns: energy_j(replace(self, power_dbm=self.power_dbm + 30), ns))


def circuit_behind_the_amplifier(patch: pytest.MonkeyPatch) -> None:
    energy_j = Transmitter.energy_j

    def amplified(self: Transmitter, ns: int) -> float:
        return energy_j(replace(self, circuit_w=self.circuit_w / self.efficiency), ns)

    patch.setattr(Transmitter, "energy_j", amplified)


def last_round_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "up_to", Ledger.of_round)


def milliseconds(patch: pytest.MonkeyPatch) -> None:
    energy_j = Transmitter.energy_j
    patch.setattr(Transmitter, "energy_j", lambda self, ns: 1000 * energy_j(self, ns))


ENERGIES: dict[str, Planting] = {
    "dBm taken for watts": watts_for_dbm,
    "dBm taken for dBW": dbw_for_dbm,
    "the circuit's power amplified": circuit_behind_the_amplifier,
    "milliseconds taken for seconds": milliseconds,
    "the last round alone": last_round_only,
}


def test_energy_is_power_times_airtime_and_cycles_times_the_square_of_the_clock() -> None:
    check_energy()


@pytest.mark.parametrize("plant", ENERGIES.values(), ids=ENERGIES)
def test_the_check_of_energy_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_energy()


# ---- the chain ------------------------------------------------------------------------------------------------------

ROWS = (
    update(1), update(1, "bob", energy_j=0.1 + 0.2), update(2, kind="skip", bits=8, why="SendOnDelta"),
    Computation(round=2, task=4, client="bob", start_ns=5, end_ns=9, energy_j=1e-300),
    update(3, direction="down", kind="model", first_bit_ns=None, bits=0, outcome="cancelled"),
)  # fmt: skip


def check_chain() -> None:
    """Any row changed, moved, doubled or left out gives another hash; a ledger that goes on gives the same."""
    whole = Ledger()
    for row in ROWS:
        whole.add(row)
    assert whole.trace_hash() == trace_hash(ROWS)
    others = [ROWS[:-1], ROWS[1:], ROWS[::-1], (*ROWS, ROWS[-1]), (ROWS[1], ROWS[0], *ROWS[2:])]
    for at, row in enumerate(ROWS):
        changes = [{"task": 99}, {"client": "carol"}, {"energy_j": row.energy_j + 1e-12}]
        changes += [{"bits": 7}, {"last_bit_ns": 1}, {"why": "x"}] if isinstance(row, Message) else [{"end_ns": 10}]
        others += [(*ROWS[:at], replace(row, **change), *ROWS[at + 1 :]) for change in changes]
    assert len({whole.trace_hash(), *map(trace_hash, others)}) == len(others) + 1
    for cut in range(len(ROWS) + 1):
        first, second = Ledger(), Ledger()
        for row in ROWS[:cut]:
            first.add(row)
        second.restore(json.loads(json.dumps(first.snapshot())))
        for row in ROWS[cut:]:
            second.add(row)
        assert second.trace_hash() == whole.trace_hash()
        assert second.up_to(9) == whole.up_to(9)
        assert (second.num_rows, second.rows) == (len(ROWS), list(ROWS[cut:]))


def floats_rounded(patch: pytest.MonkeyPatch) -> None:
    canonical = ledgers.canonical
    patch.setattr(ledgers, "canonical", lambda row: canonical(replace(row, energy_j=round(row.energy_j, 6))))


def sums_of_hashes(patch: pytest.MonkeyPatch) -> None:
    """Rows hashed one by one and added up: their order is lost."""

    class Adding:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def digest(self) -> bytes:
            before, row = int.from_bytes(self.data[:32]), self.data[32:]
            return ((before + sum((at + 1) * value for at, value in enumerate(row)) * 2**64) % 2**256).to_bytes(32)

    patch.setattr(ledgers.hashlib, "sha256", Adding)


def chain_begun_anew(patch: pytest.MonkeyPatch) -> None:
    restore = Ledger.restore
    patch.setattr(Ledger, "restore", lambda self, kept: restore(self, {**kept, "digest": "00" * 32}))


CHAINS: dict[str, Planting] = {
    "energies rounded": floats_rounded,
    "hashes added up": sums_of_hashes,
    "a chain that begins anew": chain_begun_anew,
}


def test_the_hash_is_of_every_row_in_its_order_and_goes_on_after_a_resume() -> None:
    check_chain()


@pytest.mark.parametrize("plant", CHAINS.values(), ids=CHAINS)
def test_the_check_of_the_chain_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_chain()


def test_the_hash_is_the_same_today_as_it_was_when_this_was_written() -> None:
    assert trace_hash(ROWS) == "4434bbe6acd013889cb951b9ad8874b0790cced575766b4e64b56d65569c22dc"


def test_totals_by_round_and_what_a_target_cost() -> None:
    ledger = Ledger()
    for number in (1, 2, 3):
        ledger.add(update(number, kind="model", direction="down", bits=50))
        ledger.add(update(number, bits=100 * number, retransmitted_bits=7, energy_j=0.5))
        ledger.add(update(number, "bob", kind="skip", bits=8))
        ledger.add(update(number, "carol", bits=9, outcome="erased"))
        ledger.finish_round(number, number * 10 * NS)
    assert ledger.of_round(2) == Totals(
        until_ns=20 * NS, uplink_bits=217, downlink_bits=50, retransmitted_bits=7, updates=1, skips=1, lost=1,
        radio_j=0.5, queueing_ns=40, on_air_ns=4 * (NS // 2 - 10),
    )  # fmt: skip
    curve = [(1, 0.5), (2, 0.8), (3, 0.7)]
    assert ledger.cost_of(0.75, curve) == Cost(2, 20.0, 117 + 217, 100, 1.0)
    assert ledger.cost_of(0.9, curve) is None
    assert ledger.cost_of(0.6, curve, higher=False) == Cost(1, 10.0, 117, 50, 0.5)


def test_rows_are_taken_once_as_lines_of_a_table(tmp_path: Path) -> None:
    ledger = Ledger()
    for row in ROWS:
        ledger.add(row)
    taken = ledger.take()
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in taken))
    back = read_rows(tmp_path / "ledger.jsonl")
    assert [row.pop("row") for row in back] == ["message", "message", "message", "computation", "message"]
    assert [Message(**row) if "bits" in row else Computation(**row) for row in back] == list(ROWS)
    assert (ledger.take(), ledger.num_rows) == ([], len(ROWS))
    assert ledger.trace_hash() == trace_hash(ROWS)


def test_powers_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match="power_dbm must be in dBm"):
        Transmitter(power_dbm=200)
    with pytest.raises(ConfigError, match="efficiency must be above 0 and at most 1, got 40"):
        Transmitter(efficiency=40)
    with pytest.raises(ValueError, match="JSON compliant"):
        Ledger().add(update(energy_j=float("nan")))
