"""Server optimisers: Hsu 2019, Reddi 2021."""

from math import sqrt

import pytest
import torch
from networks import Awkward, federated, small_job
from reference import Smooth, assert_follows, end_of, initial, point, point_job, train, weighted

import roundelay as rd

CLIENTS = {"a": point((3.0, 0.0), num_examples=1), "b": point((-1.0, 4.0), num_examples=3)}
DELTAS = (-0.1, 0.5)  # x = (1, -2), lr 0.1, one step: a moves by 0.1 * (b - x), weights 1/4 and 3/4
ADAPTIVE = (rd.FedAdagrad, rd.FedYogi, rd.FedAdam)


def test_the_first_two_steps_of_momentum_by_hand() -> None:
    x, m = [1.0, -2.0], [0.0, 0.0]
    for _ in range(2):
        deltas = [0.25 * 0.1 * (a - x_j) + 0.75 * 0.1 * (b - x_j) for x_j, a, b in zip(x, (3, 0), (-1, 4), strict=True)]
        m = [0.9 * m_j + d for m_j, d in zip(m, deltas, strict=True)]
        x = [x_j + 0.5 * m_j for x_j, m_j in zip(x, m, strict=True)]
    job = point_job(CLIENTS, rd.FedAvgM(beta=0.9, server_lr=0.5), num_rounds=2)
    assert end_of(job) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_the_first_two_steps_by_hand(algorithm: type) -> None:
    beta1, beta2, tau, eta = (0.0 if algorithm is rd.FedAdagrad else 0.9), 0.99, 1e-3, 0.3
    x, m, v = [1.0, -2.0], [0.0, 0.0], [tau**2, tau**2]
    for number in range(2):
        for j, (a, b) in enumerate(((3, -1), (0, 4))):
            delta = 0.1 * (0.25 * (a - x[j]) + 0.75 * (b - x[j]))
            if number == 0:
                assert delta == pytest.approx(DELTAS[j])
            m[j] = beta1 * m[j] + (1 - beta1) * delta
            if algorithm is rd.FedAdagrad:
                v[j] += delta**2
            elif algorithm is rd.FedAdam:
                v[j] = beta2 * v[j] + (1 - beta2) * delta**2
            else:
                v[j] -= (1 - beta2) * delta**2 * (1 if v[j] > delta**2 else -1)
            x[j] += eta * m[j] / (sqrt(v[j]) + tau)
    assert end_of(point_job(CLIENTS, algorithm(server_lr=eta), num_rounds=2)) == pytest.approx(x, rel=1e-9)


def test_the_defaults_are_those_of_the_papers_experiments() -> None:
    assert (rd.FedAdam(server_lr=1.0).beta1, rd.FedAdam(server_lr=1.0).beta2, rd.FedAdam(server_lr=1.0).tau) == (
        0.9, 0.99, 1e-3,
    )  # fmt: skip
    assert (rd.FedYogi(server_lr=1.0).beta1, rd.FedYogi(server_lr=1.0).beta2) == (0.9, 0.99)
    assert rd.FedAdagrad(server_lr=1.0).beta1 == 0.0


OPTIMIZERS = {
    "FedAvgM": rd.FedAvgM(beta=0.8, server_lr=0.7),
    "FedAdagrad": rd.FedAdagrad(server_lr=0.05, tau=0.01),
    "FedYogi": rd.FedYogi(server_lr=0.05, tau=0.01),
    "FedAdam": rd.FedAdam(server_lr=0.05, tau=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounds_match_a_straight_line_reference(name: str) -> None:
    algorithm, data = OPTIMIZERS[name], federated()
    x = initial()
    m, v = torch.zeros_like(x), torch.full_like(x, 0.01**2)
    for finished in small_job(model=Smooth, algorithm=algorithm, num_rounds=5).rounds():
        cohort = [report.client for report in finished.clients]
        ends = [train(x, data.train(c), finished.number, c)[0] for c in cohort]
        delta = weighted(ends, [len(data.train(c)) for c in cohort]) - x
        if name == "FedAvgM":
            m = 0.8 * m + delta
            x = x + 0.7 * m
        else:
            m = delta if name == "FedAdagrad" else 0.9 * m + 0.1 * delta
            if name == "FedAdagrad":
                v = v + delta**2
            elif name == "FedYogi":
                v = torch.where(v > delta**2, v - 0.01 * delta**2, v + 0.01 * delta**2)
            else:
                v = 0.99 * v + 0.01 * delta**2
            x = x + 0.05 * m / (v.sqrt() + 0.01)
        assert_follows(finished, x)


@pytest.mark.parametrize(
    "algorithm",
    [
        rd.FedAvgM(beta=0.5),
        rd.FedAdagrad(server_lr=1.0, tau=0.1),
        rd.FedYogi(server_lr=0.1, tau=0.1),
        rd.FedAdam(server_lr=0.1, tau=0.1),
    ],
    ids=lambda a: type(a).__name__,
)
def test_a_quadratics_minimum_is_found(algorithm: object) -> None:
    job = point_job(CLIENTS, algorithm, steps=3, num_rounds=250)
    assert end_of(job) == pytest.approx([0.0, 3.0], abs=1e-3)


def test_without_momentum_it_is_fedavg_to_the_bit() -> None:
    for server_lr in (1.0, 0.7):
        plain = small_job(algorithm=rd.FedAvg(server_lr=server_lr)).run().sha256
        assert small_job(algorithm=rd.FedAvgM(beta=0.0, server_lr=server_lr)).run().sha256 == plain
        assert small_job(algorithm=rd.FedAvgM(beta=0.1, server_lr=server_lr)).run().sha256 != plain


@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_where_tau_outweighs_every_step_it_is_fedavg(algorithm: type) -> None:
    tau = 1e5  # v stays at tau^2, so that the step is server_lr * Delta / (2 tau)
    decay = {} if algorithm is rd.FedAdagrad else {"beta2": 1 - 1e-12}
    adaptive = algorithm(server_lr=2 * tau, beta1=0.0, tau=tau, **decay)
    plain = small_job(model=Smooth).run().model.state_dict()
    for name, value in small_job(model=Smooth, algorithm=adaptive).run().model.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_running_variance_meets_a_moment(name: str) -> None:
    """After one round the clients' ends do not depend on the server: buffers are FedAvg's, to the bit."""
    plain = small_job(num_rounds=1).run().model.state_dict()
    state = small_job(num_rounds=1, algorithm=OPTIMIZERS[name]).run().model.state_dict()
    buffers = [key for key, _ in Awkward().named_buffers()]
    assert len(buffers) == 3
    for key in plain:
        assert torch.equal(state[key], plain[key]) == (key in buffers), key


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (rd.FedAvgM, {"beta": 1.0}),
        (rd.FedAvgM, {"server_lr": 0.0}),
        (rd.FedAdam, {"server_lr": 0.1, "beta2": 1.0}),
        (rd.FedYogi, {"server_lr": 0.1, "beta2": -0.1}),
        (rd.FedAdagrad, {"server_lr": 0.1, "tau": 0.0}),
        (rd.FedAdam, {"server_lr": float("nan")}),
        (rd.FedAdam, {"server_lr": True}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(algorithm: type, settings: dict[str, float]) -> None:
    name = list(settings)[-1]
    with pytest.raises(rd.errors.ConfigError, match=f"{name} must be a number"):
        algorithm(**settings)
