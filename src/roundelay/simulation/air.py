"""Tasks over a modelled network: the flows of its cells, and what clients do between them, drive the virtual clock.

Whatever happens at one nanosecond happens in one order, whoever scheduled it first: flows end, cell by cell; then
whoever is due begins, has computed, arrives, or leaves. So a run that was taken up in mid-flow goes the way of one that
never stopped.
"""

from asyncio import Future
from collections.abc import Mapping, Sequence
from typing import Any

from roundelay.bookkeeping import Traced
from roundelay.messages import Task
from roundelay.simulation import own_transfer
from roundelay.simulation.cells import Cells
from roundelay.simulation.clockwork import Clockwork
from roundelay.simulation.delivery import Ends, Landed, Sent
from roundelay.simulation.loop import VirtualLoop
from roundelay.simulation.network.cell import Flown, MinMax
from roundelay.simulation.network.network import Network
from roundelay.simulation.population import Population
from roundelay.simulation.trace import Trace
from roundelay.simulation.trips import DOING, Trip, still_under_way
from roundelay.trainer import Answer

BEGINS, COMPUTED, ARRIVES, LEAVES = range(4)
"""What a task is due for; at one moment, in this order."""


class Air:
    """The cells are those of the ``population``: one, or one for each of ``edges``, in their order."""

    def __init__(
        self, loop: VirtualLoop, network: Network, population: Population, edges: Sequence[str], raw_bits: int,
        skip_bits: int = 0,
    ) -> None:  # fmt: skip
        """``raw_bits`` is an update without codec, ``skip_bits`` all that a client sends which has nothing to send."""
        self._loop, self._network, self._population = loop, network, population
        self._raw_bits, self._skip_bits = raw_bits, skip_bits
        reaches = population.reaches
        wires = [] if network.backhaul is None else [
            network.backhaul.line("down", loop.now_ns), network.backhaul.line("up", loop.now_ns)]  # fmt: skip
        down, up = ([reach.cell(direction, loop.now_ns) for reach in reaches] for direction in ("down", "up"))
        self._cells = Cells([*down, *up, *wires])
        self._wire_down: int | None = 2 * len(reaches) if wires else None
        self._wire_up: int | None = 2 * len(reaches) + 1 if wires else None
        self._through_wire = bool(wires) and not edges  # else the workflow says what goes there
        self._clock = Clockwork(loop, self._cells, self._flown, self._due, self._tell)
        self._trips: dict[int, Trip] = {}
        self._casts: dict[int, list[int]] = {}  # the tasks of each message downwards that is under way
        self._hauls: dict[int, tuple[str, Future[None]]] = {}
        self._num_hauls = 0
        self._sent_ns: dict[int, int] = {}  # when a user's own transfer began, by task
        self._landings: list[tuple[Landed, int]] = []
        self._trace = Trace(network)

    def attend(self, ends: Ends) -> None:
        self._ends = ends

    # ---- what the federation says ----

    def dispatch(self, tasks: Sequence[Task], sent_bits: int, landed: Landed) -> Sequence[Task]:
        now_ns, here = self._loop.now_ns, dict[int, list[Trip]]()
        for task in tasks:
            trip = Trip(task, landed, self._population.site(task.client), since_ns=now_ns,
                        down_bits=max(1, sent_bits + self._network.header_bits))  # fmt: skip
            trip.compute_ns, trip.energy_j = self._population.computing(task)
            self._trips[task.id] = trip
            self._population.asked(task.client, task.round)
            back_ns = self._population.back_ns(task.client, now_ns)
            if back_ns == now_ns:
                self._watch(trip)
                here.setdefault(trip.site, []).append(trip)
            else:
                trip.phase = "away"
                self._clock.at(now_ns if back_ns is None else back_ns, BEGINS, task.id)
        for site in sorted(here):
            for group in self._population.hearing(site, here[site], now_ns):
                self._cast(group)
        self._clock.changed()
        return sorted(tasks, key=lambda task: self._trips[task.id].compute_ns)

    def end(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            self._sent_ns.pop(task_id, None)
            if task_id in self._trips:
                self._break_off(self._trips[task_id], "late")
        self._clock.changed()

    def due_ns(self, task_id: int) -> int:
        return 0

    def carried(self, answer: Answer) -> tuple[Answer, Sent]:
        if answer.update.silent:
            return answer, Sent(self._skip_bits, kind="skip")
        if self._network.transfer is None:
            return answer, Sent(8 * answer.update.payload.num_bytes)
        task = answer.update.task
        sent_ns = self._sent_ns.setdefault(task.id, self._loop.now_ns)
        link = self._population.reaches[self._population.site(task.client)].link(task.client, "up", task.round, sent_ns)
        return own_transfer.carried(self._network.transfer, answer, link, self._population.seed)

    def there(self, number: int, attempt: int, count: int, pool: Sequence[str]) -> Sequence[str]:
        return self._population.there(number, attempt, count, pool, self._loop.now_ns)

    def choose(self, number: int, attempt: int, count: int, pool: Sequence[str]) -> Sequence[str] | None:
        bits = self._raw_bits + self._network.header_bits
        return self._population.choose(number, attempt, count, pool, bits, self._loop.now_ns)

    def counted(self, clients: Sequence[str]) -> None:
        self._population.counted(clients)

    async def haul(self, edge: str, bits: int, up: bool) -> None:
        wire = self._wire_up if up else self._wire_down
        if wire is None:
            return
        self._num_hauls += 1
        flow, arrived = -self._num_hauls, self._loop.create_future()
        self._hauls[flow] = edge, arrived
        self._cells.start(wire, flow, [0], max(1, bits + self._network.header_bits), self._loop.now_ns)
        self._clock.changed()
        await arrived

    # ---- the machine ----

    def _tell(self) -> None:
        """Say which tasks have landed at this moment."""
        landings, self._landings = self._landings, []
        together: list[int] = []
        for number, (landed, task_id) in enumerate(landings):
            together.append(task_id)
            if number + 1 == len(landings) or landings[number + 1][0] != landed:
                landed(together)
                together = []

    def _due(self, what: int, task_id: int) -> None:
        trip = self._trips.get(task_id)
        if trip is None:  # its task is over
            return
        if what == BEGINS:
            self._begin(trip)
        elif what == COMPUTED:
            self._computed(trip)
        elif what == ARRIVES:
            self._trace.transferred(trip, self._loop.now_ns)
            self._land(trip)
        else:
            self._break_off(trip, "left")
            self._lose(trip, f"client {trip.task.client!r} left while {DOING.get(trip.phase, trip.phase)}")

    def _begin(self, trip: Trip) -> None:
        if self._population.back_ns(trip.task.client, self._loop.now_ns) != self._loop.now_ns:
            self._lose(trip, f"client {trip.task.client!r} is not there, and will not come back")
            return
        self._watch(trip)
        trip.phase, trip.since_ns = "down", self._loop.now_ns
        self._cast([trip])

    def _watch(self, trip: Trip) -> None:
        leaves_ns = self._population.leaves_ns(trip.task.client, self._loop.now_ns)
        if leaves_ns is not None:
            self._clock.at(leaves_ns, LEAVES, trip.task.id)

    def _cast(self, trips: Sequence[Trip], wired: bool = False) -> None:
        """Send the model to these clients as one message."""
        cast = trips[0].task.id
        self._casts[cast] = [trip.task.id for trip in trips]
        for trip in trips:
            trip.cast = cast
        if self._through_wire and not wired:
            assert self._wire_down is not None
            self._cells.start(self._wire_down, cast, [0], trips[0].down_bits, self._loop.now_ns)
        else:
            self._cast_in_cell(cast, trips)

    def _cast_in_cell(self, cast: int, trips: Sequence[Trip]) -> None:
        rows = [self._population.row(trip.task.client) for trip in trips]
        self._cells.start(trips[0].site, cast, rows, trips[0].down_bits, self._loop.now_ns)

    def _flown(self, cell: int, flown: Flown) -> None:
        sites = len(self._population.reaches)
        if flown.flow in self._hauls:
            edge, arrived = self._hauls.pop(flown.flow)
            self._trace.hauled(flown, edge, -1, up=cell == self._wire_up)
            arrived.set_result(None)
        elif cell == self._wire_up:
            trip = self._trips[flown.flow]
            self._trace.hauled(flown, trip.task.client, trip.task.id, up=True)
            self._land(trip)
        elif cell == self._wire_down:
            self._trace.hauled(flown, "", flown.flow, up=False)
            self._cast_in_cell(flown.flow, still_under_way(self._trips, self._casts[flown.flow]))
        elif cell < sites:
            self._received(flown)
        else:
            self._sent(self._trips[flown.flow], flown)

    def _received(self, flown: Flown) -> None:
        trips = still_under_way(self._trips, self._casts.pop(flown.flow))
        outcome = "arrived" if flown.through else "no rate"
        self._trace.cast(flown, trips, outcome)
        for trip in trips:
            if flown.through:
                self._compute(trip)
            elif len(flown.clients) > 1:  # one client out of reach holds a broadcast up for all
                self._cast([trip], wired=True)
            else:
                self._lose(trip, f"client {trip.task.client!r} is out of reach: the model did not get there")

    def _compute(self, trip: Trip) -> None:
        trip.phase, trip.since_ns, trip.cast = "computing", self._loop.now_ns, None
        self._clock.at(trip.computed_ns, COMPUTED, trip.task.id)
        if isinstance(self._network.discipline, MinMax):
            bits = self._raw_bits + self._network.header_bits
            row = self._population.row(trip.task.client)
            self._cells.expect(self._up(trip), trip.task.id, row, bits, trip.computed_ns, self._loop.now_ns)

    def _computed(self, trip: Trip) -> None:
        now_ns, task = self._loop.now_ns, trip.task
        self._trace.computed(trip, now_ns)
        sent = self._ends.computed(task)
        if sent is None or sent.duration_ns is not None:
            self._cells.cancel(self._up(trip), task.id, now_ns)  # where it was announced
        if sent is None:
            self._land(trip)
            return
        trip.kind, trip.since_ns = sent.kind, now_ns
        if sent.duration_ns is not None:
            trip.phase, trip.bits = "own", sent.bits
            self._clock.at(now_ns + sent.duration_ns, ARRIVES, task.id)
            return
        bits = max(1, sent.bits + (self._network.header_bits if sent.kind == "update" else 0))
        crossing = self._population.reaches[trip.site].crossing(task.client, task.round, task.attempt, bits, now_ns)
        trip.phase, trip.bits, trip.lost = "up", crossing.bits, crossing.lost
        trip.retransmitted_bits = crossing.retransmitted_bits
        self._cells.start(self._up(trip), task.id, [self._population.row(task.client)], crossing.bits, now_ns)

    def _sent(self, trip: Trip, flown: Flown) -> None:
        task = trip.task
        self._trace.sent(trip, flown, "arrived" if flown.through and not trip.lost else trip.lost or "no rate")
        if not flown.through:
            patience_s = self._network.patience_s
            self._lose(trip, f"client {task.client!r} is out of reach: it had no rate for {patience_s:g} s")
        elif trip.lost:
            self._lose(trip, f"the update of client {task.client!r} is lost on the air: {trip.lost}")
        elif self._through_wire:
            assert self._wire_up is not None
            trip.phase, trip.since_ns = "wire", self._loop.now_ns
            self._cells.start(self._wire_up, task.id, [0], trip.bits - trip.retransmitted_bits, self._loop.now_ns)
        else:
            self._land(trip)

    def _land(self, trip: Trip) -> None:
        del self._trips[trip.task.id]
        self._landings.append((trip.landed, trip.task.id))

    def _lose(self, trip: Trip, reason: str) -> None:
        self._trips.setdefault(trip.task.id, trip)
        self._ends.lost(trip.task, reason)
        self._land(trip)

    def _break_off(self, trip: Trip, outcome: str) -> None:
        """Stop whatever a task is about; what it has used up so far it has used up."""
        now_ns, task_id = self._loop.now_ns, trip.task.id
        del self._trips[task_id]
        if trip.phase == "down" and trip.cast is not None:
            self._leave_cast(trip.cast, task_id, outcome)
        elif trip.phase == "computing":
            self._trace.computed(trip, now_ns)
            self._cells.cancel(self._up(trip), task_id, now_ns)
        elif trip.phase == "own":
            self._trace.transferred(trip, now_ns, outcome)
        elif trip.phase == "up":
            flown = self._cells.cancel(self._up(trip), task_id, now_ns)
            assert flown is not None
            self._trace.sent(trip, flown, outcome)
        elif trip.phase == "wire":
            assert self._wire_up is not None
            self._cells.cancel(self._wire_up, task_id, now_ns)

    def _leave_cast(self, cast: int, task_id: int, outcome: str) -> None:
        members = self._casts[cast]
        members.remove(task_id)
        if members:
            return
        del self._casts[cast]
        for cell in range(len(self._population.reaches)):
            flown = self._cells.cancel(cell, cast, self._loop.now_ns)
            if flown is not None:
                self._trace.cast(flown, [], outcome)
        if self._wire_down is not None:
            self._cells.cancel(self._wire_down, cast, self._loop.now_ns)

    def _up(self, trip: Trip) -> int:
        return len(self._population.reaches) + trip.site

    # ---- rounds, and what a resumed run goes on from ----

    def traced(self, number: int) -> Traced:
        numbers, ledger, trace_hash = self._trace.finish_round(number, self._loop.now_ns)
        state = {
            "trips": [trip.snapshot() for trip in self._trips.values()], "clock": self._clock.snapshot(self._trips),
            "casts": [[cast, list(members)] for cast, members in self._casts.items()],
            "hauls": self._num_hauls, "sent": list(self._sent_ns.items()),
            "cells": self._cells.snapshot(), "trace": self._trace.snapshot(), "past": self._population.past.snapshot(),
        }  # fmt: skip
        return Traced(numbers, ledger, trace_hash, state)

    def restore(self, tasks: Sequence[tuple[Task, int]], state: Mapping[str, Any] | None, landed: Landed) -> list[Task]:
        if state is None:
            return []
        known = {task.id: task for task, _ in tasks}
        self._trips = {kept[0]: Trip.restored(kept, known[kept[0]], landed)
                       for kept in state["trips"] if kept[0] in known}  # fmt: skip
        self._clock.restore(state["clock"], known)
        casts = {cast: [one for one in members if one in known] for cast, members in state["casts"]}
        self._casts = {cast: members for cast, members in casts.items() if members}
        self._num_hauls, self._sent_ns = state["hauls"], dict(state["sent"])
        self._cells.restore(state["cells"], {*self._trips, *self._casts})
        self._trace.restore(state["trace"])
        self._population.past.restore(state["past"])
        return [trip.task for trip in sorted(self._trips.values(), key=lambda trip: trip.since_ns + trip.compute_ns)]
