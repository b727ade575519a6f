"""IFCA: Ghosh 2020, Algorithm 1 with model averaging."""

from pathlib import Path

import pytest
import torch
from networks import Awkward, federated, small_job
from reference import Smooth, assert_follows, initial, loss_of, point, point_job, train, weighted
from torch import Tensor, nn

import roundelay as rd
from roundelay.trainer import Trainer

EXECUTORS = {"serial": rd.Simulation(executor="serial"), "processes": rd.Simulation(num_workers=2)}
executors = pytest.mark.parametrize("simulation", EXECUTORS.values(), ids=EXECUTORS)


def state_of(root: Path) -> dict[str, Tensor]:
    return torch.load(root / "run" / "checkpoint.pt", weights_only=True)["state"]


def test_a_step_by_hand(tmp_path: Path) -> None:
    """Two models; each of three clients moves the one that is nearer to it, and the nearest of none stays."""
    start = rd.IFCA(num_clusters=2, spread=2.0).init(torch.tensor([1.0, -2.0], dtype=torch.float64), 3)["models"]
    models = [m.tolist() for m in start]
    assert [(p + q) / 2 for p, q in zip(*models, strict=True)] == pytest.approx([1.0, -2.0])
    b, sizes = {"a": (9.0, -9.0), "b": (-9.0, 9.0), "c": (8.0, 1.0)}, {"a": 1, "b": 2, "c": 3}
    moved: dict[int, list[tuple[int, list[float]]]] = {0: [], 1: []}
    for client, target in b.items():
        best = min((0, 1), key=lambda j: sum((m - t) ** 2 for m, t in zip(models[j], target, strict=True)))
        end = [m - 0.1 * (m - t) for m, t in zip(models[best], target, strict=True)]
        moved[best].append((sizes[client], end))
    expected = [
        [sum(n * end[j] for n, end in moved[g]) / sum(n for n, _ in moved[g]) if moved[g] else models[g][j]
         for j in range(2)] for g in (0, 1)
    ]  # fmt: skip
    clients = {k: point(b[k], num_examples=sizes[k]) for k in b}
    job = point_job(clients, rd.IFCA(num_clusters=2, spread=2.0), tracking=rd.Tracking(str(tmp_path), "run"))
    told = job.run().model.state_dict()["at"].tolist()
    kept = state_of(tmp_path)["models"].tolist()
    assert kept == [pytest.approx(e, rel=1e-12) for e in expected]
    largest = max((0, 1), key=lambda g: sum(n for n, _ in moved[g]))
    assert told == kept[largest]


def test_rounds_match_a_straight_line_reference(tmp_path: Path) -> None:
    algorithm, data = rd.IFCA(num_clusters=3, spread=0.7, seed=4), federated()
    models = list(algorithm.init(initial(), 6)["models"])
    tracking = rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0)
    chosen = set()
    for finished in small_job(model=Smooth, algorithm=algorithm, num_rounds=5, tracking=tracking).rounds():
        groups: dict[int, tuple[list[Tensor], list[int]]] = {}
        for client in (report.client for report in finished.clients):
            own = data.train(client)
            best = min(range(3), key=lambda j, own=own: float(loss_of(models[j], own)))
            ends, sizes = groups.setdefault(best, ([], []))
            ends.append(train(models[best], own, finished.number, client)[0])
            sizes.append(len(own))
        chosen |= set(groups)
        for group, (ends, sizes) in groups.items():
            models[group] = weighted(ends, sizes)
        torch.testing.assert_close(state_of(tmp_path)["models"], torch.stack(models), rtol=1e-9, atol=1e-11)
        assert_follows(finished, models[max(sorted(groups), key=lambda g, groups=groups: sum(groups[g][1]))])
    assert len(chosen) > 1


@executors
def test_one_cluster_is_fedavg_to_the_bit(simulation: rd.Simulation) -> None:
    plain = small_job(model=Awkward).run().sha256
    assert small_job(model=Awkward, algorithm=rd.IFCA(num_clusters=1), simulation=simulation).run().sha256 == plain


@executors
def test_clusters_are_found_and_each_client_is_measured_with_its_own(simulation: rd.Simulation, tmp_path: Path) -> None:
    b = {f"c{i}": ((5.0, 5.0) if i % 2 else (-5.0, -5.0)) for i in range(6)}
    b = {c: (x + 0.1 * i, y) for i, (c, (x, y)) in enumerate(b.items())}
    job = point_job(
        {c: point(t) for c, t in b.items()}, rd.IFCA(num_clusters=2, spread=1.0), steps=5, lr=0.2, num_rounds=30,
        clients_per_round=4, simulation=simulation, tracking=rd.Tracking(str(tmp_path), "run"),
        evaluation=rd.Evaluation(every=0, clients_every=30, measures=()),
    )  # fmt: skip
    history = job.run()
    models = sorted(state_of(tmp_path)["models"].tolist())
    assert models[0] == pytest.approx([-4.8, -5.0], abs=0.3)  # two or three of a cluster train in the last round
    assert models[1] == pytest.approx([5.3, 5.0], abs=0.3)
    assert history.metrics["client_loss"] < 0.1  # with one model for all it would be about 25


def test_a_group_that_does_not_exist_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Trainer.train

    def lying(self: Trainer, task: rd.Task, *args: object) -> object:
        answer = answered(self, task, *args)
        if task.client == "c1":
            object.__setattr__(answer.update, "group", 2)
        return answer

    monkeypatch.setattr(Trainer, "train", lying)
    job = small_job(algorithm=rd.IFCA(num_clusters=2), clients_per_round=6, num_rounds=1)
    (finished,) = job.rounds()
    reports = {report.client: report for report in finished.clients}
    assert reports["c1"].status == "refused"
    assert (
        reports["c1"].reason
        == "unknown group: client 'c1' trained the model of group 2; expected a whole number from 0 to 1"
    )
    assert sum(report.status == "admitted" for report in finished.clients) == 5


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in torch.utils.data.DataLoader(data, batch_size=100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return len(data), {}


def test_a_users_own_function_trains_the_chosen_model() -> None:
    full_batch = rd.LocalSGD(lr=0.1, batch_size=0)
    own, ours = (small_job(model=Smooth, algorithm=rd.IFCA(num_clusters=2), learner=learner).run()
                 for learner in (user_function, full_batch))  # fmt: skip
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(own.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_clustered_is_refused() -> None:
    with pytest.raises(rd.errors.ConfigError, match="num_clusters = 7, but there are only 6 clients"):
        small_job(algorithm=rd.IFCA(num_clusters=7)).start()
    with pytest.raises(rd.errors.ConfigError, match="num_clusters must be a number at least 1"):
        rd.IFCA(num_clusters=0)
