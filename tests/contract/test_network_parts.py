"""What each part of a modelled network does to a run: who is asked, what is lost, who pays, and what never changes."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small_job
from torch import Tensor

import roundelay as rd
from roundelay import config, seeds
from roundelay.errors import ConfigError
from roundelay.simulation import world
from roundelay.simulation.air import Air
from roundelay.simulation.cells import Cells
from roundelay.simulation.delivery import Sent
from roundelay.simulation.loop import NS
from roundelay.simulation.network import ledger as ledgers
from roundelay.simulation.network.transfer import Transfer
from roundelay.simulation.population import Population
from roundelay.simulation.trace import Trace
from roundelay.simulation.trips import Trip
from roundelay.tracking.run_folder import read_rows

net = rd.network
LINKS = net.Links(uplink_bps=1e5, downlink_bps=1e6)
BITS = 6400  # of an update of the small network
HEADER = 128
EVERYBODY = {"clients_per_round": 6}


def job(network: rd.Network, **changes: object) -> rd.Job:
    return small_job(simulation=rd.Simulation(executor="serial", network=network), **changes)


def ran(network: rd.Network, root: Path, **changes: object) -> tuple[rd.History, list[dict[str, Any]]]:
    """Return the history and the ledger's rows."""
    history = job(network, tracking=rd.Tracking(str(root), "run"), **changes).run()
    return history, read_rows(root / "run" / "ledger.jsonl")


def messages(rows: Sequence[Mapping[str, Any]], **like: object) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["row"] == "message" and all(row[name] == value for name, value in like.items())]


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_bits_are_those_of_what_was_sent_and_a_broadcast_counts_once(tmp_path: Path) -> None:
    history, rows = ran(rd.Network(cell=LINKS), tmp_path, num_rounds=1)
    (row,) = history.rows
    assert row["bytes_up"] * 8 == 4 * BITS
    assert row["uplink_bits"] == 4 * (BITS + HEADER)
    assert row["downlink_bits"] == BITS + HEADER
    assert [message["client"] for message in messages(rows, direction="down")] == ["*"]
    unicast, _ = ran(rd.Network(cell=LINKS, downlink="unicast"), tmp_path / "unicast", num_rounds=1)
    assert unicast.rows[0]["downlink_bits"] == 4 * (BITS + HEADER)


def test_rows_sum_to_the_ledger_and_energy_is_power_times_airtime_and_cycles(tmp_path: Path) -> None:
    cycles, frequency_hz = 1e6, 1.5e9
    network = rd.Network(
        cell=LINKS, computing=net.Cycles(cycles_per_sample=cycles, frequency_hz=frequency_hz),
        amplifier_efficiency=0.5, circuit_w=0.1,
    )  # fmt: skip
    history, rows = ran(network, tmp_path)
    for row in history.rows:
        mine = [one for one in rows if one["round"] == row["round"]]
        up = messages(mine, direction="up")
        assert sum(one["bits"] for one in up) == row["uplink_bits"]
        airtime_s = sum(one["last_bit_ns"] - one["first_bit_ns"] for one in up) / NS
        computing = [one for one in mine if one["row"] == "computation"]
        samples = sum(2 * (10 + 2 * int(one["client"][1:])) for one in computing)  # two epochs
        assert sum(one["end_ns"] - one["start_ns"] for one in computing) / NS == pytest.approx(
            samples * cycles / frequency_hz, rel=1e-6
        )
        joules = (10 ** (-7 / 10) / 0.5 + 0.1) * airtime_s + 1e-28 * frequency_hz**2 * cycles * samples
        assert row["joules"] == pytest.approx(joules, rel=1e-9)


def test_the_trace_is_the_hash_of_the_ledgers_rows(tmp_path: Path) -> None:
    history, rows = ran(rd.Network(cell=LINKS), tmp_path)
    kinds = {"message": ledgers.Message, "computation": ledgers.Computation}
    made = [kinds[row["row"]](**{name: value for name, value in row.items() if name != "row"}) for row in rows]
    assert ledgers.trace_hash(made) == history.trace_hash
    assert config.load(tmp_path / "run" / "job.toml").simulation.network == rd.Network(cell=LINKS)


