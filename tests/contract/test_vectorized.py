"""Clients that are trained side by side come to what they come to alone, up to rounding."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from networks import Plain, examples, federated, small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.errors import ConfigError
from roundelay.learner import stacked
from roundelay.messages import Payload, Task
from roundelay.simulation.executors.vectorized import blocks
from roundelay.trainer import Answer, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
SERIAL, STACKED = rd.Simulation("serial"), rd.Simulation("vectorized", num_workers=1)
FEW = replace(STACKED, block_mib=0.01)
"""Room for two or three clients at a time."""


@pytest.fixture(autouse=True)
def trained_side_by_side(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail where clients fell back on being trained alone: they come to the same, and nothing else would tell."""
    yield
    assert not any("side by side failed" in record.getMessage() for record in caplog.get_records("call"))


class Normed(nn.Module):
    """BatchNorm's buffers and counters, and nothing that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(7, 13), nn.BatchNorm1d(13), nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return out


class Recurrent(nn.Module):
    """A GRU over the seven features, a number at a time; its last state counts too."""

    def __init__(self, batch_first: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 5, batch_first=batch_first, bias=bias), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = x[..., None] if self.gru.batch_first else x.T[..., None]
        outputs, last = self.gru(steps)
        first = outputs[:, 0] if self.gru.batch_first else outputs[0]
        out: Tensor = self.head(torch.cat([first, last[0]], 1))
        return out


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 4, 3, padding=1), nn.Linear(28, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.conv(x[:, None])).flatten(1))
        return out


def _tensors(answer: Answer) -> list[Tensor]:
    payload = answer.update.payload
    return [*payload.vectors.values(), payload.buffers, payload.integers, *answer.memory.values()]


def answers(simulation: rd.Simulation, job: rd.Job, bereave: bool = False) -> dict[str, Answer]:
    """Return each client's answer to one task; a worker of the pool may be killed on the way."""
    work = job.prepared().work
    server = Trainer(work)
    start = server.bound.params().clone()
    sent = work.algorithm.broadcast(work.algorithm.init(start, 6))
    received = Payload(sent, server.bound.buffers().clone(), server.bound.integers().clone())
    memory = work.algorithm.first_memory(start)
    tasks = [Task(i, client, 1) for i, client in enumerate(work.data.clients)]
    executor = simulation.start(work, server, rehearse(work.algorithm, start, 6))
    came = {}
    try:
        executor.submit(tasks, received, {task.client: memory for task in tasks})
        if bereave:
            os.kill(executor._inner.process_ids[0], signal.SIGKILL)
        for task in tasks:
            answer = executor.result(task.id)
            assert isinstance(answer, Answer), answer
            update = replace(answer.update, payload=answer.update.payload.copy())
            came[task.client] = Answer(update, {name: kept.clone() for name, kept in answer.memory.items()})
            executor.release(task.id)
    finally:
        executor.close()
    return came


def check_same(given: rd.Job, simulation: rd.Simulation = STACKED) -> None:
    alone, together = answers(SERIAL, given), answers(simulation, given)
    assert alone.keys() == together.keys()
    for client, one in alone.items():
        other = together[client]
        assert other.update.num_examples == one.update.num_examples
        assert other.update.metrics == pytest.approx(one.update.metrics, rel=1e-5)
        assert other.update.group == one.update.group
        sent, expected = (dict(a.update.payload.vectors, buffers=a.update.payload.buffers,
                               integers=a.update.payload.integers) for a in (other, one))  # fmt: skip
        for ours, theirs in ((sent, expected), (other.memory, one.memory)):
            assert ours.keys() == theirs.keys()
            for name, vector in theirs.items():
                torch.testing.assert_close(ours[name], vector, rtol=1e-4, atol=1e-6, msg=f"{client}: {name}")


ALGORITHMS = [
    rd.FedAvg(),
    rd.FedProx(mu=0.1),
    rd.Scaffold(),
    rd.FedNova(),
    rd.FedDyn(alpha=0.1),
    rd.Ditto(strength=0.1),
]


