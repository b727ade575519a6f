"""Clients by a function: the same bits as held ones, and nothing that is done for all of a million."""

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from networks import Plain, examples, federated, small_job
from test_memory import Drifting
from torch import Tensor

import roundelay as rd
from roundelay import config
from roundelay.data.client_tables import client_table, write_client_table
from roundelay.data.ids import Ids, NumberedIds
from roundelay.data.parts import Made
from roundelay.errors import ConfigError, DataError
from roundelay.simulation import population as populations
from roundelay.simulation.network.reach import Reach
from roundelay.simulation.population import Population
from roundelay.simulation.workload import Workload
from roundelay.workflows import buffered

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
VECTORIZED = rd.Simulation(executor="vectorized")
NAMES = [f"c{i}" for i in range(6)]


def part(client: str) -> rd.data.TensorExamples:
    return examples(10 + 2 * int(client[1:]), seed=int(client[1:]))


def made(**settings: object) -> rd.FederatedData:
    return rd.FederatedData.from_function(NAMES[::-1], part, held_out=examples(30, seed=99), **settings)


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
def test_clients_whose_data_is_made_end_in_the_bits_of_clients_who_hold_it(simulation: rd.Simulation) -> None:
    held = small_job(data=federated, simulation=SERIAL).run()
    ours = small_job(data=made, simulation=simulation).run()
    assert ours.sha256 == held.sha256
    assert [row["accuracy"] for row in ours.rows] == [row["accuracy"] for row in held.rows]


def test_a_table_on_disk_ends_in_the_same_bits_in_every_process(tmp_path: Path) -> None:
    write_client_table(tmp_path / "table", ((client, part(client)) for client in NAMES))
    held = small_job(data=federated).run().sha256
    for simulation in (SERIAL, POOL):
        data = client_table(tmp_path / "table", held_out=examples(30, seed=99))
        assert small_job(data=data, simulation=simulation).run().sha256 == held


def drawn(client: str) -> tuple[Tensor, Tensor]:
    """Draws from the global generator, and so, without care, from the clients' dropout."""
    return torch.randn(12, 7), torch.randint(0, 3, (12,))


def check_drawn() -> None:
    hashes = set()
    for simulation, num_cached in ((SERIAL, 16), (SERIAL, 0), (SERIAL, 1), (POOL, 16)):
        data = rd.FederatedData.from_function(8, drawn, num_cached=num_cached)
        hashes.add(small_job(data=data, simulation=simulation, num_rounds=4, clients_per_round=5).run().sha256)
    assert len(hashes) == 1
    first, second = (rd.FederatedData.from_function(8, drawn, seed=seed).train("3").inputs for seed in (0, 1))
    assert not torch.equal(first, second)


def test_what_a_function_draws_is_the_clients_own_whoever_keeps_it() -> None:
    check_drawn()


def test_the_test_would_see_draws_that_are_not_keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Made, "part", lambda self, number: rd.data.as_examples(self.make(self.clients[number])))
    with pytest.raises(AssertionError):
        check_drawn()


def test_clients_are_tested_on_what_their_function_gives() -> None:
    def own(client: str) -> object | None:
        return None if client == "c1" else examples(5, seed=50 + int(client[1:]))

    evaluation = rd.Evaluation(clients_every=1)
    tests = {client: test for client in NAMES if (test := own(client)) is not None}
    held = rd.FederatedData.from_datasets({client: part(client) for client in NAMES}, None, tests)
    ours = rd.FederatedData.from_function(NAMES, part, tests=own)
    rows = [small_job(data=data, evaluation=evaluation, num_rounds=2).run().rows for data in (held, ours)]
    assert [row["client_accuracy"] for row in rows[0]] == [row["client_accuracy"] for row in rows[1]]


def test_wrong_functions_and_ids_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="client 'b': expected examples"):
        rd.FederatedData.from_function(["a", "b"], lambda client: 7).train("b")
    with pytest.raises(DataError, match="client 'b': the function that makes its data returned None"):
        rd.FederatedData.from_function(["a", "b"], lambda client: None).train("b")
    with pytest.raises(DataError, match="client '5': expected at least one example"):
        rd.FederatedData.from_function(9, lambda client: (torch.ones(0, 2), torch.ones(0))).train("5")
    with pytest.raises(DataError, match=r"client '9': it holds no data; known are '0', .* \(9 in all\)"):
        rd.FederatedData.from_function(9, part).train("9")
    for wrong, said in (([], "at least one client"), (["a", ""], "non-empty strings"), (["a", "a"], "each id once")):
        with pytest.raises(DataError, match=said):
            rd.FederatedData.from_function(wrong, part)
    with pytest.raises(ConfigError, match="num_cached must be at least 0"):
        rd.FederatedData.from_function(9, part, num_cached=-1)