def test_a_round_cut_short_keeps_what_was_sent_and_computed_until_then(tmp_path: Path) -> None:
    network = rd.Network(cell=LINKS, sharing=net.Fifo())  # model 6.5 ms, then an upload each 65.28 ms
    history, rows = ran(network, tmp_path, num_rounds=1, workflow=rd.Rounds(deadline_s=0.1), **EVERYBODY)
    assert (history.rows[0]["admitted"], history.rows[0]["late"], history.rows[0]["virtual_s"]) == (1, 5, 0.1)
    late = messages(rows, direction="up", outcome="late")
    assert len(late) == 5
    assert sum(one["bits"] for one in late) == int((0.1 - 6528 / 1e6 - 6528 / 1e5) * 1e5)


# ---- one seed, one luck ---------------------------------------------------------------------------------------------


def heavier(codec_bits: int) -> Transfer:
    """Return a transfer that sends so many bits: a codec, as far as the network can tell."""

    def transfer(vector: Tensor, link: net.Link, generator: torch.Generator) -> tuple[Tensor, int, float]:
        return vector, codec_bits, codec_bits / 1e5

    return transfer


def test_two_sizes_of_update_meet_the_same_cohorts_computing_and_calibration(tmp_path: Path) -> None:
    came = []
    for bits in (6400, 800):
        network = rd.Network(
            cell=net.Radio(bandwidth_hz=1e5), computing=net.ShiftedExponential(least_s_per_sample=0.01, rate_per_s=9.0),
            transmit_over_compute=1.0, transfer=heavier(bits),
        )  # fmt: skip
        history, rows = ran(network, tmp_path / str(bits))
        computing = [(one["round"], one["task"], one["client"], one["end_ns"] - one["start_ns"])
                     for one in rows if one["row"] == "computation"]  # fmt: skip
        came.append((history.sha256, sorted(computing), history.records["calibration"]))
        assert history.rows[-1]["uplink_bits"] == 4 * bits
    assert came[0] == came[1]


def test_calibration_makes_the_median_upload_and_the_median_computing_stand_in_that_ratio(tmp_path: Path) -> None:
    for ratio in (0.1, 1.0, 10.0):
        network = rd.Network(cell=LINKS, computing=net.Cycles(cycles_per_sample=1e6), transmit_over_compute=ratio)
        history, rows = ran(network, tmp_path / str(ratio), num_rounds=1, **EVERYBODY)
        took = sorted(one["end_ns"] - one["start_ns"] for one in rows if one["row"] == "computation")
        upload_ns = (BITS + HEADER) / 1e5 * NS
        assert upload_ns / ((took[2] + took[3]) / 2) == pytest.approx(ratio, rel=1e-6)
        assert history.records["calibration"]["transmit_s"] == pytest.approx((BITS + HEADER) / 1e5)


# ---- losses ---------------------------------------------------------------------------------------------------------


def statuses(history: rd.History) -> set[str]:
    return {name for row in history.rows for name in ("admitted", "lost", "late", "refused") if row[name]}


def test_an_erased_update_is_lost_with_its_reason_and_the_round_goes_on_without_it(tmp_path: Path) -> None:
    network = rd.Network(cell=LINKS, errors=net.Erasure(loss_probability=0.3))
    history, rows = ran(network, tmp_path)
    erased = [row for row in messages(rows, direction="up") if row["outcome"] != "arrived"]
    assert 0 < len(erased) == sum(row["lost"] for row in history.rows) < 12
    reasons = {row["reason"] for row in history.clients() if row["status"] == "lost"}
    assert all("lost on the air: erased" in reason for reason in reasons)


def test_packets_that_are_sent_again_cost_bits_and_time_and_change_no_result(tmp_path: Path) -> None:
    clean, _ = ran(rd.Network(cell=LINKS), tmp_path / "clean")
    noisy, rows = ran(rd.Network(cell=LINKS, errors=net.Arq(loss_probability=0.5, packet_bits=128)), tmp_path / "noisy")
    assert noisy.sha256 == clean.sha256
    up = messages(rows, direction="up")
    assert all(row["bits"] - row["retransmitted_bits"] == BITS + HEADER for row in up)
    assert sum(row["bits"] for row in up) / (len(up) * (BITS + HEADER)) == pytest.approx(2, rel=0.1)
    assert noisy.rows[-1]["virtual_s"] > 1.5 * clean.rows[-1]["virtual_s"]


