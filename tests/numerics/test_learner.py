"""Local training against straight-line PyTorch: the same arithmetic in the same order, so the same bits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice

import pytest
import torch
from networks import Awkward, Plain, examples, small_job
from torch import nn

import roundelay as rd
from roundelay import seeds
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.data import TensorExamples
from roundelay.errors import ConfigError
from roundelay.layout import Layout
from roundelay.learner import Context, accumulation

SEED = 3
DATA = examples(26)  # batches of 8: the last one holds two


@pytest.fixture(autouse=True)
def _undisturbed(one_thread: None) -> Iterator[None]:
    with seeds.preserved_globals():
        yield


def started(model: type[nn.Module]) -> nn.Module:
    torch.manual_seed(11)
    return model()


def fitted(
    learner: rd.LocalSGD, model: type[nn.Module] = Plain, round: int = 1, data: TensorExamples = DATA, **config: object
) -> tuple[dict[str, torch.Tensor], Fitted]:
    """Let the learner train, as a trainer would; return the module's state and what the learner tells."""
    module = started(model)
    bound = Layout.of(module).bind(module)
    context = Context(rd.Task(1, "ann", round, config=config), SEED)
    seeds.seed_globals(context.key("training"))
    told = learner.fit(bound, data, Fit(bound.params().clone()), context)
    return module.state_dict(), told


Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def by_hand(
    optimizer: Optimizer, *, steps: int | None = None, epochs: int = 1, size: int = 8, clip: float | None = None,
    model: type[nn.Module] = Plain, round: int = 1, data: TensorExamples = DATA,
) -> tuple[dict[str, torch.Tensor], float]:  # fmt: skip
    """Train as anyone would without a framework; return the state, and the mean loss over the examples seen."""
    module = started(model)
    module.train()
    stepper, loss_sum, num_seen = optimizer(list(module.parameters())), 0.0, 0
    shuffle = seeds.generator(SEED, round, 0, "ann", "shuffle")
    seeds.seed_globals(seeds.key(SEED, round, 0, "ann", "training"))
    epoch = 0
    while (steps is None and epochs) or steps:
        epochs, epoch = epochs - 1, epoch + 1
        if steps is not None:  # a few batches at a time: epochs are the client's own, whatever the round
            shuffle = seeds.generator(SEED, epoch, 0, "ann", "shuffle")
        for picked in torch.randperm(len(data), generator=shuffle).split(size):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(module(data.inputs[picked]), data.targets[picked])
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            stepper.step()
            loss_sum, num_seen = loss_sum + loss.item() * len(picked), num_seen + len(picked)
            if steps is not None:
                steps -= 1
                if steps == 0:
                    break
    return module.state_dict(), loss_sum / num_seen


def sgd(lr: float = 0.1, **settings: float) -> Optimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **settings)


def assert_same(state: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    for name, value in reference.items():
        assert torch.equal(state[name], value), name


SGD = rd.LocalSGD(lr=0.1, batch_size=8)

LENGTHS = {
    "nothing said": ({}, {"epochs": 1}, 4),
    "one epoch": ({"local_epochs": 1}, {"epochs": 1}, 4),
    "three epochs": ({"local_epochs": 3}, {"epochs": 3}, 12),
    "one batch": ({"local_batches": 1}, {"steps": 1}, 1),
    "an epoch in batches": ({"local_batches": 4}, {"steps": 4}, 4),
    "batches beyond an epoch": ({"local_batches": 7}, {"steps": 7}, 7),
    "the full batch": ({"batch_size": 0, "local_epochs": 3}, {"size": 26, "epochs": 3}, 3),
    "the full batch, negative": ({"batch_size": -1, "local_batches": 5}, {"size": 26, "steps": 5}, 5),
    "a batch larger than the data": ({"batch_size": 100}, {"size": 100}, 1),
    "batches of one": ({"batch_size": 1, "local_batches": 30}, {"size": 1, "steps": 30}, 30),
}


@pytest.mark.parametrize(("settings", "reference", "num_steps"), LENGTHS.values(), ids=LENGTHS)
def test_how_long_a_client_trains(settings: dict, reference: dict, num_steps: int) -> None:
    state, told = fitted(replace(SGD, **settings))
    expected, train_loss = by_hand(sgd(), **reference)
    assert_same(state, expected)
    assert (told.num_steps, told.num_examples, told.lr_sum) == (num_steps, 26, pytest.approx(0.1 * num_steps))
    assert told.metrics["train_loss"] == pytest.approx(train_loss, rel=1e-5)


def test_the_first_epoch_in_batches_is_that_of_the_first_round() -> None:
    whole, _ = fitted(replace(SGD, local_epochs=1))
    assert_same(whole, fitted(replace(SGD, local_batches=4))[0])


OPTIMIZERS: dict[str, tuple[dict, Optimizer]] = {
    "plain": ({}, sgd()),
    "lower case": ({"optimizer": "sgd"}, sgd()),
    "momentum": ({"momentum": 0.9}, sgd(momentum=0.9)),
    "weight decay": ({"weight_decay": 0.01}, sgd(weight_decay=0.01)),
    "both": ({"momentum": 0.9, "weight_decay": 0.01}, sgd(momentum=0.9, weight_decay=0.01)),
    "Nesterov": (
        {"momentum": 0.9, "optimizer_args": {"nesterov": True}},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
    ),
    "Adam": ({"optimizer": "Adam"}, lambda p: torch.optim.Adam(p, lr=0.1)),
    "AdamW, its name in lower case, and its own argument": (
        {"optimizer": "adamw", "weight_decay": 0.1, "optimizer_args": {"betas": (0.8, 0.9)}},
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, betas=(0.8, 0.9)),
    ),
    "RMSprop with momentum": (
        {"optimizer": "RMSprop", "momentum": 0.5}, lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    ),
    "Adagrad": ({"optimizer": "Adagrad"}, lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "a factory": (
        {"optimizer": lambda p, lr: torch.optim.Adam(p, lr=lr / 10, amsgrad=True)},
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", [Plain, Awkward])
@pytest.mark.parametrize(("settings", "optimizer"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimiser_is_torchs_own_to_the_bit(settings: dict, optimizer: Optimizer, model: type) -> None:
    state, _ = fitted(replace(SGD, local_epochs=3, **settings), model)
    assert_same(state, by_hand(optimizer, epochs=3, model=model)[0])


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"optimizer": "Adam"}], ids=str)
def test_an_optimiser_remembers_nothing_of_the_task_before(settings: dict) -> None:
    learner = replace(SGD, **settings)
    assert_same(fitted(learner)[0], fitted(learner)[0])


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e6])
def test_gradients_are_clipped_to_a_norm(clip: float) -> None:
    state, _ = fitted(replace(SGD, clip_norm=clip, local_epochs=2))
    assert_same(state, by_hand(sgd(), epochs=2, clip=clip)[0])


