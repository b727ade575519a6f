"""Ditto: Li 2021, Algorithm 1; the personal models, and who is measured with them."""

from pathlib import Path

import pytest
import torch
from networks import Awkward, Plain, federated, small_job
from reference import Smooth, assert_follows, initial, point, point_job, train, weighted
from torch import nn

import roundelay as rd
from roundelay import seeds
from roundelay.learner import accuracy

EXECUTORS = {"serial": rd.Simulation(executor="serial"), "processes": rd.Simulation(num_workers=2)}
executors = pytest.mark.parametrize("simulation", EXECUTORS.values(), ids=EXECUTORS)


def kept(root: Path, **changes: object) -> tuple[rd.History, dict[str, dict[str, torch.Tensor]]]:
    """Run, and return what the clients remember at the end."""
    history = small_job(**changes, tracking=rd.Tracking(root=str(root), name="run")).run()
    return history, torch.load(root / "run" / "checkpoint.pt", weights_only=True)["memory"]


def test_two_rounds_by_hand(tmp_path: Path) -> None:
    b, shares, lr, strength = {"a": 3.0, "b": -1.0}, {"a": 0.25, "b": 0.75}, 0.1, 0.5
    w, v = 1.0, {"a": 1.0, "b": 1.0}
    for _ in range(2):
        ends = {}
        for k in b:
            ends[k] = w
            for _ in range(2):
                ends[k] -= lr * (ends[k] - b[k])
            for _ in range(2):
                v[k] -= lr * ((v[k] - b[k]) + strength * (v[k] - w))
        w = sum(shares[k] * ends[k] for k in b)
    clients = {k: point((b[k], -2.0), num_examples=1 if k == "a" else 3) for k in b}
    job = point_job(
        clients, rd.Ditto(strength=strength), steps=2, num_rounds=2, tracking=rd.Tracking(str(tmp_path), "run")
    )
    assert job.run().model.state_dict()["at"].tolist() == pytest.approx([w, -2.0], rel=1e-12)
    memory = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["memory"]
    for k in b:
        assert memory[k]["personal"].tolist() == pytest.approx([v[k], -2.0], rel=1e-12)


def test_rounds_match_a_straight_line_reference(tmp_path: Path) -> None:
    data, w = federated(), initial()
    v = {client: w.clone() for client in data.clients}
    tracking = rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0)
    job = small_job(model=Smooth, algorithm=rd.Ditto(strength=0.3), num_rounds=4, tracking=tracking)
    for finished in job.rounds():
        cohort = [report.client for report in finished.clients]
        ends = [train(w, data.train(c), finished.number, c)[0] for c in cohort]
        for c in cohort:
            v[c], _ = train(v[c], data.train(c), finished.number, c, fit=1, correct=lambda g, p, x=w: g + 0.3 * (p - x))
        w = weighted(ends, [len(data.train(c)) for c in cohort])
        assert_follows(finished, w)
        memory = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["memory"]
        for c in memory:
            torch.testing.assert_close(memory[c]["personal"], v[c], rtol=1e-9, atol=1e-11)


@executors
@pytest.mark.parametrize("model", [Plain, Awkward])
def test_the_global_model_is_fedavgs_to_the_bit_buffers_included(model: type, simulation: rd.Simulation) -> None:
    plain = small_job(model=model).run().sha256
    assert small_job(model=model, algorithm=rd.Ditto(strength=0.3), simulation=simulation).run().sha256 == plain


def test_without_a_pull_the_personal_model_is_the_client_training_alone(tmp_path: Path) -> None:
    _, memory = kept(tmp_path, model=Smooth, algorithm=rd.Ditto(strength=0.0), clients_per_round=6, num_rounds=3)
    alone, own = initial(), federated().train("c3")
    for number in (1, 2, 3):
        alone, _ = train(alone, own, number, "c3", fit=1)
    torch.testing.assert_close(memory["c3"]["personal"], alone, rtol=1e-9, atol=1e-11)


def test_personal_and_global_minima_are_found(tmp_path: Path) -> None:
    """v_k = (b_k + lambda w) / (1 + lambda), where w is the mean."""
    clients = {"a": point((3.0, 0.0)), "b": point((-1.0, 4.0))}
    tracking = rd.Tracking(str(tmp_path), "run")
    job = point_job(clients, rd.Ditto(strength=0.5), steps=5, lr=0.2, num_rounds=60, tracking=tracking)
    assert job.run().model.state_dict()["at"].tolist() == pytest.approx([1.0, 2.0], abs=1e-6)
    memory = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["memory"]
    for client, b in (("a", (3.0, 0.0)), ("b", (-1.0, 4.0))):
        expected = [(b[j] + 0.5 * (1.0, 2.0)[j]) / 1.5 for j in range(2)]
        assert memory[client]["personal"].tolist() == pytest.approx(expected, abs=1e-6)


@executors
def test_clients_measure_their_personal_models_with_buffers_of_their_own(
    simulation: rd.Simulation, tmp_path: Path
) -> None:
    """BatchNorm's statistics of the personal training are the personal model's, never the server's."""
    history, memory = kept(
        tmp_path, algorithm=rd.Ditto(strength=0.1), num_rounds=4, clients_per_round=3, simulation=simulation,
        evaluation=rd.Evaluation(clients_every=4),
    )  # fmt: skip
    told = {row["client"]: row["accuracy"] for row in history.clients() if row["status"] == "evaluated"}
    assert len(told) == 6
    assert 0 < len(memory) <= 6
    data, model = federated(), Awkward()
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    for client in data.clients:
        state = dict(history.model.state_dict())
        if client in memory:
            own = memory[client]
            for name, part in zip(names, own["personal"].split(sizes), strict=True):
                state[name] = part.view_as(state[name])
            state["norm.running_mean"], state["norm.running_var"] = own["private buffers"].split(13)
            assert not torch.equal(own["private buffers"], torch.cat([torch.zeros(13), torch.ones(13)]))
        else:  # it has never trained: its personal model is still the initial one
            with seeds.preserved_globals():
                seeds.seed_globals(seeds.key(7, 0, 0, "", "model"))
                state |= {name: p.detach() for name, p in Awkward().named_parameters()}
        model.load_state_dict(state)
        model.eval()
        own = data.train(client)
        assert told[client] == pytest.approx(float(accuracy(model(own.inputs), own.targets).mean())), client


def test_personal_models_fit_their_clients_better_than_the_global_one() -> None:
    def loss(algorithm: object) -> float:
        job = small_job(model=Plain, algorithm=algorithm, num_rounds=15, clients_per_round=6,
                        evaluation=rd.Evaluation(clients_every=15))  # fmt: skip
        return job.run().metrics["client_loss"]

    assert loss(rd.Ditto(strength=0.01)) < loss(rd.FedAvg()) - 0.01


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    return len(data), {}


def test_a_users_function_is_refused_where_the_pull_would_not_be_applied() -> None:
    with pytest.raises(rd.errors.ConfigError, match="Ditto corrects every gradient, and FunctionLearner"):
        small_job(algorithm=rd.Ditto(strength=0.1), learner=user_function).start()
    small_job(algorithm=rd.Ditto(strength=0.0), learner=user_function).run()
