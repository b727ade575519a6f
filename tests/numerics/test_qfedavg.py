"""q-FedAvg: Li 2020, Algorithm 2."""

import pytest
import torch
from networks import federated, small_job
from reference import Smooth, assert_follows, end_of, flat, initial, loss_of, point, point_job, train, weighted
from torch import nn

import roundelay as rd


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_a_step_by_hand(q: float) -> None:
    b, shares, lr, lipschitz, x = {"a": 3.0, "b": -1.0}, {"a": 0.25, "b": 0.75}, 0.1, 5.0, 1.0
    top, bottom = 0.0, 0.0
    for k in ("a", "b"):
        loss = (x - b[k]) ** 2 / 2
        gradient = lipschitz * lr * (x - b[k])
        top += shares[k] * loss**q * gradient
        bottom += shares[k] * (q * loss ** (q - 1) * gradient**2 + lipschitz * loss**q)
    clients = {k: point((b[k], -2.0), num_examples=1 if k == "a" else 3) for k in b}
    job = point_job(clients, rd.QFedAvg(q=q, lipschitz=lipschitz), lr=lr)
    assert end_of(job) == pytest.approx([x - top / bottom, -2.0], rel=1e-9)


@pytest.mark.parametrize("q", [0.5, 2.0])
def test_rounds_match_a_straight_line_reference(q: float) -> None:
    data, x = federated(), initial()
    for finished in small_job(model=Smooth, algorithm=rd.QFedAvg(q=q, lipschitz=10.0), num_rounds=4).rounds():
        steps, scales, sizes = [], [], []
        for client in (report.client for report in finished.clients):
            own = data.train(client)
            loss = loss_of(x, own)  # at the received model, before training
            gradient = 10.0 * (x - train(x, own, finished.number, client)[0])
            steps.append(loss**q * gradient)
            scales.append(q * loss ** (q - 1) * gradient @ gradient + 10.0 * loss**q)
            sizes.append(len(own))
        x = x - weighted(steps, sizes) / weighted(scales, sizes)
        assert_follows(finished, x)


def test_a_power_of_zero_is_fedavg_weighted_by_examples() -> None:
    plain, fair = (flat(small_job(model=Smooth, algorithm=a).run().model.state_dict())
                   for a in (rd.FedAvg(), rd.QFedAvg(q=0.0, lipschitz=10.0)))  # fmt: skip
    torch.testing.assert_close(fair, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("q", [0.0, 1.0, 5.0])
def test_the_minimum_of_the_sum_of_powers_is_found(q: float) -> None:
    """Clients at 0 and 4, the first with three times the examples: 3 x^(2q+1) = (4 - x)^(2q+1)."""
    ratio = 3 ** (1 / (2 * q + 1))
    minimum = 4 / (1 + ratio)
    clients = {"a": point((0.0, 0.0), num_examples=3), "b": point((4.0, 0.0), num_examples=1)}
    job = point_job(clients, rd.QFedAvg(q=q, lipschitz=1.0), lr=1.0, num_rounds=150)
    assert end_of(job)[0] == pytest.approx(minimum, abs=1e-3)


def test_a_higher_power_spreads_losses_more_evenly() -> None:
    worst = []
    for q in (0.0, 2.0):
        clients = {"a": point((0.0, 0.0), num_examples=9), "b": point((4.0, 0.0), num_examples=1)}
        x = end_of(point_job(clients, rd.QFedAvg(q=q, lipschitz=1.0), lr=1.0, num_rounds=100))[0]
        worst.append(max(x, 4 - x))
    assert worst[1] < 0.7 * worst[0]


def test_a_client_without_loss_has_no_say_and_harms_nothing() -> None:
    clients = {"a": point((1.0, -2.0)), "b": point((5.0, -2.0))}  # a is where it wants to be
    for q in (0.5, 1.0):
        job = point_job(clients, rd.QFedAvg(q=q, lipschitz=10.0))
        assert 1.0 < end_of(job)[0] < 5.0


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in torch.utils.data.DataLoader(data, batch_size=100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return len(data), {}


def test_a_users_own_function_trains_the_same() -> None:
    full_batch = rd.LocalSGD(lr=0.1, batch_size=0)
    own, ours = (small_job(model=Smooth, algorithm=rd.QFedAvg(q=1.0, lipschitz=10.0), learner=learner).run()
                 for learner in (user_function, full_batch))  # fmt: skip
    torch.testing.assert_close(flat(own.model.state_dict()), flat(ours.model.state_dict()), rtol=1e-9, atol=1e-12)


def test_settings_out_of_range_are_refused_by_name() -> None:
    for settings in ({"lipschitz": 1.0, "q": -1.0}, {"q": 1.0, "lipschitz": 0.0}):
        with pytest.raises(rd.errors.ConfigError, match=f"{list(settings)[-1]} must be a number"):
            rd.QFedAvg(**settings)
