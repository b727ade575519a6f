"""What went over the network, as rows of its ledger."""

from collections.abc import Mapping, Sequence
from typing import Any

from roundelay.simulation.network.cell import Flown
from roundelay.simulation.network.ledger import Computation, Ledger, Message, Transmitter
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.radio import Radio
from roundelay.simulation.trips import Trip

EVERYBODY = "*"
"""The client of a broadcast."""


class Trace:
    """A row belongs to the round that was under way when it ended. Energy is that of the clients."""

    def __init__(self, network: Network) -> None:
        power_dbm = network.cell.ue_power_dbm if isinstance(network.cell, Radio) else 23.0
        self._transmitter = Transmitter(
            power_dbm=power_dbm, efficiency=network.amplifier_efficiency, circuit_w=network.circuit_w
        )
        self._ledger, self._round = Ledger(), 1

    def cast(self, flown: Flown, trips: Sequence[Trip], outcome: str) -> None:
        """A model went down, to several clients or to one; ``flown.flow`` is the task of one of them."""
        alone = len(flown.clients) == 1 and trips
        self._ledger.add(Message(
            round=self._round, task=flown.flow, client=trips[0].task.client if alone else EVERYBODY, direction="down",
            kind="model", queued_ns=flown.queued_ns, first_bit_ns=flown.first_bit_ns, last_bit_ns=flown.last_bit_ns,
            bits=flown.sent_bits, outcome=outcome,
        ))  # fmt: skip

    def computed(self, trip: Trip, now_ns: int) -> None:
        """A client computed, to the end or to the moment at which it was stopped."""
        part = (now_ns - trip.since_ns) / trip.compute_ns if trip.compute_ns else 1.0
        self._ledger.add(Computation(
            round=self._round, task=trip.task.id, client=trip.task.client, start_ns=trip.since_ns, end_ns=now_ns,
            energy_j=trip.energy_j * part,
        ))  # fmt: skip

    def sent(self, trip: Trip, flown: Flown, outcome: str) -> None:
        again = trip.retransmitted_bits
        self._ledger.add(Message(
            round=self._round, task=trip.task.id, client=trip.task.client, direction="up", kind=trip.kind,
            queued_ns=flown.queued_ns, first_bit_ns=flown.first_bit_ns, last_bit_ns=flown.last_bit_ns,
            bits=flown.sent_bits,
            retransmitted_bits=again if flown.through else again * flown.sent_bits // flown.bits,
            energy_j=self._transmitter.energy_j(flown.airtime_ns), outcome=outcome,
        ))  # fmt: skip

    def transferred(self, trip: Trip, now_ns: int, outcome: str = "arrived") -> None:
        """A user's own function carried an update; how much of it where it was cut off, nobody says."""
        self._ledger.add(Message(
            round=self._round, task=trip.task.id, client=trip.task.client, direction="up", kind=trip.kind,
            queued_ns=trip.since_ns, first_bit_ns=trip.since_ns, last_bit_ns=now_ns, bits=trip.bits,
            energy_j=self._transmitter.energy_j(now_ns - trip.since_ns), outcome=outcome,
        ))  # fmt: skip

    def hauled(self, flown: Flown, who: str, task_id: int, *, up: bool) -> None:
        """Something went over the wire behind the cell."""
        self._ledger.add(Message(
            round=self._round, task=task_id, client=who, direction="up" if up else "down", kind="haul",
            queued_ns=flown.queued_ns, first_bit_ns=flown.first_bit_ns, last_bit_ns=flown.last_bit_ns,
            bits=flown.sent_bits,
        ))  # fmt: skip

    def finish_round(self, number: int, now_ns: int) -> tuple[dict[str, float], list[dict[str, Any]], str]:
        """Return a round's numbers, its rows, and the hash of all rows so far."""
        ledger = self._ledger
        ledger.finish_round(number, now_ns)
        total, self._round = ledger.of_round(number), number + 1
        numbers = {
            "uplink_bits": total.uplink_bits,
            "downlink_bits": total.downlink_bits,
            "joules": total.radio_j + total.compute_j,
        }
        return numbers, ledger.take(), ledger.trace_hash()

    def snapshot(self) -> dict[str, Any]:  # Any: see Ledger.snapshot
        return {"round": self._round, "ledger": self._ledger.snapshot()}

    def restore(self, kept: Mapping[str, Any]) -> None:  # Any: see snapshot
        self._round = kept["round"]
        self._ledger.restore(kept["ledger"])
