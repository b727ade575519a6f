"""FedAvg and FedProx against straight-line references in plain PyTorch: no layout, no vectors, no protocol."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from networks import Awkward, Plain, Tied, examples, federated, small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay import seeds
from roundelay.fold import RunningMean

SEED = 7


def initial(model: type[nn.Module]) -> nn.Module:
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(SEED, 0, 0, "", "model"))
        return model()


def plain_training(
    model: nn.Module,
    data: rd.data.TensorExamples,
    round: int,
    client: str,
    *,
    epochs: int = 2,
    batch: int = 4,
    lr: float = 0.1,
    correct: Callable[[str, Tensor], Tensor] | None = None,
    **sgd: float,
) -> None:
    """Train in place, as anyone would without a framework."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **sgd)
    shuffle = seeds.generator(SEED, round, 0, client, "shuffle")
    seeds.seed_globals(seeds.key(SEED, round, 0, client, "training"))
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=shuffle)
        for i in range(0, len(data), batch):
            picked = order[i : i + batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.inputs[picked]), data.targets[picked]).backward()
            if correct is not None:
                for name, parameter in model.named_parameters():
                    parameter.grad += correct(name, parameter.detach())
            optimizer.step()


@pytest.fixture(autouse=True)
def _undisturbed(one_thread: None) -> Iterator[None]:
    with seeds.preserved_globals():
        yield


@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize("model", [Plain, Tied])
@pytest.mark.parametrize("sgd", [{}, {"momentum": 0.9, "weight_decay": 1e-3}])
def test_one_client_is_centralised_training_to_the_bit(model: type[nn.Module], sgd: dict, executor: str) -> None:
    data = examples(25)  # batches of 4: the last one holds a single example
    job = small_job(
        model=model, data=rd.Data(data), partition=rd.IID(num_clients=1), clients_per_round=1,
        learner=rd.LocalSGD(lr=0.1, batch_size=4, local_epochs=2, **sgd),
        simulation=rd.Simulation(executor=executor, num_workers=1),
    )  # fmt: skip
    history = job.run()
    reference = initial(model)
    split = rd.IID(num_clients=1).split(rd.Data(data), SEED)
    own = rd.data.TensorExamples(*(t[split["0"]] for t in (data.inputs, data.targets)))
    for number in (1, 2, 3):
        plain_training(reference, own, number, "0", **sgd)
    for name, value in reference.state_dict().items():
        assert torch.equal(history.model.state_dict()[name], value), name


def test_one_client_with_batchnorm_and_dropout_is_centralised_training_to_the_bit_buffers_included() -> None:
    data = examples(26)
    history = small_job(data=rd.Data(data), partition=rd.Replicate(num_clients=1), clients_per_round=1).run()
    reference = initial(Awkward)
    for number in (1, 2, 3):
        plain_training(reference, data, number, "0")
    for name, value in reference.state_dict().items():
        assert torch.equal(history.model.state_dict()[name], value), name
    assert reference.norm.num_batches_tracked == 3 * 2 * 7


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("server_lr", [1.0, 0.7])
@pytest.mark.parametrize("model", [Plain, Awkward])
def test_rounds_match_a_straight_line_reference(model: type[nn.Module], server_lr: float, mu: float) -> None:
    algorithm = rd.FedProx(mu=mu, server_lr=server_lr) if mu else rd.FedAvg(server_lr=server_lr)
    job = small_job(model=model, algorithm=algorithm)
    data, reference = federated(), initial(model)
    for finished in job.rounds():
        start = {n: p.detach().clone() for n, p in reference.named_parameters()}
        ends, sizes = [], []
        for client in (report.client for report in finished.clients):
            own = copy.deepcopy(reference)
            plain_training(own, data.train(client), finished.number, client,
                           correct=(lambda n, p, x=start: mu * (p - x[n])) if mu else None)  # fmt: skip
            ends.append(own.state_dict())
            sizes.append(len(data.train(client)))
        assert len(ends) == 4
        for name, value in reference.state_dict().items():
            stacked = torch.stack([end[name].double() for end in ends])
            weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
            mean = (weights.view(-1, *[1] * value.dim()) * stacked).sum(0)
            if name in start:
                mean = start[name].double() + server_lr * (mean - start[name].double())
            expected = mean if value.is_floating_point() else stacked.amax(0)
            torch.testing.assert_close(finished.state_dict()[name], expected.to(value.dtype), rtol=2e-5, atol=2e-7)
        reference.load_state_dict(finished.state_dict())  # each round from the same bits: BatchNorm amplifies roundings


def test_fedprox_without_a_proximal_term_is_fedavg_to_the_bit_and_with_one_is_not() -> None:
    algorithms = (rd.FedAvg(), rd.FedProx(mu=0.0), rd.FedProx(mu=0.1))
    plain, zero, some = (small_job(algorithm=algorithm).run().sha256 for algorithm in algorithms)
    assert plain == zero
    assert plain != some


def test_fedprox_is_refused_where_its_correction_would_not_be_applied() -> None:
    def train(model: nn.Module, data: object, task: object) -> tuple[int, dict[str, float]]:
        return 1, {}

    with pytest.raises(rd.errors.ConfigError, match=r"FedProx corrects every gradient.*FunctionLearner applies no"):
        small_job(algorithm=rd.FedProx(mu=0.1), learner=train).run()


def test_identical_clients_come_to_what_one_comes_to() -> None:
    data = examples(20)
    parts = {f"c{i}": data for i in range(5)}
    learner = rd.LocalSGD(lr=0.1, batch_size=0, local_epochs=3)  # the full batch: nothing is shuffled, sums may be
    many = small_job(model=Plain, learner=learner, data=rd.FederatedData.from_datasets(parts), clients_per_round=5)
    states = {}
    for finished in many.rounds():
        states = finished.state_dict()
        break
    reference = initial(Plain)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(data.inputs), data.targets).backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(states[name], value, rtol=1e-5, atol=1e-6)


def test_the_mean_of_identical_values_is_the_value_to_the_bit() -> None:
    value = torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    mean = RunningMean()
    sums, weights = torch.zeros(10_000), 0.0
    for weight in (3.0, 7.0, 11.0, 2.0):
        mean.add(value, weight)
        sums, weights = sums + weight * value, weights + weight
    assert torch.equal(mean.mean, value)
    assert not torch.equal(sums / weights, value)  # what the running mean is there to avoid