# ---- nothing for all ------------------------------------------------------------------------------------------------

MANY = 1_000_000
CALLS = 20_000
"""Far below a look at each client, and at one in every ten."""


@dataclass(frozen=True, slots=True)
class Counted(Ids):
    """Numbered ids that count how often they are asked for."""

    ids: NumberedIds
    asked: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, number: int) -> str:
        self.asked[0] += 1
        assert self.asked[0] < CALLS, "somebody looks at every client"
        return self.ids.at(number)

    def number(self, client: object) -> int | None:
        return self.ids.number(client)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("somebody goes through all clients")


def flat(client: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(int(client))
    return torch.randn(6, 7, generator=generator), torch.full((6,), int(client) % 3)


def of_a_million(**changes: object) -> rd.Job:
    data = rd.FederatedData.from_function(Counted(NumberedIds(MANY), [0]), flat, sizes=lambda client: 6)
    learner = rd.LocalSGD(lr=0.1, batch_size=3)
    return small_job(**{"model": Plain, "data": data, "learner": learner, "num_rounds": 3, **changes})


async def by_hand(fed: rd.Server) -> None:
    while fed.running:
        model = fed.load_model()
        results = await fed.train(model, fed.sample(5))
        await fed.save(fed.update(model, fed.aggregate(results)))


def pace(client: str, task: rd.Task) -> float:
    return 1.0 + int(client) % 5


def links(**settings: object) -> rd.Simulation:
    computing = rd.network.Cycles(cycles_per_sample=(1e6, 1e7))
    network = rd.Network(cell=rd.network.Links(uplink_bps=1e6, downlink_bps=1e7), computing=computing, **settings)
    return rd.Simulation("serial", network=network)


JOBS: dict[str, dict[str, object]] = {
    "rounds": {},
    "vectorized": {"simulation": VECTORIZED},
    "a share": {"clients_per_round": 5e-6},
    "retries": {"workflow": rd.Rounds(over_selection=0.5, quorum=2, attempts=2)},
    "memory": {"algorithm": Drifting(), "simulation": rd.Simulation("serial", memory="disk")},
    "epochs": {"learner": rd.LocalSGD(lr=0.1, batch_size=6, local_batches=1, when_exhausted="skip")},
    "buffered": {"workflow": rd.Buffered(2), "simulation": rd.Simulation("serial", duration=pace)},
    "cyclic": {"workflow": rd.Cyclic("random")},
    "edges": {"workflow": rd.Hierarchical(edges=3, edge_rounds=2)},
    "by hand": {"workflow": by_hand},
    "a root": {"aggregator": rd.FLTrust(root="000007")},
    "uplink": {"uplink": rd.Uplink(codec=rd.TopK(fraction=0.2), feedback="ef21")},
    "attacks": {"attacks": [rd.attacks.SignFlip(clients=("000003",))]},
    "network": {"simulation": links(availability=rd.network.OnOff(mean_on_s=600, mean_off_s=300))},
    "cells": {"workflow": rd.Hierarchical(edges=3), "simulation": links(transmit_over_compute=1.0)},
}


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_no_job_goes_through_a_million_clients(changes: dict[str, object], tmp_path: Path) -> None:
    kept = rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0)
    job = of_a_million(**changes, tracking=kept)
    for done in job.rounds():
        if done.number == 2:
            break
    history = job.run(resume=tmp_path / "run")
    assert len(history.rows) == job.num_rounds
    assert {row["client"] for row in history.clients() if row["status"] == "admitted"} != set()
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("what", ["buffered", "epochs", "a root", "network"])
def test_the_test_would_see_a_list_of_all(what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def listed(ids: Sequence[str], left_out: Sequence[str]) -> list[str]:
        return [client for client in ids if client not in left_out]

    for module in (buffered, "roundelay.epochs", "roundelay.bookkeeping"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.Without", listed)
    monkeypatch.setattr(populations, "LARGE", 10**9)
    with pytest.raises(AssertionError, match=r"all clients|every client"):
        test_no_job_goes_through_a_million_clients(JOBS[what], tmp_path)


def test_only_the_asked_have_their_data_made(tmp_path: Path) -> None:
    asked: list[str] = []

    def noted(client: str) -> tuple[Tensor, Tensor]:
        asked.append(client)
        return flat(client)

    data = rd.FederatedData.from_function(MANY, noted)
    history = of_a_million(data=data, tracking=rd.Tracking(str(tmp_path), "run")).run()
    assert sorted(asked) == sorted(row["client"] for row in history.clients())
    assert len(asked) == 12
    assert not (history.run_folder / "label_counts.json").exists()


def peak_of_a_run(num_clients: int) -> int:
    """Return the most memory that Python's own allocator gave out beyond what was there before."""
    tracemalloc.start()
    data = rd.FederatedData.from_function(num_clients, flat, sizes=lambda client: 6)
    of_a_million(data=data, num_rounds=5, simulation=rd.Simulation("serial", memory="disk")).run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_million_clients_take_no_more_memory_than_a_thousand() -> None:
    peak_of_a_run(1000)  # what is imported and kept for good
    few, many = peak_of_a_run(1000), peak_of_a_run(MANY)
    assert many - few < 200_000  # a byte for every fifth client


# ---- draws ----------------------------------------------------------------------------------------------------------


def test_who_is_drawn_is_who_was_drawn_from_a_list() -> None:
    """The ids' form changes nobody's draw, nor does leaving out a root or those under way."""
    ids = NumberedIds(50)
    for workflow in (rd.Rounds(), rd.Buffered(3), rd.Hierarchical(edges=4)):
        told = []
        for clients in (list(ids), ids):
            data = rd.FederatedData.from_function(clients, flat)
            simulation = rd.Simulation("serial", duration=pace)
            rounds = of_a_million(data=data, workflow=workflow, simulation=simulation, num_rounds=5).rounds()
            told.append([[(report.client, report.status) for report in done.clients] for done in rounds])
        assert told[0] == told[1]


def away(num_clients: int, mean_off_s: float) -> Population:
    availability = rd.network.OnOff(mean_on_s=300, mean_off_s=mean_off_s)
    network = rd.Network(cell=rd.network.Links(uplink_bps=1e6, downlink_bps=1e6), availability=availability)
    job = of_a_million(data=rd.FederatedData.from_function(num_clients, flat))
    reach = Reach.of(network, 7, NumberedIds(num_clients))
    return Population(network, [reach], Workload(job.prepared().work), 1.0, lambda duration: duration)


def test_of_a_large_population_those_who_are_there_are_met_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    population, ids, now_ns = away(40, mean_off_s=300), NumberedIds(40), 10**12
    there = population.there(1, 0, 5, ids, now_ns)
    assert 12 < len(there) < 30
    monkeypatch.setattr(populations, "LARGE", 39)
    counts, rounds = dict.fromkeys(there, 0), 600
    for number in range(rounds):
        met = population.there(number, 0, 3, ids, now_ns)
        if len(met) > 3:  # a quarter of all had been looked at
            assert list(met) == list(there)
            continue
        assert list(met) == sorted(set(met))
        assert len(met) == 3
        for client in met:
            counts[client] += 1
    total = sum(counts.values())
    assert total > 2 * rounds
    expected = total / len(there)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < len(there) - 1 + 4 * (2 * (len(there) - 1)) ** 0.5
    assert population.there(5, 0, 3, ids, now_ns) == population.there(5, 0, 3, ids, now_ns)


def test_where_hardly_anybody_is_there_everybody_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    population, ids = away(400, mean_off_s=30_000), NumberedIds(400)
    there = population.there(1, 0, 200, ids, 10**12)
    assert 0 < len(there) < 40
    monkeypatch.setattr(populations, "LARGE", 399)
    assert list(population.there(1, 0, 200, ids, 10**12)) == list(there)


# ---- job files ------------------------------------------------------------------------------------------------------


def test_a_job_file_names_a_function_that_returns_a_population(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_client_table(tmp_path / "phones", ((client, flat(client[1:])) for client in NAMES))
    (tmp_path / "their_phones.py").write_text(
        "import torch\nimport roundelay as rd\n\n"
        "def phone(client):\n    return torch.full((4, 7), float(client)), torch.zeros(4, dtype=torch.int64)\n\n"
        "def phones(num_clients):\n    return rd.FederatedData.from_function(num_clients, phone)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for used, clients in (
        ('use = "their_phones:phones"\nnum_clients = 1000000', 1_000_000),
        (f'use = "client_table"\npath = "{tmp_path / "phones"}"', 6),
    ):
        (tmp_path / "job.toml").write_text(
            "num_rounds = 2\nclients_per_round = 3\n[model]\nuse = 'networks:Plain'\n[learner]\nuse = 'local_sgd'\n"
            f"lr = 0.1\n[simulation]\nexecutor = 'serial'\n[tracking]\nroot = '{tmp_path / 'runs'}'\n[data]\n{used}\n"
        )
        history = config.load(tmp_path / "job.toml").run()
        assert [row["admitted"] for row in history.rows] == [3, 3]
        known = {row["client"] for row in history.clients()}
        assert all((len(client) == 6) == (clients == 1_000_000) for client in known)
