"""SCAFFOLD, option II: Karimireddy 2020, Algorithm 1."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import examples, federated, small_job
from reference import Smooth, assert_follows, end_of, flat, initial, point, point_job, train
from torch import nn

import roundelay as rd
from roundelay.intake import Intake
from roundelay.trainer import Answer


def test_two_rounds_by_hand() -> None:
    """Two clients, two steps each, curvatures that differ; everybody trains."""
    b, a, lr, steps, eta = {"a": 3.0, "b": -1.0}, {"a": 1.0, "b": 2.0}, 0.1, 2, 0.5
    x, c, own = 1.0, 0.0, {"a": 0.0, "b": 0.0}
    for _ in range(2):
        ends, deltas = [], []
        for i in ("a", "b"):
            y = x
            for _ in range(steps):
                y -= lr * (a[i] * (y - b[i]) - own[i] + c)
            new = own[i] - c + (x - y) / (steps * lr)
            ends.append(y)
            deltas.append(new - own[i])
            own[i] = new
        x, c = x + eta * (sum(ends) / 2 - x), c + sum(deltas) / 2
    clients = {i: point((b[i], -2.0), (a[i], 1.0), num_examples=5 if i == "a" else 1) for i in "ab"}
    job = point_job(clients, rd.Scaffold(server_lr=eta), steps=steps, num_rounds=2)
    assert end_of(job) == pytest.approx([x, -2.0], rel=1e-12)  # equal weights, whoever has more examples


def straight_line(
    rounds: Callable[[], object], *, server_lr: float = 1.0, refused: Callable[[int, str], bool] = lambda r, c: False
) -> None:
    data = federated()
    x = initial()
    c, own = torch.zeros_like(x), {client: torch.zeros_like(x) for client in data.clients}
    for finished in rounds():
        ends, deltas = [], []
        for client in sorted({report.client for report in finished.clients}):
            if refused(finished.number, client):
                continue
            drift = c - own[client]
            y, num_steps = train(x, data.train(client), finished.number, client, correct=lambda g, _, d=drift: g + d)
            new = own[client] - c + (x - y) / (num_steps * 0.1)
            ends.append(y)
            deltas.append(new - own[client])
            own[client] = new
        x = x + server_lr * (sum(ends) / len(ends) - x)
        c = c + len(ends) / 6 * (sum(deltas) / len(deltas))
        assert_follows(finished, x)


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
def test_rounds_of_some_of_the_clients_match_a_straight_line_reference(server_lr: float) -> None:
    job = small_job(model=Smooth, algorithm=rd.Scaffold(server_lr=server_lr), num_rounds=6)
    straight_line(job.rounds, server_lr=server_lr)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_client_that_is_refused_every_other_round_is_as_one_that_was_not_asked(executor: str) -> None:
    """Its control does not move, and the server's neither counts nor sees it."""

    def broken(round: int, client: str) -> bool:
        return client == "c2" and round % 2 == 0

    job = small_job(
        model=Smooth, algorithm=rd.Scaffold(), num_rounds=6, clients_per_round=6,
        client_config=lambda round, client: {"lr": 1e300} if broken(round, client) else {},
        simulation=rd.Simulation(executor=executor, num_workers=2),
    )  # fmt: skip
    statuses = []

    def rounds() -> object:
        for finished in job.rounds():
            statuses.extend(r.status for r in finished.clients if broken(finished.number, r.client))
            yield finished

    straight_line(rounds, refused=broken)
    assert statuses == ["refused"] * 3


def remember_refused(patch: pytest.MonkeyPatch) -> None:
    """The planted bug: what a refused client would remember is kept."""
    arrive = Intake.arrive

    def remembered(self: Intake, answer: Answer) -> None:
        arrive(self, answer)
        self._memories[answer.update.task.client] = {name: value.clone() for name, value in answer.memory.items()}

    patch.setattr(Intake, "arrive", remembered)


def count_refused(patch: pytest.MonkeyPatch) -> None:
    """The planted bug: the server's control moves as if everybody who was asked had been folded."""
    apply = rd.Scaffold.apply
    patch.setattr(
        rd.Scaffold, "apply", lambda self, state, totals: apply(self, state, {0: replace(totals[0], count=6)})
    )


