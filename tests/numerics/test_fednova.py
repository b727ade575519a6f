"""FedNova: Wang 2020."""

import pytest
import torch
from networks import federated, small_job
from reference import Smooth, assert_follows, end_of, flat, initial, point, point_job, train
from torch import nn

import roundelay as rd

STEPS = {"a": 1, "b": 3}


def own_steps(round: int, client: str) -> dict[str, int]:
    return {"local_batches": STEPS[client]}


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_by_hand_one_client_makes_one_step_and_one_makes_three(momentum: float, mu: float) -> None:
    b, examples, lr, start = {"a": 3.0, "b": -1.0}, {"a": 1, "b": 3}, 0.1, 1.0
    direction, tau_eff = 0.0, 0.0
    for client, steps in STEPS.items():
        y, velocity = start, 0.0
        for _ in range(steps):
            velocity = momentum * velocity + (y - b[client]) + mu * (y - start)
            y -= lr * velocity
        if steps == 1:
            a_norm = 1.0
        elif momentum and mu:  # the answer to one gradient of 1, after one, two and three steps, by hand
            two = 1 + (momentum - lr * mu)
            a_norm = 1 + two + (two + momentum * (momentum - lr * mu) - lr * mu * two)
        elif momentum:
            a_norm = (3 - momentum * (1 - momentum**3) / (1 - momentum)) / (1 - momentum)
        else:
            a_norm = (1 - (1 - lr * mu) ** 3) / (lr * mu) if mu else 3.0
        share = examples[client] / 4
        direction += share * (y - start) / a_norm
        tau_eff += share * a_norm
    clients = {c: point((b[c], -2.0), num_examples=examples[c]) for c in STEPS}
    learner = point_job(clients, rd.FedNova()).learner
    job = point_job(
        clients, rd.FedNova(mu=mu), client_config=own_steps,
        learner=rd.LocalSGD(lr=lr, batch_size=0, momentum=momentum, loss=learner.loss),
    )  # fmt: skip
    assert end_of(job) == pytest.approx([start + tau_eff * direction, -2.0], rel=1e-12)


@pytest.mark.parametrize(("mu", "momentum"), [(0.0, 0.0), (0.0, 0.9), (0.4, 0.0)])
def test_rounds_match_a_straight_line_reference(mu: float, momentum: float) -> None:
    def own_epochs(round: int, client: str) -> dict[str, int]:
        return {"local_epochs": 1 + int(client[1:]) % 3}

    data, x = federated(), initial()
    job = small_job(
        model=Smooth, algorithm=rd.FedNova(mu=mu), num_rounds=4, client_config=own_epochs,
        learner=rd.LocalSGD(lr=0.1, batch_size=4, momentum=momentum),
    )  # fmt: skip
    for finished in job.rounds():
        directions, norms, sizes = [], [], []
        for client in (report.client for report in finished.clients):
            end, tau = train(
                x, data.train(client), finished.number, client, epochs=own_epochs(0, client)["local_epochs"],
                momentum=momentum, correct=(lambda g, p, x=x: g + mu * (p - x)) if mu else None,
            )  # fmt: skip
            a = [
                (1 - 0.1 * mu) ** (tau - 1 - k) if mu else sum(momentum**j for j in range(tau - k)) for k in range(tau)
            ]
            directions.append((end - x) / sum(a))
            norms.append(sum(a))
            sizes.append(len(data.train(client)))
        shares = [size / sum(sizes) for size in sizes]
        tau_eff = sum(share * norm for share, norm in zip(shares, norms, strict=True))
        x = x + tau_eff * sum(share * direction for share, direction in zip(shares, directions, strict=True))
        assert_follows(finished, x)


@pytest.mark.parametrize("learner", [{}, {"momentum": 0.9}], ids=str)
def test_with_equal_steps_it_is_fedavg(learner: dict[str, float]) -> None:
    local = rd.LocalSGD(lr=0.1, batch_size=4, local_batches=5, **learner)
    settings = {"model": Smooth, "learner": local, "num_rounds": 4}
    plain, normalised = (flat(small_job(**settings, algorithm=a).run().model.state_dict())
                         for a in (rd.FedAvg(), rd.FedNova()))  # fmt: skip
    torch.testing.assert_close(normalised, plain, rtol=1e-9, atol=1e-12)


def test_the_minimum_is_found_where_averaging_goes_to_the_client_that_steps_most() -> None:
    """Fixed points in closed form: client i goes (1 - (1 - lr)^tau_i) of its way, nearly lr tau_i for a small lr."""
    b, steps, lr = {"a": -4.0, "b": 5.0}, {"a": 1, "b": 10}, 0.02
    clients = {c: point((b[c], 1.0)) for c in b}
    settings = {"lr": lr, "num_rounds": 100, "client_config": lambda round, client: {"local_batches": steps[client]}}
    way = {c: 1 - (1 - lr) ** steps[c] for c in b}
    for algorithm, weight in ((rd.FedNova(), {c: way[c] / steps[c] for c in b}), (rd.FedAvg(), way)):
        fixed = sum(weight[c] * b[c] for c in b) / sum(weight.values())
        assert end_of(point_job(clients, algorithm, **settings))[0] == pytest.approx(fixed, abs=1e-3)
        assert abs(fixed - 0.5) < 0.25 if isinstance(algorithm, rd.FedNova) else abs(fixed - 0.5) > 3


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    return len(data), {}


@pytest.mark.parametrize(
    "learner",
    [
        user_function,
        rd.LocalSGD(lr=0.1, optimizer="Adam"),
        rd.LocalSGD(lr=0.1, momentum=0.9, optimizer_args={"nesterov": True}),
    ],
    ids=["function", "Adam", "Nesterov"],
)
def test_a_learner_whose_steps_add_up_in_an_unknown_way_is_refused_at_start(learner: object) -> None:
    with pytest.raises(rd.errors.ConfigError, match=r"FedNova needs a_norm, which \w+, as it is set here"):
        small_job(algorithm=rd.FedNova(), learner=learner).start()