def test_a_client_out_of_reach_is_lost_after_its_patience_and_holds_nobody_up(tmp_path: Path) -> None:
    """A cell so wide that most uplinks carry nothing, whatever the fading."""
    far = net.Radio(
        placement=net.Disc(radius_m=4900.0), fading=net.NoFading(), ue_power_dbm=30.0, shadowing=False, whole_band=True,
        rate=net.CqiTable(), bandwidth_hz=1e6,
    )  # fmt: skip
    history, rows = ran(rd.Network(cell=far, patience_s=5.0), tmp_path, num_rounds=1, **EVERYBODY)
    lost = [row for row in history.clients() if row["status"] == "lost"]
    assert lost
    assert all("out of reach" in row["reason"] for row in lost)
    assert history.rows[0]["virtual_s"] == pytest.approx(5.0, abs=0.2)
    assert messages(rows, direction="down", client="*", outcome="arrived")
    assert len(messages(rows, outcome="no rate")) == len(lost)


# ---- who is there, and who is asked ---------------------------------------------------------------------------------


def stretches(path: Path, **clients: Sequence[tuple[float, float]]) -> net.TracedAvailability:
    lines = [f"{client},{start},{end}" for client, times in clients.items() for start, end in times]
    path.write_text("\n".join(["client,start_s,end_s", *lines]))
    return net.TracedAvailability(path=path)


def test_who_is_away_is_not_asked_and_who_leaves_is_lost(tmp_path: Path) -> None:
    always = [(0.0, 1e6)]
    there = stretches(tmp_path / "there.csv", c0=always, c1=always, c2=[(0.0, 0.05)], c3=[(5.0, 1e6)], c4=always,
                      c5=[(5.0, 1e6)])  # fmt: skip
    history, rows = ran(rd.Network(cell=LINKS, availability=there), tmp_path, num_rounds=2, **EVERYBODY)
    first = {row["client"]: row["status"] for row in history.clients() if row["round"] == 1}
    assert first == {"c0": "admitted", "c1": "admitted", "c2": "lost", "c4": "admitted"}
    assert [row["client"] for row in messages(rows, outcome="left")] == ["c2"]
    assert {row["client"] for row in history.clients() if row["round"] == 2} == {"c0", "c1", "c4"}


def test_where_nobody_is_there_the_round_waits_for_the_first_to_come(tmp_path: Path) -> None:
    later = {f"c{number}": [(3.0 + number, 100.0)] for number in range(6)}
    network = rd.Network(cell=LINKS, availability=stretches(tmp_path / "there.csv", **later))
    for workflow in (rd.Rounds(), rd.Buffered(buffer_size=1, concurrency=2)):
        history = job(network, num_rounds=1, workflow=workflow).run()
        assert history.rows[0]["admitted"] == 1
        assert history.rows[0]["virtual_s"] == pytest.approx(3.0 + (BITS + HEADER) * (1e-6 + 1e-5))


def asked(history: rd.History) -> list[set[str]]:
    rows = history.clients()
    return [{row["client"] for row in rows if row["round"] == number} for number in sorted({r["round"] for r in rows})]


def test_rules_choose_who_is_asked(tmp_path: Path) -> None:
    uneven = replace(LINKS, uplink_bps={f"c{number}": 1e5 * (number + 1) for number in range(6)})
    pair = {"clients_per_round": 2}
    best, _ = ran(rd.Network(cell=uneven, select=net.BestChannel()), tmp_path / "best", **pair)
    assert asked(best) == [{"c4", "c5"}] * 3
    turns, _ = ran(rd.Network(cell=uneven, select=net.RoundRobin()), tmp_path / "turns", **pair)
    assert [len(cohort) for cohort in asked(turns)] == [2, 2, 2]
    assert set().union(*asked(turns)) == {f"c{number}" for number in range(6)}

    seen: list[net.Choice] = []

    def own(choice: net.Choice) -> list[str]:
        seen.append(choice)
        return [choice.candidates[choice.round].client]

    mine, _ = ran(rd.Network(cell=uneven, select=own), tmp_path / "own", **pair)
    assert asked(mine) == [{"c1"}, {"c2"}, {"c3"}]
    known = {one.client: one for one in seen[2].candidates}
    assert (known["c1"].counted, known["c1"].last_asked, known["c5"].counted) == (1, 1, 0)
    assert known["c1"].upload_s == pytest.approx((BITS + HEADER) / 2e5)
    assert known["c3"].num_examples == 16


