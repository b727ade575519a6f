"""FedDyn: Acar 2021, Algorithm 1."""

import pytest
import torch
from networks import federated, small_job
from reference import Smooth, assert_follows, end_of, flat, initial, point, point_job, train
from torch import nn

import roundelay as rd


def test_two_rounds_by_hand() -> None:
    b, a, lr, alpha = {"a": 3.0, "b": -1.0}, {"a": 1.0, "b": 2.0}, 0.1, 0.5
    theta, h, gradient = 1.0, 0.0, {"a": 0.0, "b": 0.0}
    for _ in range(2):
        ends = []
        for k in ("a", "b"):
            own = theta
            for _ in range(2):
                own -= lr * (a[k] * (own - b[k]) - gradient[k] + alpha * (own - theta))
            gradient[k] -= alpha * (own - theta)
            ends.append(own)
        h -= alpha / 2 * sum(own - theta for own in ends)
        theta = sum(ends) / 2 - h / alpha
    clients = {k: point((b[k], -2.0), (a[k], 1.0), num_examples=4 if k == "a" else 1) for k in "ab"}
    job = point_job(clients, rd.FedDyn(alpha=alpha), steps=2, num_rounds=2)
    assert end_of(job) == pytest.approx([theta, -2.0], rel=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_rounds_of_some_of_the_clients_match_a_straight_line_reference(alpha: float) -> None:
    data, theta = federated(), initial()
    h, gradient = torch.zeros_like(theta), {client: torch.zeros_like(theta) for client in data.clients}
    for finished in small_job(model=Smooth, algorithm=rd.FedDyn(alpha=alpha), num_rounds=5).rounds():
        ends = []
        for client in (report.client for report in finished.clients):
            end, _ = train(
                theta, data.train(client), finished.number, client,
                correct=lambda g, p, own=gradient[client], x=theta: g - own + alpha * (p - x),
            )  # fmt: skip
            gradient[client] = gradient[client] - alpha * (end - theta)
            ends.append(end)
        h = h - alpha / 6 * sum(end - theta for end in ends)
        theta = sum(ends) / len(ends) - h / alpha
        assert_follows(finished, theta)


def test_the_minimum_is_found_although_curvatures_differ_and_some_clients_train() -> None:
    b, a = [(4.0, 0.0), (0.0, 4.0), (-2.0, 1.0), (1.0, -3.0)], [(1.0, 3.0), (3.0, 1.0), (0.5, 2.0), (2.0, 0.5)]
    clients = {f"c{i}": point(b[i], a[i]) for i in range(4)}
    minimum = [sum(a[i][j] * b[i][j] for i in range(4)) / sum(a[i][j] for i in range(4)) for j in range(2)]
    job = point_job(clients, rd.FedDyn(alpha=1.0), steps=20, lr=0.2, num_rounds=150, clients_per_round=2)
    assert end_of(job) == pytest.approx(minimum, abs=1e-4)


def test_as_alpha_goes_to_zero_clients_train_as_in_fedavg_and_the_server_adds_the_running_sum_of_their_steps() -> None:
    """h / alpha does not vanish with alpha: what remains is the mean plus the sum of |P|/m times every mean step."""
    start, data = initial(), federated()
    (first,) = small_job(model=Smooth, algorithm=rd.FedDyn(alpha=1e-9), num_rounds=1).rounds()
    ends = [train(start, data.train(report.client), 1, report.client)[0] for report in first.clients]
    mean = sum(ends) / len(ends)
    torch.testing.assert_close(flat(first.state_dict()), mean + 4 / 6 * (mean - start), rtol=1e-6, atol=1e-8)


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    return len(data), {}


def test_what_could_not_be_feddyn_is_refused() -> None:
    with pytest.raises(rd.errors.ConfigError, match="FedDyn corrects every gradient, and FunctionLearner"):
        small_job(algorithm=rd.FedDyn(alpha=0.1), learner=user_function).start()
    with pytest.raises(rd.errors.ConfigError, match="alpha must be a number above 0"):
        rd.FedDyn(alpha=0.0)
