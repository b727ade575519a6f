"""What a client half may ask for: fits and losses, in any order, without one touching the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from networks import Awkward, examples, small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay.algorithms.protocol import ClientHalf, Fit, Losses, Reply, State
from roundelay.layout import Vectors
from roundelay.learner import Measures, evaluate
from roundelay.messages import Memory, Payload, Task
from roundelay.trainer import Trainer

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
executors = pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])


@dataclass(frozen=True, slots=True)
class Curious:
    """Averaging whose clients ask for losses before and after they train, and remember them."""

    before: bool = True
    after: bool = True
    uplink: ClassVar[Mapping[str, str]] = {"params": "examples"}

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start, kept = received["params"], {}
        if self.before:
            kept["before"] = yield Losses(torch.stack([start, 0 * start]))
        end = yield Fit(start)
        if self.after:
            kept["after"] = yield Losses(torch.stack([end.params, 2 * end.params]))
        return Reply({"params": end.params}, end.num_examples, kept)

    def apply(self, state: State, totals: Mapping[int, rd.Total]) -> State:
        return {"params": totals[0].mean("params")}


@executors
@pytest.mark.parametrize("algorithm", [Curious(after=False), Curious(before=False), Curious()], ids=str)
def test_asking_for_losses_changes_no_bit_of_a_fit_buffers_and_dropout_included(
    algorithm: Curious, simulation: rd.Simulation
) -> None:
    assert small_job(algorithm=algorithm, simulation=simulation).run().sha256 == small_job().run().sha256


def test_losses_are_the_training_loss_in_evaluation_mode_over_the_clients_own_training_examples() -> None:
    learner = rd.LocalSGD(lr=0.1, batch_size=4, loss=nn.functional.multi_margin_loss)
    job = small_job(algorithm=Curious(), learner=learner, evaluation=rd.Evaluation(loss=nn.functional.cross_entropy))
    trainer = Trainer(job.prepared().work)
    bound = trainer.bound
    bound.load_buffers(torch.linspace(0.5, 2.0, 26), torch.tensor([3]))
    sent = Payload({"params": bound.params().clone()}, bound.buffers().clone(), bound.integers().clone())
    answer = trainer.train(Task(1, "c1", 1), sent, {})
    kept = {name: value.clone() for name, value in answer.memory.items()}
    ended = answer.update.payload
    reference, data = Awkward().eval(), trainer.work.data.train("c1")
    for name, vectors, buffers in (
        ("before", [sent.vectors["params"], 0 * sent.vectors["params"]], sent.buffers),
        ("after", [ended.vectors["params"], 2 * ended.vectors["params"]], ended.buffers),
    ):
        for told, params in zip(kept[name], vectors, strict=True):
            layout = trainer.layout
            reference.load_state_dict(layout.unflatten(Vectors(params, buffers, sent.integers)))
            loss = nn.functional.multi_margin_loss(reference(data.inputs), data.targets)
            torch.testing.assert_close(told, loss.detach(), rtol=1e-5, atol=1e-6)


def test_losses_are_those_that_evaluation_gives_batch_by_batch() -> None:
    job = small_job(algorithm=Curious(after=False), evaluation=rd.Evaluation(batch_size=5))
    trainer = Trainer(job.prepared().work)
    bound, work = trainer.bound, trainer.work
    sent = Payload({"params": bound.params().clone()}, bound.buffers().clone(), bound.integers().clone())
    expected = evaluate(bound, work.data.train("c3"), work.loss, Measures(), 5).sums.means()["loss"]
    told = trainer.train(Task(1, "c3", 1), sent, {}).memory["before"]
    assert told[0].item() == pytest.approx(expected, rel=1e-6)
    assert told[0] != told[1]


class Counting(nn.Module):
    """A model that changes a buffer and draws, even in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + 0.01 * torch.randn(len(x), 3)


def test_losses_leave_buffers_and_draws_alone_whatever_the_model_does_in_evaluation() -> None:
    asked = small_job(model=Counting, algorithm=Curious()).run()
    assert asked.sha256 == small_job(model=Counting).run().sha256


def test_a_users_own_function_can_be_asked_for_losses() -> None:
    def train(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
        return len(data), {}

    job = small_job(algorithm=Curious(), learner=train)
    trainer = Trainer(job.prepared().work)
    bound = trainer.bound
    sent = Payload({"params": bound.params().clone()}, bound.buffers().clone(), bound.integers().clone())
    kept = trainer.train(Task(1, "c0", 1), sent, {}).memory
    assert kept["before"][0] == kept["after"][0]
    assert len(examples(10)) == len(trainer.work.data.train("c0"))