def test_fedcs_fills_its_deadline(tmp_path: Path) -> None:
    cell = net.Links(uplink_bps=1e5, downlink_bps=1e9)
    deadline_s = 3.5 * (BITS + HEADER) / 1e5  # three uploads, one after another
    network = rd.Network(cell=cell, sharing=net.Fifo(), select=net.FedCs(deadline_s=deadline_s))
    history, _ = ran(network, tmp_path, workflow=rd.Rounds(deadline_s=deadline_s), **EVERYBODY)
    assert [row["admitted"] for row in history.rows] == [3, 3, 3]
    assert statuses(history) == {"admitted"}


# ---- one's own, edges, and constant concurrency ---------------------------------------------------------------------


def test_ones_own_transfer_decides_what_arrives_what_it_costs_and_when(tmp_path: Path) -> None:
    links: list[net.Link] = []

    def halves(vector: Tensor, link: net.Link, generator: torch.Generator) -> tuple[Tensor, int, float]:
        links.append(link)
        return vector.half().float(), 16 * vector.numel(), 2.0 + torch.rand((), generator=generator).item()

    history, rows = ran(rd.Network(cell=LINKS, transfer=halves), tmp_path, num_rounds=2)
    up = messages(rows, direction="up")
    assert {row["bits"] for row in up} == {16 * sum(p.numel() for p in history.model.parameters())}
    assert all(2 * NS <= row["last_bit_ns"] - row["first_bit_ns"] <= 3 * NS for row in up)
    assert links[0].rate_bps == 1e5
    assert history.sha256 != small_job(num_rounds=2).run().sha256


def test_edges_have_cells_of_their_own_and_a_wire_to_the_cloud(tmp_path: Path) -> None:
    """Two edges of three clients: side by side, so that a round takes what one edge takes, and the wire twice."""
    wire = net.Backhaul(rate_bps=1e6, latency_s=0.5, shared=False)
    network = rd.Network(cell=LINKS, sharing=net.Fifo(), backhaul=wire)
    workflow = rd.Hierarchical(edges=2, edge_rounds=2)
    history, rows = ran(network, tmp_path, num_rounds=1, workflow=workflow, clients_per_round=3)
    whole = BITS + HEADER
    expected = 2 * (0.5 + whole / 1e6) + 2 * (whole / 1e6 + 3 * whole / 1e5)
    assert history.rows[0]["virtual_s"] == pytest.approx(expected, abs=1e-6)
    assert sorted(row["client"] for row in messages(rows, kind="haul")) == ["edge-0", "edge-0", "edge-1", "edge-1"]
    plain = small_job(num_rounds=1, workflow=workflow, clients_per_round=3).run()
    assert history.sha256 == plain.sha256
    assert history.rows[0]["uplink_bits"] == 12 * whole


def test_a_wire_behind_one_cell_carries_every_update(tmp_path: Path) -> None:
    wire = net.Backhaul(rate_bps=1e6, latency_s=0.25, shared=False)
    history, _ = ran(rd.Network(cell=LINKS, backhaul=wire), tmp_path, num_rounds=1)
    whole = BITS + HEADER
    assert history.rows[0]["virtual_s"] == pytest.approx(2 * (0.25 + whole / 1e6) + whole / 1e6 + whole / 1e5, abs=1e-6)


def test_under_constant_concurrency_an_answer_is_overtaken_by_one_less_than_train_at_once() -> None:
    """T12: of C tasks always under way, C - 1 others end between a task's dispatch and its end, for any durations."""
    network = rd.Network(
        cell=net.Links(uplink_bps=1e5, downlink_bps=1e7), sharing=net.Fifo(),
        computing=net.HalfNormal(scale_s=0.5),
    )  # fmt: skip
    workflow = rd.Buffered(buffer_size=1, concurrency=4)
    history = job(network, num_rounds=150, workflow=workflow, learner=rd.LocalSGD(lr=0.01, local_batches=1)).run()
    staleness = [row["staleness"] for row in history.rows]
    assert sum(staleness) / len(staleness) == pytest.approx(3, abs=0.1)
    assert max(staleness) > 3


