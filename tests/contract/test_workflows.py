"""Buffered, cyclic and hierarchical workflows: what they come to, in every executor and after a resume."""

import json
from pathlib import Path

import pytest
import torch
from networks import federated, small_job
from torch import Tensor

import roundelay as rd
from roundelay import seeds
from roundelay.errors import ClientFailed, ConfigError
from roundelay.workflows import buffered

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)


def uneven(client: str, task: rd.Task) -> float:
    return 0.5 + 3 * seeds.uniform(5, task.round, task.attempt, client, "pace")


def at_pace(simulation: rd.Simulation, pace=uneven) -> rd.Simulation:
    return rd.Simulation(simulation.executor, simulation.num_workers, duration=pace)


BUFFERED = {"workflow": rd.Buffered(buffer_size=2, concurrency=4), "num_rounds": 8}


# ---- buffered -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [None, lambda client, task: 1.5], ids=["at once", "equal"])
def test_a_buffer_of_the_whole_cohort_and_equal_durations_is_fedavg_to_the_bit(duration) -> None:
    simulation = rd.Simulation(executor="serial", duration=duration)
    asynchronous = small_job(workflow=rd.Buffered(buffer_size=4), simulation=simulation).run()
    assert asynchronous.sha256 == small_job(simulation=simulation).run().sha256
    assert [row["staleness"] for row in asynchronous.rows] == [0, 0, 0]


def test_buffered_rounds_end_in_the_same_bits_in_every_executor() -> None:
    hashes = {small_job(**BUFFERED, simulation=at_pace(s)).run().sha256 for s in (SERIAL, POOL)}
    assert len(hashes) == 1


@pytest.mark.parametrize("rounds_before", [1, 3, 6])
def test_buffered_rounds_resume_with_the_tasks_that_were_under_way(rounds_before: int, tmp_path: Path) -> None:
    settings = {**BUFFERED, "simulation": at_pace(SERIAL)}
    whole = small_job(**settings).run()
    job = small_job(**settings, tracking=rd.Tracking(root=str(tmp_path), name="run", checkpoint_every_s=0))
    for finished in job.rounds():
        if finished.number == rounds_before:
            break
    resumed = job.run(resume=tmp_path / "run")
    assert resumed.sha256 == whole.sha256
    assert [row["virtual_s"] for row in resumed.rows] == [row["virtual_s"] for row in whole.rows]


def test_the_resume_test_would_see_tasks_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from roundelay.simulation.federation import SimulatedFederation

    monkeypatch.setattr(SimulatedFederation, "restore", lambda self: self._given.restored)
    with pytest.raises(AssertionError):
        test_buffered_rounds_resume_with_the_tasks_that_were_under_way(3, tmp_path)


def test_staleness_follows_the_counting_identity_of_constant_concurrency() -> None:
    """With C tasks always under way, C - 1 others arrive between a dispatch and its answer: (C - 1) / K rounds."""
    concurrency, size = 10, 5
    data = rd.FederatedData.from_datasets({f"c{i:02d}": federated(1).train("c0") for i in range(40)})
    job = small_job(
        data=data, num_rounds=400, simulation=at_pace(SERIAL), evaluation=rd.Evaluation(every=0),
        learner=lambda model, part, task: (1, {}), workflow=rd.Buffered(size, concurrency),
    )  # fmt: skip
    staleness = [row["staleness"] for row in job.run().rows[20:]]
    assert sum(staleness) / len(staleness) == pytest.approx((concurrency - 1) / size, rel=0.02)