@pytest.mark.parametrize("plant", [remember_refused, count_refused])
def test_the_check_of_refused_clients_catches(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_client_that_is_refused_every_other_round_is_as_one_that_was_not_asked("serial")


def test_the_minimum_is_found_where_averaging_misses_it() -> None:
    """Curvatures differ and steps are many: FedAvg's fixed point is another. Two of four clients train in a round."""
    b, a = [(4.0, 0.0), (0.0, 4.0), (-2.0, 1.0), (1.0, -3.0)], [(1.0, 3.0), (3.0, 1.0), (0.5, 2.0), (2.0, 0.5)]
    clients = {f"c{i}": point(b[i], a[i]) for i in range(4)}
    minimum = [sum(a[i][j] * b[i][j] for i in range(4)) / sum(a[i][j] for i in range(4)) for j in range(2)]
    settings = {"steps": 10, "num_rounds": 150, "clients_per_round": 2}
    assert end_of(point_job(clients, rd.Scaffold(), **settings)) == pytest.approx(minimum, abs=1e-4)
    missed = end_of(point_job(clients, rd.FedAvg(), **{**settings, "clients_per_round": 4}))
    assert max(abs(got - want) for got, want in zip(missed, minimum, strict=True)) > 0.1


def test_identical_clients_train_as_in_fedavg() -> None:
    """All controls are equal, so that every correction is zero."""
    data = examples(20)
    clients = rd.FederatedData.from_datasets({f"c{i}": data for i in range(4)})
    full_batch = rd.LocalSGD(lr=0.1, batch_size=0, local_epochs=3)
    settings = {"model": Smooth, "data": clients, "clients_per_round": 4, "learner": full_batch, "num_rounds": 5}
    plain, controlled = (flat(small_job(**settings, algorithm=a).run().model.state_dict())
                         for a in (rd.FedAvg(), rd.Scaffold()))  # fmt: skip
    torch.testing.assert_close(controlled, plain, rtol=1e-9, atol=1e-12)


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    return len(data), {}


class Uncounted:
    """A learner that applies corrections but does not count its steps."""

    corrects, reports = True, frozenset()

    def fit(self, bound: object, examples: object, ask: object, context: object) -> rd.Fitted:
        raise AssertionError("refused at start")


@pytest.mark.parametrize(
    ("learner", "reason"),
    [
        (user_function, "Scaffold corrects every gradient, and FunctionLearner applies no corrections"),
        (Uncounted(), "Scaffold needs lr_sum, which Uncounted, as it is set here, does not report"),
        (rd.LocalSGD(lr=0.1, momentum=0.9), "Scaffold needs lr_sum, which LocalSGD.*optimizer 'SGD', momentum 0"),
        (rd.LocalSGD(lr=0.1, optimizer="Adam"), "Scaffold needs lr_sum"),
    ],
)
def test_what_could_not_be_scaffold_is_refused_at_start(learner: object, reason: str) -> None:
    with pytest.raises(rd.errors.ConfigError, match=reason):
        small_job(algorithm=rd.Scaffold(), learner=learner).start()


def test_momentum_that_only_one_task_has_costs_that_task_its_answer_and_no_more() -> None:
    job = small_job(
        algorithm=rd.Scaffold(), clients_per_round=6,
        client_config=lambda round, client: {"momentum": 0.9} if (round, client) == (2, "c4") else {},
    )  # fmt: skip
    refused = [(f.number, r.client) for f in job.rounds() for r in f.clients if r.status == "refused"]
    assert refused == [(2, "c4")]


def test_the_servers_control_stays_the_mean_of_all_clients_controls(tmp_path: Path) -> None:
    tracking = rd.Tracking(root=str(tmp_path), name="run")
    small_job(model=Smooth, algorithm=rd.Scaffold(), num_rounds=4, clients_per_round=2, tracking=tracking).run()
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert 2 < len(kept["memory"]) <= 6
    mean = sum(memory["control"] for memory in kept["memory"].values()) / 6
    torch.testing.assert_close(kept["state"]["control"], mean, rtol=1e-9, atol=1e-12)