def test_clipping_comes_after_an_algorithms_correction() -> None:
    module = started(Plain)
    bound = Layout.of(module).bind(module)
    start = bound.params().clone()
    learner = rd.LocalSGD(lr=1.0, batch_size=0, clip_norm=0.25)
    ask = Fit(start, correct=lambda grad, params: grad.add_(100.0))
    end = learner.fit(bound, DATA, ask, Context(rd.Task(1, "ann", 1), SEED))
    assert (end.params - start).norm().item() == pytest.approx(0.25, rel=1e-4)


def test_frozen_parameters_stay() -> None:
    class Frozen(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.first.requires_grad_(False)

    state, _ = fitted(replace(SGD, momentum=0.9, weight_decay=0.1), Frozen)
    before = started(Frozen).state_dict()
    assert torch.equal(state["first.weight"], before["first.weight"])
    assert not torch.equal(state["second.weight"], before["second.weight"])


SCHEDULES = {
    "constant": (rd.Constant(), [1, 1, 1, 1, 1, 1, 1]),
    "cosine": (rd.Cosine(num_rounds=4), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0, 0]),
    "cosine to a floor": (rd.Cosine(num_rounds=2, final=0.2), [1, 0.6, 0.2, 0.2, 0.2, 0.2, 0.2]),
    "step": (rd.Step(every=3, factor=0.5), [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    "step by ten": (rd.Step(every=1), [1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]),
    "your own": (lambda round: 1.0 / round, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7]),
}


@pytest.mark.parametrize(("schedule", "factors"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_scales_the_learning_rate_by_rounds_from_1(schedule: Callable, factors: list[float]) -> None:
    assert [schedule(round) for round in range(1, 8)] == pytest.approx(factors, abs=1e-12)


@pytest.mark.parametrize("round", [1, 2, 5])
@pytest.mark.parametrize("schedule", [rd.Constant(), rd.Cosine(num_rounds=6), rd.Step(every=2)], ids=str)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_round_trains_at_the_scheduled_rate(schedule: Callable[[int], float], optimizer: str, round: int) -> None:
    state, told = fitted(replace(SGD, schedule=schedule, optimizer=optimizer), round=round)
    lr = 0.1 * schedule(round)
    kind = getattr(torch.optim, optimizer)
    assert_same(state, by_hand(lambda p: kind(p, lr=lr), round=round)[0])
    plain = optimizer == "SGD"  # Adam's learning rates say nothing about the gradients in the end point
    assert told.lr_sum == pytest.approx(4 * lr if plain else math.nan, nan_ok=True)


# ---- a task's own configuration -------------------------------------------------------------------------------------

CONFIGS = {
    "learning rate": ({"lr": 0.03}, sgd(0.03), {}),
    "epochs": ({"local_epochs": 2}, sgd(), {"epochs": 2}),
    "batches in place of epochs": ({"local_batches": 3}, sgd(), {"steps": 3}),
    "batch size": ({"batch_size": 0}, sgd(), {"size": 26}),
    "momentum": ({"momentum": 0.5}, sgd(momentum=0.5), {}),
    "clipping": ({"clip_norm": 0.1}, sgd(), {"clip": 0.1}),
    "optimiser": ({"optimizer": "Adam", "lr": 0.01}, lambda p: torch.optim.Adam(p, lr=0.01), {}),
}


@pytest.mark.parametrize(("config", "optimizer", "reference"), CONFIGS.values(), ids=CONFIGS)
def test_a_tasks_configuration_overrides_the_learners(config: dict, optimizer: Optimizer, reference: dict) -> None:
    state, _ = fitted(replace(SGD, local_epochs=1), **config)
    assert_same(state, by_hand(optimizer, **reference)[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epochs": 3}, r"client 'ann': configuration 'epochs' is not a setting of LocalSGD; it has .*local_epochs"),
        ({"lr": -1.0}, "lr must be a positive number, got -1.0"),
        ({"local_epochs": 1, "local_batches": 1}, "local_epochs or local_batches, not both"),
        ({"optimizer": "sgdd"}, "'sgdd' is not in torch.optim"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fitted(SGD, **config)


def one_by_one(client: str, num_examples: int) -> Iterator[torch.Tensor]:
    """Yield the batches of a client's epochs, for ever."""
    for epoch in count(1):
        shuffle = seeds.generator(SEED, epoch, 0, client, "shuffle")
        yield from torch.randperm(num_examples, generator=shuffle).split(4)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_every_client_can_have_its_own_configuration_in_every_round(executor: str) -> None:
    def own(round: int, client: str) -> dict[str, int | float]:
        return {"lr": 0.02 * round, "local_batches": 1 + int(client[1:])}

    simulation = rd.Simulation(executor=executor, num_workers=2)
    job = small_job(model=Plain, num_rounds=2, clients_per_round=2, client_config=own, simulation=simulation, seed=SEED)
    data = job.prepared().work.data
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(SEED, 0, 0, "", "model"))
        model = Plain()
    going_on = {client: one_by_one(client, len(data.train(client))) for client in data.clients}
    for finished in job.rounds():
        ends, sizes = [], []
        for report in finished.clients:
            local = Plain()
            local.load_state_dict(model.state_dict())
            stepper = torch.optim.SGD(local.parameters(), lr=0.02 * finished.number)
            part = data.train(report.client)
            for picked in islice(going_on[report.client], 1 + int(report.client[1:])):
                stepper.zero_grad()
                nn.functional.cross_entropy(local(part.inputs[picked]), part.targets[picked]).backward()
                stepper.step()
            ends.append(local.state_dict())
            sizes.append(len(part))
        share = sizes[1] / sum(sizes)
        mean = {name: torch.lerp(ends[0][name], ends[1][name], share) for name in ends[0]}
        assert_same(finished.state_dict(), mean)
        model.load_state_dict(mean)


# ---- what the end point holds of the gradients ----------------------------------------------------------------------


class Slope(nn.Module):
    """A model whose gradient is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.at.expand(len(x), 2)


SLOPE = torch.tensor([0.5, -3.0], dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("pull", [0.0, 0.3])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_norm_says_how_much_of_the_gradients_the_end_point_holds(
    num_steps: int, pull: float, momentum: float
) -> None:
    module = Slope()
    bound = Layout.of(module).bind(module)
    start = bound.params().clone()
    learner = rd.LocalSGD(
        lr=0.1, momentum=momentum, local_batches=num_steps, loss=lambda at, _: (at * SLOPE).sum(-1).mean()
    )
    ask = Fit(start, correct=lambda grad, params: grad.add_(params - start, alpha=pull), pull=pull)
    told = learner.fit(bound, DATA, ask, Context(rd.Task(1, "ann", 1), SEED))
    torch.testing.assert_close(start - told.params, 0.1 * told.a_norm * SLOPE)


@pytest.mark.parametrize("tau", [1, 2, 10])
def test_a_norm_is_the_closed_form_of_momentum_and_of_a_pull(tau: int) -> None:
    rho, decay = 0.9, 0.02
    assert accumulation(tau, 0.0, 0.0) == tau
    assert accumulation(tau, rho, 0.0) == pytest.approx((tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho))
    assert accumulation(tau, 0.0, decay) == pytest.approx((1 - (1 - decay) ** tau) / decay)
    assert accumulation(tau, 0.0, 1.5) == pytest.approx(sum(0.5**k for k in range(tau)))  # L1: what overshoots counts


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({}, {"num_steps", "lr_sum", "a_norm"}),
        ({"weight_decay": 0.1, "clip_norm": 1.0}, {"num_steps", "lr_sum", "a_norm"}),
        ({"momentum": 0.9}, {"num_steps", "a_norm"}),
        ({"momentum": 0.9, "optimizer_args": {"nesterov": True}}, {"num_steps"}),
        ({"optimizer": "Adam"}, {"num_steps"}),
        ({"optimizer": lambda p, lr: torch.optim.SGD(p, lr=lr)}, {"num_steps"}),
    ],
    ids=["plain", "decay and clipping", "momentum", "nesterov", "Adam", "factory"],
)
def test_a_learner_reports_what_it_says_and_no_more(settings: dict, reported: set[str]) -> None:
    learner = replace(SGD, **settings)
    told = fitted(learner)[1]
    assert learner.reports == reported
    assert {name for name in ("num_steps", "lr_sum", "a_norm") if not math.isnan(getattr(told, name))} == reported
