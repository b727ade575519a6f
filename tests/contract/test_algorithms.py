"""Every algorithm, one table: the same bits in every executor and after a resume, the same text for one client and for
a stack of them, and a user's own training function either works or is refused with the reason.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay.algorithms.protocol import Algorithm, Fitted, Losses, Reply, num_groups
from roundelay.components import build, describe, namespace
from roundelay.errors import ConfigError
from roundelay.intake import Intake
from roundelay.simulation.executors.processes import Processes
from roundelay.simulation.executors.worker import Done
from roundelay.trainer import Answer
from roundelay.workflows import Buffered, Cyclic, Hierarchical

ALGORITHMS: dict[str, Algorithm] = {
    "FedAvg": rd.FedAvg(),
    "FedProx": rd.FedProx(mu=0.1),
    "FedAvgM": rd.FedAvgM(beta=0.5),
    "FedAdagrad": rd.FedAdagrad(server_lr=0.1),
    "FedYogi": rd.FedYogi(server_lr=0.1),
    "FedAdam": rd.FedAdam(server_lr=0.1),
    "Scaffold": rd.Scaffold(),
    "FedNova": rd.FedNova(mu=0.1),
    "FedDyn": rd.FedDyn(alpha=0.5),
    "QFedAvg": rd.QFedAvg(q=1.0, lipschitz=10.0),
    "Ditto": rd.Ditto(strength=0.1),
    "IFCA": rd.IFCA(num_clusters=2),
}
POOL = rd.Simulation(num_workers=2)
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
Settings = dict[str, Any]  # Any: fields of a Job


def test_the_table_lacks_nobody() -> None:
    assert ALGORITHMS.keys() == set(rd.algorithms.__all__)


def own_lengths(round: int, client: str) -> Mapping[str, int]:
    return {"local_batches": 2 + (round + int(client[1:])) % 3}


def settings(algorithm: Algorithm) -> Settings:
    return {
        "algorithm": algorithm, "num_rounds": 5, "client_config": own_lengths,
        "evaluation": rd.Evaluation(clients_every=5),
    }  # fmt: skip


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, str], dict[str, object]]:
    """Every answer of the run that is going on, before it is averaged: by round and client."""
    came: dict[tuple[int, str], dict[str, object]] = {}
    arrive = Intake.arrive

    def noted(self: Intake, answer: Answer) -> None:
        update = answer.update
        came[update.task.round, update.task.client] = {
            "examples": update.num_examples,
            "group": update.group,
            "buffers": update.payload.buffers.clone(),
            "integers": update.payload.integers.clone(),
            **{f"sent {name}": value.clone() for name, value in update.payload.vectors.items()},
            **{f"remembered {name}": value.clone() for name, value in answer.memory.items()},
        }
        arrive(self, answer)

    monkeypatch.setattr(Intake, "arrive", noted)
    return came


def assert_same(a: Mapping[str, object], b: Mapping[str, object], who: object) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name]
        assert same, f"{who}: {name}"


@every_algorithm
def test_serial_and_processes_agree_client_by_client_and_a_resumed_run_ends_in_the_same_bits(
    algorithm: Algorithm, answers: dict[tuple[int, str], dict[str, object]], tmp_path: Path
) -> None:
    alone = small_job(**settings(algorithm), tracking=rd.Tracking(str(tmp_path), "alone")).run()
    one_by_one = dict(answers)
    answers.clear()
    tracked = small_job(**settings(algorithm), simulation=POOL, tracking=rd.Tracking(str(tmp_path), "cut"))
    for finished in tracked.rounds():
        if finished.number == 3:
            break
    pooled = tracked.run(resume=tmp_path / "cut")
    assert len(one_by_one) == 20
    for who, answer in one_by_one.items():
        assert_same(answer, answers[who], who)
    assert pooled.sha256 == alone.sha256
    kept, again = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("alone", "cut"))
    assert_same(kept["state"], again["state"], "the server")
    assert kept["memory"].keys() == again["memory"].keys()
    for client, memory in kept["memory"].items():
        assert_same(memory, again["memory"][client], client)
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in alone.rows]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in pooled.rows] == timeless
    assert pooled.clients() == alone.clients()


class Normed(nn.Module):
    """Buffers that are longer than the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(7, 1), nn.BatchNorm1d(500, affine=False), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x).expand(-1, 500)).mean(1, keepdim=True))