def test_an_own_workflow_sleeps_gathers_and_times_out_in_virtual_time() -> None:
    moments: list[float] = []

    async def workflow(fed: rd.Server) -> None:
        loop = asyncio.get_running_loop()
        model = fed.load_model()
        await asyncio.sleep(100.0)
        moments.append(loop.time())
        try:
            async with asyncio.timeout(0.001):
                await fed.train(model, fed.sample())
        except TimeoutError:
            moments.append(loop.time())
        results, _ = await asyncio.gather(fed.train(model, fed.sample()), asyncio.sleep(0.01))
        moments.append(loop.time())
        await fed.save(fed.update(model, fed.aggregate(results)))

    history = job(rd.Network(cell=LINKS), num_rounds=1, workflow=workflow).run()
    assert moments == pytest.approx([100.0, 100.001, 100.001 + (BITS + HEADER) * (1e-6 + 1e-5)])
    assert history.trace_hash


# ---- what cannot mean what it says ----------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no cell": ({"cell": "radio"}, "cell must be a Radio"),
    "a band of links": ({"cell": LINKS, "sharing": net.EqualShare()}, "EqualShare splits a band"),
    "a way down": ({"cell": LINKS, "downlink": "multicast"}, "downlink must be one of"),
    "loss without errors": ({"cell": net.Radio(), "loss": net.Waterfall()}, "loss says how often"),
    "both ways": ({"cell": LINKS, "transfer": heavier(1), "errors": net.Arq()}, "leave errors out"),
    "nothing to scale": ({"cell": LINKS, "transmit_over_compute": 1.0}, "give computing"),
    "half a bit": ({"cell": LINKS, "header_bits": 0.5}, "header_bits must be a whole number"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_a_network_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rd.Network(**settings)


def test_a_network_takes_the_place_of_a_duration() -> None:
    with pytest.raises(ConfigError, match="not both"):
        rd.Simulation(network=rd.Network(cell=LINKS), duration=lambda client, task: 1.0)


def test_a_job_file_says_it_all_and_a_wrong_key_is_named(tmp_path: Path) -> None:
    table = {
        "cell": {"use": "radio", "rate": {"use": "gap"}, "path_loss": {"use": "macro_36814"}},
        "computing": {"use": "cycles", "cycles_per_sample": [1e4, 3e4]},
        "errors": {"use": "arq", "loss_probability": 0.1},
        "sharing": "fifo",
    }
    document = {"num_rounds": 1, "clients_per_round": 1, "model": "networks:Plain", "data": "networks:federated",
                "learner": {"lr": 0.1}, "simulation": {"network": {**table, "sharing": {"use": "fifo"}}}}  # fmt: skip
    network = config.build_job(document).simulation.network
    assert network is not None
    assert (network.sharing, network.errors) == (net.Fifo(), net.Arq(loss_probability=0.1))
    assert network.computing == net.Cycles(cycles_per_sample=(1e4, 3e4))
    with pytest.raises(ConfigError, match="did you mean 'computing'"):
        config.build_job({**document, "simulation": {"network": {**table, "compute": 1}}})


def test_seeds_key_every_draw() -> None:
    """Another seed is another network."""
    network = rd.Network(cell=net.Radio(bandwidth_hz=1e5))
    assert job(network).run().trace_hash != job(network, seed=8).run().trace_hash
    assert seeds.key(7, 0, 0, "a", "packets") != seeds.key(8, 0, 0, "a", "packets")
    assert math.isfinite(job(network).run().rows[-1]["virtual_s"])


# ---- the same checks, with a bug planted ----------------------------------------------------------------------------


def bytes_for_bits(patch: pytest.MonkeyPatch) -> None:
    carried = Air.carried
    patch.setattr(Air, "carried", lambda self, answer: (answer, Sent(carried(self, answer)[1].bits // 8)))


def forget_headers(patch: pytest.MonkeyPatch) -> None:
    start = Cells.start

    def planted(self: Cells, cell: int, flow: int, clients: Sequence[int], bits: int, now_ns: int) -> None:
        start(self, cell, flow, clients, bits - HEADER, now_ns)

    patch.setattr(Cells, "start", planted)


def one_message_each(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Population, "hearing", lambda self, site, trips, now_ns: [[trip] for trip in trips])


def forget_what_was_cut_off(patch: pytest.MonkeyPatch) -> None:
    sent = Trace.sent
    patch.setattr(Trace, "sent", lambda *given: None if given[-1] == "late" else sent(*given))


def energy_for_the_whole_stay(patch: pytest.MonkeyPatch) -> None:
    energy_j = ledgers.Transmitter.energy_j
    patch.setattr(ledgers.Transmitter, "energy_j", lambda self, airtime_ns: energy_j(self, airtime_ns + 10**6))


def scale_the_wrong_way(patch: pytest.MonkeyPatch) -> None:
    found = world.calibrated
    patch.setattr(world, "calibrated", lambda *given: replace(found(*given), factor=1 / found(*given).factor))


def luck_by_the_task(patch: pytest.MonkeyPatch) -> None:
    """Draws keyed by how much is sent."""
    modelled_s = Population._modelled_s

    def planted(self: Population, client: str, task: rd.Task) -> float:
        transfer = self._network.transfer
        _, bits, _ = transfer(torch.zeros(1), None, torch.Generator())  # type: ignore[arg-type, misc]
        return modelled_s(self, client, replace(task, round=task.round + bits))

    patch.setattr(Population, "_modelled_s", planted)


def ask_whoever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Air, "there", lambda self, number, attempt, count, pool: pool)


def free_wire(patch: pytest.MonkeyPatch) -> None:
    async def haul(self: Air, edge: str, bits: int, up: bool) -> None: ...

    patch.setattr(Air, "haul", haul)


def one_cell_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("roundelay.run.Run._edges", lambda self: {})


def lost_ones_arrive(patch: pytest.MonkeyPatch) -> None:
    lose = Air._lose

    def planted(self: Air, trip: Trip, reason: str) -> None:
        self._land(trip) if trip.lost else lose(self, trip, reason)

    patch.setattr(Air, "_lose", planted)


PLANTED = {
    "bytes for bits": (bytes_for_bits, test_bits_are_those_of_what_was_sent_and_a_broadcast_counts_once),
    "no headers": (forget_headers, test_bits_are_those_of_what_was_sent_and_a_broadcast_counts_once),
    "a broadcast for each": (
        one_message_each, test_bits_are_those_of_what_was_sent_and_a_broadcast_counts_once,
    ),
    "free where cut off": (forget_what_was_cut_off, test_a_round_cut_short_keeps_what_was_sent_and_computed_until_then),
    "energy for longer": (
        energy_for_the_whole_stay, test_rows_sum_to_the_ledger_and_energy_is_power_times_airtime_and_cycles,
    ),
    "the inverse factor": (
        scale_the_wrong_way, test_calibration_makes_the_median_upload_and_the_median_computing_stand_in_that_ratio,
    ),
    "luck by size": (luck_by_the_task, test_two_sizes_of_update_meet_the_same_cohorts_computing_and_calibration),
    "whoever": (ask_whoever, test_who_is_away_is_not_asked_and_who_leaves_is_lost),
    "a free wire": (free_wire, test_edges_have_cells_of_their_own_and_a_wire_to_the_cloud),
    "one cell": (one_cell_for_all, test_edges_have_cells_of_their_own_and_a_wire_to_the_cloud),
    "lost ones": (lost_ones_arrive, test_an_erased_update_is_lost_with_its_reason_and_the_round_goes_on_without_it),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "check"), PLANTED.values(), ids=PLANTED)
def test_the_checks_catch(
    plant: Callable[[pytest.MonkeyPatch], None], check: Callable[[Path], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path)


def test_what_tasks_tell_for_the_uplink_is_no_work() -> None:
    lag = rd.Uplink(trigger=rd.Lag(xi=4.0, depth=2), on_silence="reuse")
    given = small_job(uplink=lag, tracking=None)
    over = rd.Simulation(executor="serial", network=rd.Network(cell=LINKS, computing=net.Cycles(cycles_per_sample=1e6)))
    assert replace(given, simulation=over).run().sha256 == given.run().sha256
