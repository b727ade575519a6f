"""Nothing of one client's task, and nothing of one round, reaches the next: not through the module, nor the memory."""

import gc
import random

import pytest
import torch
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.guard import Expected, Guard
from roundelay.intake import Intake
from roundelay.layout import Bound
from roundelay.messages import Payload, Task
from roundelay.simulation.executors.processes import Processes
from roundelay.trainer import Answer, Trainer

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)


def without_housekeeping(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
    """A step as careless users write it: neither ``model.train()`` nor ``zero_grad()``."""
    inputs, targets = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    nn.functional.cross_entropy(model(inputs), targets).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    return len(data), {}


def test_a_careless_function_gives_the_same_bits_in_every_executor() -> None:
    hashes = {small_job(learner=without_housekeeping, simulation=s).run().sha256 for s in (SERIAL, POOL)}
    assert len(hashes) == 1


def test_the_careless_function_would_show_gradients_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = small_job(learner=without_housekeeping).run().sha256
    monkeypatch.setattr(Bound, "start_training", lambda self: None)
    assert small_job(learner=without_housekeeping).run().sha256 != clean


def replacing(model: nn.Module, data: rd.data.Examples, task: Task) -> rd.FLModel:
    """Mixed precision by hand: the tensors that come back are not those that went in."""
    SEEN.append(float(sum(p.sum() for p in model.parameters())))
    model.double()
    model.float()
    return rd.FLModel({name: value + 1 if value.is_floating_point() else value
                       for name, value in model.state_dict().items()})  # fmt: skip


SEEN: list[float] = []


def test_a_function_that_replaces_tensors_leaves_the_next_client_the_models_own() -> None:
    SEEN.clear()
    small_job(learner=replacing, num_rounds=1).run()
    assert len(SEEN) == 4
    assert len(set(SEEN)) == 1


def failing_after_damage(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
    SEEN.append(float(sum(p.sum() for p in model.parameters())))
    if task.client == "c1":
        model.double()
        with torch.no_grad():
            for p in model.parameters():
                p += 100
        model.first = nn.Linear(2, 2)
        raise ValueError("broken client")
    return len(data), {}


def test_a_function_that_raises_after_changing_the_model_harms_nobody_else() -> None:
    SEEN.clear()
    history = small_job(learner=failing_after_damage, num_rounds=1, clients_per_round=6).run()
    assert len(SEEN) == 7  # c1 twice
    assert len(set(SEEN)) == 1
    assert history.rows[-1]["lost"] == 1


def test_answers_to_tasks_that_are_not_open_count_for_nothing() -> None:
    trainer = Trainer(small_job().prepared().work)
    bound = trainer.bound
    sent = Payload({"params": bound.params().clone()}, bound.buffers().clone(), bound.integers().clone())
    released: list[int] = []
    intake = Intake(
        [Task(7, "c0", 2)], sent, uplink={"params": "examples"}, guard=Guard(), goal=None, release=released.append,
        expected=Expected.of(trainer.layout, {"params": len(sent.vectors["params"])}),
    )  # fmt: skip
    intake.arrive(Answer(trainer.train(Task(3, "c0", 1), sent, {}).update))
    outcome = intake.close()
    assert released == [3]
    assert [(r.client, r.status) for r in outcome.reports] == [("c0", "late")]
    assert outcome.fold.count == 0


def always_failing_for_c1(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
    if task.client == "c1":
        raise ValueError("broken client")
    return len(data), {}


def test_lost_clients_leave_nothing_behind_in_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    close = Processes.close

    def counted(self: Processes) -> None:
        held.append(len(self._jobs))
        close(self)

    monkeypatch.setattr(Processes, "close", counted)
    small_job(learner=always_failing_for_c1, simulation=POOL, clients_per_round=6).run()
    assert held[0] == 0


def test_stragglers_of_closed_rounds_keep_no_memory() -> None:
    simulation = rd.Simulation(executor="serial", duration=lambda client, task: 1e6 if client == "c1" else 1.0)
    job = small_job(num_rounds=8, clients_per_round=6, simulation=simulation, workflow=rd.Rounds(deadline_s=10))
    for finished in job.rounds():
        if finished.number == 8:
            gc.collect()
            assert sum(type(o) is Intake for o in gc.get_objects()) <= 2


class Drawing(nn.Module):
    """A model that draws random numbers even in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.randn(len(x), 3)


def drawn_data() -> rd.FederatedData:
    x = torch.randn(24, 7)
    part = rd.data.TensorExamples(x, torch.randint(0, 3, (24,)))
    return rd.FederatedData.from_datasets({"a": part, "b": part}, held_out=part)


def test_data_functions_and_evaluation_draw_from_keys_and_leave_the_callers_generators_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state()
    first = small_job(model=Drawing, data=drawn_data, clients_per_round=2).run()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = small_job(model=Drawing, data=drawn_data, clients_per_round=2).run()
    assert first.sha256 == second.sha256
    assert [row["loss"] for row in first.rows] == [row["loss"] for row in second.rows]