@every_algorithm
def test_answers_fit_into_the_slots_that_the_pool_makes_for_them(
    algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they do not, every answer is pickled through a pipe: as right, and slower."""
    inline: list[object] = []
    take = Processes._take

    def noted(self: Processes, done: Done) -> None:
        inline.append(done.inline)
        take(self, done)

    monkeypatch.setattr(Processes, "_take", noted)
    small_job(model=Normed, algorithm=algorithm, simulation=rd.Simulation(num_workers=1)).run()
    assert len(inline) == 12
    assert all(what is None for what in inline)


WORKFLOWS = {
    "buffered": (Buffered(buffer_size=2), {"Scaffold", "FedNova", "QFedAvg", "IFCA"}),
    "hierarchical": (
        Hierarchical(edges=2, edge_rounds=2),
        {"FedAvgM", "FedAdagrad", "FedYogi", "FedAdam", "Scaffold", "FedNova", "FedDyn", "QFedAvg", "IFCA"},
    ),
    "cyclic": (Cyclic(), set()),
}


@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_workflow_runs_it_or_refuses_it_before_anything_trains(name: str, workflow: str) -> None:
    how, refuses = WORKFLOWS[workflow]
    job = small_job(
        algorithm=ALGORITHMS[name], workflow=how, clients_per_round=2, num_rounds=4,
        simulation=rd.Simulation(executor="serial", duration=lambda client, task: 1.0 + int(client[1:])),
    )  # fmt: skip
    if name in refuses:
        with pytest.raises(ConfigError, match=name):
            job.start()
    else:
        assert len(job.run().rows) == 4


@every_algorithm
def test_its_written_form_reads_into_the_same(algorithm: Algorithm) -> None:
    assert build(describe(algorithm), namespace(rd.algorithms), "algorithm") == algorithm


# ---- one client and a stack of clients ------------------------------------------------------------------------------

NUM_CLIENTS, LENGTH = 3, 5


def drive(
    algorithm: Algorithm, received: Mapping[str, Tensor], memory: Mapping[str, Tensor],
    fits: list[Fitted], losses: Tensor,
) -> tuple[Reply, list[Tensor]]:  # fmt: skip
    """Answer what a client half asks for; return its reply, and what its corrections made of gradients of ones."""
    client, corrected, left = algorithm.client(received, memory), [], iter(fits)
    try:
        ask = next(client)
        while True:
            if isinstance(ask, Losses):
                ask = client.send(losses[..., : len(ask.models)])
                continue
            fitted = next(left)
            if ask.correct is not None:
                gradient = torch.ones_like(fitted.params)
                ask.correct(gradient, 2 * fitted.params)
                corrected.append(gradient)
            corrected.append(ask.start.expand_as(fitted.params).clone())
            ask = client.send(fitted)
    except StopIteration as stop:
        return stop.value, corrected


@every_algorithm
def test_the_same_text_serves_one_client_and_a_stack_of_them(algorithm: Algorithm) -> None:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5

    state = algorithm.init(draw(LENGTH), NUM_CLIENTS)
    received = {name: value + draw(*value.shape) for name, value in algorithm.broadcast(state).items()}
    first = algorithm.first_memory(state["params"])
    memories = {name: draw(NUM_CLIENTS, *value.shape) for name, value in first.items()}
    ends, numbers = [draw(NUM_CLIENTS, LENGTH) for _ in range(2)], draw(NUM_CLIENTS, 4)
    losses = draw(NUM_CLIENTS, 2)

    def fitted(which: int, numbers: Tensor) -> Fitted:
        return Fitted(ends[which].clone(), *numbers.split(1, dim=-1))

    stacked, made = drive(algorithm, received, memories, [fitted(0, numbers), fitted(1, numbers)], losses)
    for i in range(NUM_CLIENTS):
        alone = [Fitted(end[i].clone(), *numbers[i].tolist()) for end in ends]
        own = {name: value[i] for name, value in memories.items()}
        reply, corrected = drive(algorithm, received, own, alone, losses[i])
        assert reply.vectors.keys() == stacked.vectors.keys()
        for name, value in reply.vectors.items():
            torch.testing.assert_close(stacked.vectors[name][i], value, rtol=1e-12, atol=0)
        for name, value in reply.memory.items():
            torch.testing.assert_close(stacked.memory[name][i], value, rtol=1e-12, atol=0)
        for together, value in zip(made, corrected, strict=True):
            torch.testing.assert_close(together[i], value, rtol=1e-12, atol=0)
        assert float(stacked.num_examples[i]) == reply.num_examples
        group = stacked.group[i] if isinstance(stacked.group, Tensor) else stacked.group
        assert int(group) == int(reply.group) < num_groups(algorithm)


@every_algorithm
def test_neither_half_changes_what_it_is_given(algorithm: Algorithm) -> None:
    generator = torch.Generator().manual_seed(3)
    state = algorithm.init(torch.rand(LENGTH, generator=generator), NUM_CLIENTS)
    received, memory = algorithm.broadcast(state), algorithm.first_memory(state["params"])
    before = [{name: value.clone() for name, value in given.items()} for given in (state, received, memory)]
    ends = [torch.rand(LENGTH, generator=generator) for _ in range(2)]
    reply, _ = drive(algorithm, received, memory, [Fitted(end, 3.0, 2.0, 0.2, 2.0) for end in ends], torch.ones(2))
    total = rd.Total(reply.vectors, dict.fromkeys(reply.vectors, 3.0), 1)
    sent = {name: value.clone() for name, value in reply.vectors.items()}
    algorithm.apply(state, {0: total})
    for given, was in zip((state, received, memory, reply.vectors), (*before, sent), strict=True):
        assert_same(given, was, type(algorithm).__name__)


# ---- a user's own training function ---------------------------------------------------------------------------------


def user_function(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in torch.utils.data.DataLoader(data, batch_size=8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return len(data), {}


REFUSED = {
    "FedProx": "corrects every gradient",
    "Scaffold": "corrects every gradient",
    "FedNova": "corrects every gradient",
    "FedDyn": "corrects every gradient",
    "Ditto": "corrects every gradient",
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_users_own_function_trains_or_is_refused_with_the_reason(name: str) -> None:
    job = small_job(algorithm=ALGORITHMS[name], learner=user_function)
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            job.run()
        return
    history = job.run()
    assert history.rows[-1]["admitted"] == 4
    assert history.sha256 != small_job(learner=user_function, num_rounds=1).run().sha256


# ---- the table's own checks -----------------------------------------------------------------------------------------

Planting = Callable[[pytest.MonkeyPatch], None]


def in_place(patch: pytest.MonkeyPatch) -> None:
    """The planted bug: a server that moves its state in place."""

    def apply(self: rd.FedAvgM, state: dict[str, Tensor], totals: dict[int, rd.Total]) -> dict[str, Tensor]:
        state["m"].add_(totals[0].mean("params"))
        return {"params": state["params"] + state["m"], "m": state["m"]}

    patch.setattr(rd.FedAvgM, "apply", apply)


def one_for_all(patch: pytest.MonkeyPatch) -> None:
    """The planted bug: a norm over the whole stack, not over each client."""

    def client(self: rd.FedAvgM, received: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Any:
        end = yield rd.Fit(received["params"])
        return Reply({"params": end.params / end.params.norm()}, end.num_examples)

    patch.setattr(rd.FedAvgM, "client", client)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (in_place, test_neither_half_changes_what_it_is_given),
        (one_for_all, test_the_same_text_serves_one_client_and_a_stack_of_them),
    ],
)
def test_the_checks_catch(plant: Planting, check: Callable[[Algorithm], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(rd.FedAvgM())