def test_an_update_from_an_older_version_counts_by_its_increment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients, a buffer of one; by hand: the second answer started from version 0 and finds version 1."""

    def train(model: torch.nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        with torch.no_grad():
            for p in model.parameters():
                p += 1.0 if task.client == "c0" else 10.0
        return 1, {}

    def pace(client: str, task: rd.Task) -> float:
        return 1.0 if client == "c0" else 1.5

    job = small_job(
        data=federated(2), learner=train, num_rounds=2, clients_per_round=2, simulation=at_pace(SERIAL, pace),
        workflow=rd.Buffered(buffer_size=1, staleness_exponent=0.5),
    )  # fmt: skip
    states: list[dict[str, Tensor]] = [finished.state_dict() for finished in job.rounds()]
    moved = states[1]["second.bias"] - states[0]["second.bias"]
    assert moved == pytest.approx(torch.full((3,), 10 * 2**-0.5), rel=1e-6)


def test_a_client_that_fails_is_replaced_and_clients_that_all_fail_end_the_run() -> None:
    def one_fails(model: torch.nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        if task.client == "c1":
            raise ValueError("broken client")
        return len(part), {}

    def all_fail(model: torch.nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        raise ValueError("broken code")

    settings = {**BUFFERED, "simulation": at_pace(SERIAL)}
    rows = small_job(**settings, learner=one_fails).run().rows
    assert all(row["admitted"] == 2 for row in rows)
    assert sum(row["lost"] for row in rows) > 0
    with pytest.raises(ClientFailed, match="broken code"):
        small_job(**settings, learner=all_fail).run()


def test_more_clients_at_a_time_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="concurrency = 7, but there are only 6 clients"):
        small_job(workflow=rd.Buffered(buffer_size=2, concurrency=7)).run()


def test_the_increment_test_would_see_values_scaled_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered, "_moved", lambda base, end, start, weight: base + weight * (end - base))
    with pytest.raises(AssertionError):
        test_an_update_from_an_older_version_counts_by_its_increment(monkeypatch)


# ---- cyclic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_a_cyclic_round_trains_each_client_on_what_the_one_before_left(order: str) -> None:
    seen: list[tuple[str, float]] = []

    def train(model: torch.nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        bias = dict(model.named_parameters())["second.bias"]
        seen.append((task.client, round(float(bias.detach()[0]), 4)))
        with torch.no_grad():
            bias += 1
        return len(part), {}

    job = small_job(learner=train, num_rounds=2, clients_per_round=6, workflow=rd.Cyclic(order=order))
    job.run()
    steps = [value - seen[0][1] for _, value in seen]
    assert steps == pytest.approx(list(range(12)), abs=1e-3)
    passes = [client for client, _ in seen[:6]], [client for client, _ in seen[6:]]
    assert sorted(passes[0]) == sorted(passes[1]) == [f"c{i}" for i in range(6)]
    assert (passes[0] == sorted(passes[0])) == (order == "fixed")


def test_cyclic_rounds_end_in_the_same_bits_in_every_executor() -> None:
    hashes = {small_job(workflow=rd.Cyclic("random"), simulation=s).run().sha256 for s in (SERIAL, POOL)}
    assert len(hashes) == 1


# ---- hierarchical ---------------------------------------------------------------------------------------------------


def test_one_edge_and_one_edge_round_is_fedavg_to_the_bit() -> None:
    settings = {"clients_per_round": 6}
    layered = small_job(**settings, workflow=rd.Hierarchical(edges=1)).run()
    assert layered.sha256 == small_job(**settings).run().sha256


def test_edges_of_one_round_each_come_to_fedavg_over_all_clients() -> None:
    settings = {"clients_per_round": 1.0, "num_rounds": 2}
    layered = small_job(**settings, workflow=rd.Hierarchical(edges={"a": ["c0", "c3"], "b": ["c1", "c2", "c4", "c5"]}))
    for one, other in zip(
        layered.run().model.parameters(), small_job(**settings).run().model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_edges_train_side_by_side_in_virtual_time_and_end_in_the_same_bits_in_every_executor() -> None:
    settings = {"clients_per_round": 2, "workflow": rd.Hierarchical(edges=3, edge_rounds=2)}
    histories = [small_job(**settings, simulation=at_pace(s, lambda client, task: 1.0)).run() for s in (SERIAL, POOL)]
    assert len({history.sha256 for history in histories}) == 1
    assert [row["virtual_s"] for row in histories[0].rows] == [2.0, 4.0, 6.0]


def test_a_client_under_two_edges_or_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="client 'c1' is under 'a' and 'b'"):
        small_job(workflow=rd.Hierarchical(edges={"a": ["c0", "c1"], "b": ["c1"]})).run()
    with pytest.raises(ConfigError, match="client 'zoe' of edge 'a' does not exist"):
        small_job(workflow=rd.Hierarchical(edges={"a": ["zoe"]})).run()


# ---- cross-site -----------------------------------------------------------------------------------------------------


def test_every_clients_model_is_measured_on_every_clients_data(tmp_path: Path) -> None:
    def train(model: torch.nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        with torch.no_grad():  # always answers with the class that is the client's number
            for p in model.parameters():
                p.zero_()
            model.second.bias[int(task.client[1])] = 1.0
        return len(part), {}

    data = federated(3)
    job = small_job(
        data=data, learner=train, clients_per_round=3, num_rounds=1, workflow=rd.CrossSite(),
        tracking=rd.Tracking(str(tmp_path), "run"),
    )  # fmt: skip
    table = job.run().records["cross_site"]
    assert table["models"] == ["global model", "c0", "c1", "c2"]
    for number, row in enumerate(table["accuracy"][1:]):
        shares = [float((data.train(client).targets == number).float().mean()) for client in table["clients"]]
        assert row == pytest.approx(shares)
    assert json.loads((tmp_path / "run" / "cross_site.json").read_text()) == table


def test_the_matrix_is_the_same_in_every_executor_and_the_model_is_that_of_the_rounds() -> None:
    runs = [small_job(workflow=rd.CrossSite(), simulation=s).run() for s in (SERIAL, POOL)]
    assert runs[0].records == runs[1].records
    assert {run.sha256 for run in runs} == {small_job().run().sha256}


def test_algorithms_whose_clients_send_no_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="which cross-site evaluation measures"):
        small_job(workflow=rd.CrossSite(), algorithm=rd.FedNova()).run()
    with pytest.raises(ConfigError, match=r"set evaluation\.clients_every"):
        small_job(workflow=rd.CrossSite(), algorithm=rd.Ditto(strength=0.1)).run()