@pytest.mark.parametrize("simulation", [STACKED, FEW], ids=["one block", "small blocks"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: type(one).__name__)
def test_every_client_comes_to_its_own_whatever_the_algorithm(algorithm: rd.FedAvg, simulation: rd.Simulation) -> None:
    check_same(small_job(model=Plain, algorithm=algorithm), simulation)


LEARNERS: Mapping[str, rd.LocalSGD] = {
    "momentum and decay": rd.LocalSGD(lr=0.1, batch_size=4, local_epochs=3, momentum=0.9, weight_decay=0.01),
    "adam": rd.LocalSGD(lr=0.01, batch_size=4, local_epochs=2, optimizer="Adam", weight_decay=0.01),
    "adam of other betas": rd.LocalSGD(lr=0.01, batch_size=4, optimizer="Adam", optimizer_args={"betas": (0.5, 0.9)}),
    "adamw": rd.LocalSGD(lr=0.01, batch_size=3, local_epochs=2, optimizer="AdamW"),
    "clipped": rd.LocalSGD(lr=0.1, batch_size=3, clip_norm=0.1),
    "full batches": rd.LocalSGD(lr=0.1, batch_size=0, local_epochs=3),
    "single examples": rd.LocalSGD(lr=0.1, batch_size=1),
    "a schedule": rd.LocalSGD(lr=0.1, batch_size=4, schedule=rd.Cosine(num_rounds=9)),
}


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_every_client_comes_to_its_own_whatever_the_learner(learner: rd.LocalSGD) -> None:
    check_same(small_job(model=Plain, learner=learner))
    check_same(small_job(model=Plain, learner=learner, algorithm=rd.FedProx(mu=0.1)))


def test_convolutions_and_views_of_one_data_set() -> None:
    given = small_job(model=Convolving, data=rd.Data(examples(90), examples(9)), clients_per_round=6,
                      partition=rd.Dirichlet(num_clients=6, alpha=0.5, min_examples=3))  # fmt: skip
    check_same(given)


MODELS: Mapping[str, dict[str, object]] = {
    "running statistics": {"model": Normed},
    "statistics of a private model": {"model": Normed, "algorithm": rd.Ditto(strength=0.1)},
    "statistics that stay at home": {"model": Normed, "keep_local": ["@batch_norm"]},
    "a head that stays at home": {"model": Plain, "keep_local": ["second.*"], "algorithm": rd.Scaffold()},
    "losses of one model": {"model": Plain, "algorithm": rd.QFedAvg(q=1.0, lipschitz=10.0)},
    "losses of several": {"model": Normed, "algorithm": rd.IFCA(num_clusters=3)},
    "recurrent": {"model": Recurrent},
    "recurrent, positions first, no bias": {"model": partial(Recurrent, batch_first=False, bias=False)},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_every_client_comes_to_its_own_whatever_the_model(changes: dict[str, object]) -> None:
    check_same(small_job(**changes))
    check_same(small_job(**changes), FEW)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda correct, grad, params, rows, n: correct(grad, params) if len(grad) == len(params) else None,
        lambda correct, grad, params, rows, n: correct(grad, params[: len(grad)].flip(0)),
    ],
    ids=["remainders are not corrected", "corrected by other rows"],
)
def test_the_check_catches_corrections(wrong: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "_correct", wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        check_same(small_job(model=Plain, algorithm=rd.FedProx(mu=0.5)))


def test_the_check_catches_steps_that_reach_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step = stacked.Descent.step
    monkeypatch.setattr(stacked.Descent, "step", lambda self, grad, rows, steps: step(
        self, grad.flip(0), rows, steps))  # fmt: skip
    with pytest.raises(AssertionError):
        check_same(small_job(model=Plain))


def test_a_whole_run_is_repeatable_and_near_the_serial_one() -> None:
    given = small_job(model=Plain, algorithm=rd.Scaffold(), evaluation=rd.Evaluation(clients_every=1))
    serial, first, second = given.run(), given.run(STACKED), given.run(STACKED)
    assert first.sha256 == second.sha256
    for ours, theirs in zip(first.model.state_dict().values(), serial.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert first.metrics["client_accuracy"] == pytest.approx(serial.metrics["client_accuracy"])


def test_encoded_updates_are_those_of_the_same_step() -> None:
    given = small_job(model=Plain, uplink=rd.Uplink(codec=rd.TopK(fraction=0.2), feedback="error"))
    serial, stacked_run = given.run(), given.run(STACKED)
    assert [row["bytes_up"] for row in serial.rows] == [row["bytes_up"] for row in stacked_run.rows]
    for ours, theirs in zip(stacked_run.model.state_dict().values(), serial.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_dropout_is_drawn_for_each_client_and_the_same_again() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.drop = nn.Linear(7, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.drop(self.line(x))
            return out

    alike = {f"c{i}": examples(12) for i in range(4)}
    given = small_job(model=Dropping, data=rd.FederatedData.from_datasets(alike),
                      learner=rd.LocalSGD(lr=0.1, batch_size=0))  # fmt: skip
    first, second = (answers(STACKED, given) for _ in range(2))
    ends = [answer.update.payload.vectors["params"] for answer in first.values()]
    assert not any(torch.equal(ends[0], other) for other in ends[1:])
    for client, answer in second.items():
        assert torch.equal(answer.update.payload.vectors["params"], first[client].update.payload.vectors["params"])


def test_blocks_follow_from_the_order_of_tasks_and_what_fits() -> None:
    tasks = [Task(i, f"c{i}", 1) for i in range(300)]
    for count, fitting, sizes in ((200, 999, [100, 100]), (300, 999, [100] * 3), (200, 20, [20] * 10),
                                  (50, 999, [25, 25]), (49, 999, [49]), (7, 1, [1] * 7), (0, 1, [])):  # fmt: skip
        cut = blocks(tasks[:count], fitting)
        assert [len(block) for block in cut] == sizes
        assert [task for block in cut for task in block] == tasks[:count]


def test_any_number_of_workers_makes_the_same_bits_and_a_workers_death_changes_none() -> None:
    given = small_job(model=Normed, algorithm=rd.Scaffold(),
                      uplink=rd.Uplink(codec=rd.TopK(fraction=0.5), feedback="error"))  # fmt: skip
    one, two, bereft = (
        answers(replace(FEW, num_workers=workers), given, bereave=workers == 3) for workers in (1, 2, 3)
    )
    for other in (two, bereft):
        assert other.keys() == one.keys()
        for client, answer in one.items():
            assert replace(other[client].update, payload=answer.update.payload) == answer.update
            for ours, theirs in zip(_tensors(other[client]), _tensors(answer), strict=True):
                assert torch.equal(ours, theirs)


def test_blocks_of_several_workers_fold_to_the_bits_of_one() -> None:
    given = small_job(model=Plain, algorithm=rd.QFedAvg(q=1.0, lipschitz=10.0), num_rounds=2)
    assert given.run(replace(FEW, num_workers=2)).sha256 == given.run(FEW).sha256


class Deadly:
    """Ends whoever reads it."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        os._exit(3)


@pytest.mark.slow
def test_who_ends_its_worker_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    parts: dict[str, object] = {f"c{i}": federated().train(f"c{i}") for i in range(5)}
    given = small_job(model=Plain, data=rd.FederatedData.from_datasets({**parts, "c5": Deadly()}),
                      clients_per_round=6, num_rounds=1)  # fmt: skip
    *_, last = replace(given, simulation=replace(STACKED, num_workers=2)).rounds()
    assert {r.client: r.status for r in last.clients} == {**dict.fromkeys(parts, "admitted"), "c5": "lost"}
    caplog.clear()


def test_whose_data_raises_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            raise OSError("disk gone")

    parts: dict[str, object] = {f"c{i}": federated().train(f"c{i}") for i in range(5)}
    given = small_job(model=Plain, data=rd.FederatedData.from_datasets({**parts, "c5": Broken()}),
                      clients_per_round=6, num_rounds=1)  # fmt: skip
    *_, last = replace(given, simulation=STACKED).rounds()
    assert {r.client: r.status for r in last.clients} == {**dict.fromkeys(parts, "admitted"), "c5": "lost"}
    assert "side by side failed (OSError: disk gone)" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_block_is_trained_whole_whoever_is_not_waited_for(workers: int) -> None:
    work = small_job(model=Plain).prepared().work
    server = Trainer(work)
    start = server.bound.params().clone()
    executor = replace(STACKED, num_workers=workers).start(work, server, rehearse(work.algorithm, start, 6))
    tasks = [Task(i, client, 1) for i, client in enumerate(work.data.clients)]
    received = Payload({"params": start}, torch.empty(0), torch.empty(0, dtype=torch.int64))
    executor.submit(tasks, received, {})
    executor.cancel([0, 3])
    came = executor.result(1)
    assert isinstance(came, Answer)
    expected = answers(STACKED, small_job(model=Plain))["c1"]
    assert torch.equal(came.update.payload.vectors["params"], expected.update.payload.vectors["params"])
    executor.release(1)
    executor.cancel([2, 4, 5])
    executor.submit([replace(task, id=task.id + 10) for task in tasks], received, {})
    executor.interrupt()
    with pytest.raises(KeyboardInterrupt):
        executor.result(14)
    executor.close()


OBSTACLES: Mapping[str, tuple[dict[str, object], str]] = {
    "counted statistics": ({"model": partial(nn.BatchNorm1d, 7, momentum=None)}, r"\(BatchNorm1d\) has momentum None"),
    "statistics over processes": ({"model": partial(nn.SyncBatchNorm, 7)}, r"\(SyncBatchNorm\) takes its statistics"),
    "statistics of instances": (
        {"model": partial(nn.InstanceNorm1d, 7, affine=True, track_running_stats=True)},
        r"\(InstanceNorm1d\) keeps running",
    ),
    "recurrent": ({"model": partial(nn.LSTM, 7, 3)}, r"layer .* \(LSTM\) has no stacked form"),
    "recurrent, in two layers": ({"model": partial(nn.GRU, 7, 3, num_layers=2)}, r"layer .* \(GRU\) has no stacked"),
    "half": ({"model": partial(nn.Linear, 7, 3, dtype=torch.bfloat16)}, "of half precision"),
    "another loop": ({"learner": lambda model, data, task: (1, {})}, "FunctionLearner, whose own loop"),
    "part of an epoch": ({"learner": rd.LocalSGD(lr=0.1, local_batches=2)}, "local_batches goes through"),
    "another optimiser": ({"learner": rd.LocalSGD(lr=0.1, optimizer="Adagrad")}, "optimizer is adagrad"),
}


@pytest.mark.parametrize(("changes", "message"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_cannot_be_stacked_is_refused_by_name_with_what_to_use(changes: dict[str, object], message: str) -> None:
    given = small_job(**{"model": Plain, "simulation": STACKED, **changes})
    with pytest.raises(ConfigError, match=message) as refused:
        given.run()
    assert 'simulation.executor = "processes"' in str(refused.value)


def test_the_callers_random_state_stays() -> None:
    before = torch.get_rng_state()
    small_job(model=Plain, simulation=STACKED).run()
    assert torch.equal(before, torch.get_rng_state())


class Grey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x.flatten(1))
        return logits


def test_views_of_pixels_are_gathered_at_once_to_the_bits_of_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    pixels = torch.randint(256, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    stored = rd.data.TensorExamples(pixels, torch.randint(3, (60,), generator=generator))
    kept = rd.data.PixelExamples(stored, (0.13,), (0.31,))
    (floats,) = kept.batches(torch.arange(60), 60)
    job = small_job(model=Grey, data=rd.Data(rd.data.TensorExamples(*floats)), partition=rd.IID(6), simulation=STACKED)
    plain = job.run()
    monkeypatch.setattr(rd.data.PixelExamples, "batches", None)  # as nothing is held out, nobody else reads any
    assert replace(job, data=rd.Data(kept)).run().sha256 == plain.sha256
    assert replace(job, data=rd.Data(replace(kept, mean=(0.5,)))).run().sha256 != plain.sha256
