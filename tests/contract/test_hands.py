"""What trains on a device comes to the bits of a simulated client, round after round, and can be stopped."""

import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import Plain, small_job
from scripts import BEGIN, in_mid_training, script_job, threads
from torch import nn

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.client.exchange import Scalar, Site
from roundelay.client.launch import ScriptLearner
from roundelay.components import describe
from roundelay.deployment.device.hands import CannotDo, Done, ScriptHands, TrainerHands
from roundelay.errors import LayoutError
from roundelay.layout import Layout
from roundelay.messages import Lost, Memory, Payload, Task, TaskKind
from roundelay.simulation.executors.protocol import Executor, Result
from roundelay.simulation.executors.scripts import Sites
from roundelay.simulation.memory import ClientMemory
from roundelay.trainer import Answer, Evaluated, Trainer, Work, one_thread


def sent_in(work: Work, server: Trainer, round: int) -> Payload:
    """What the clients of a round receive; no two rounds send the same."""
    params = server.layout.flatten(work.initial_module().state_dict()).params
    state = work.algorithm.init(params, len(work.data.clients))
    vectors = {name: vector + 0.01 * (round - 1) for name, vector in work.algorithm.broadcast(state).items()}
    start = server.layout.flatten(work.initial_module().state_dict())
    return Payload(vectors, start.buffers + round, start.integers + round)


def told(client: str, work: Work, layout: Layout) -> Site:
    clients = work.data.clients
    part = {"client": client, "number": clients.index(client), "num_clients": len(clients)}
    return Site(client, "run", work.seed, 2, describe(work.algorithm), layout, {"partition": part})


PLAN: tuple[TaskKind, ...] = ("train", "evaluate", "train", "submit", "evaluate")


def compare(executor: Executor, work: Work, server: Trainer, hands: Callable[[str], TrainerHands | ScriptHands]) -> int:
    """The contract: client by client, task by task, the same answer and the same memory. Return how many memories."""
    initial = server.layout.flatten(work.initial_module().state_dict()).params
    simulated, num_memories = ClientMemory(work.algorithm.first_memory(initial)), 0
    with one_thread():
        for number, client in enumerate(work.data.clients):
            own, kept = hands(client), {}  # type: TrainerHands | ScriptHands, Memory
            try:
                for round, kind in enumerate(PLAN, start=1):
                    task = Task(100 * number + round, client, round, kind=kind)
                    received = sent_in(work, server, round)
                    executor.submit([task], received, {client: simulated.of(client)})
                    done = own.do(task, received, kept)
                    check_same(done, copied := executor.result(task.id))
                    if kind == "train":
                        assert isinstance(copied, Answer)
                        simulated.commit({client: {k: v.clone() for k, v in copied.memory.items()}})
                        kept = {k: v.clone() for k, v in done.memory.items()}
                        num_memories += len(kept)
                    executor.release(task.id)
            finally:
                own.close()
    return num_memories


def check_same(done: Done, came: Result) -> None:
    answered = done.answered
    assert not isinstance(came, Lost), came
    assert answered.memory == {}
    if isinstance(came, Evaluated):
        assert (answered.payload, done.memory) == (None, {})
        assert (answered.num_examples, dict(answered.metrics)) == (came.num_examples, dict(came.metrics))
        return
    update = came.update
    assert answered.payload is not None
    assert (answered.task_id, answered.num_examples, answered.group) == (update.task.id, update.num_examples,
                                                                         update.group)  # fmt: skip
    assert dict(answered.metrics) == dict(update.metrics)
    assert answered.silent == update.silent
    check_tensors({**answered.payload.vectors}, {**update.payload.vectors})
    check_tensors(
        {"buffers": answered.payload.buffers, "integers": answered.payload.integers},
        {"buffers": update.payload.buffers, "integers": update.payload.integers},
    )
    check_tensors(done.memory, came.memory)


def check_tensors(one: Memory, other: Memory) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value.dtype, value.tolist()) == (other[name].dtype, other[name].tolist()), name


JOBS: dict[str, dict[str, object]] = {
    "fedavg": {},
    "scaffold": {"algorithm": rd.Scaffold()},
    "ditto": {"algorithm": rd.Ditto(strength=0.1)},
    "ifca": {"algorithm": rd.IFCA(num_clusters=2)},
    "a head that stays": {"keep_local": ["second.*"]},
    "batch norm that stays": {"keep_local": ["@batch_norm"]},
    "an uplink that remembers": {"uplink": rd.Uplink(codec=rd.TopK(fraction=0.1), feedback="error")},
    "silence": {"uplink": rd.Uplink(trigger=rd.SendOnDelta(threshold=0.45), on_silence="zero")},
    "another loss": {"evaluation": rd.Evaluation(loss=torch.nn.functional.multi_margin_loss)},
}


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_a_trainer_comes_to_the_bits_of_the_serial_executor(changes: dict[str, object]) -> None:
    work = small_job(**changes).prepared().work
    server = Trainer(work)
    rehearsal = rehearse(work.algorithm, server.bound.params().clone(), 6)
    executor = rd.Simulation(executor="serial").start(work, Trainer(work), rehearsal)

    def hands(client: str) -> TrainerHands:
        return TrainerHands(replace(work, data=work.data.held_by(client, client)), told(client, work, server.layout))

    num_memories = compare(executor, work, server, hands)
    assert bool(num_memories) == (bool(changes) and "evaluation" not in changes and changes != JOBS["ifca"])


def test_the_comparison_catches_a_client_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TrainerHands.do
    monkeypatch.setattr(TrainerHands, "do", lambda self, task, received, memory: real(self, task, received, {}))
    with pytest.raises(AssertionError):
        test_a_trainer_comes_to_the_bits_of_the_serial_executor(JOBS["scaffold"])


def test_the_callers_random_state_and_number_of_threads_stay() -> None:
    hands = trainer_hands(small_job())
    before, count = torch.get_rng_state(), torch.get_num_threads()
    hands.do(Task(1, "c0", 1), hands.sent, {})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == count


# ---- scripts --------------------------------------------------------------------------------------------------------

KEEPS = (
    BEGIN
    + """
fl.patch(optimizer, net)
while fl.is_running():
    model = fl.receive()
    net.load_state_dict(model.params)
    if fl.is_evaluate():
        fl.send(fl.FLModel(metrics={"loss": float(net.eval()(data.inputs).square().mean())}, num_examples=len(data)))
        continue
    fl.state["seen"] = fl.state.get("seen", 0) + 1
    fl.log("seen", fl.state["seen"])
    loss = train(net, optimizer, data)
    fl.send(fl.FLModel(params=net.state_dict(), metrics={"loss": loss, "seen": fl.state["seen"]},
                       num_examples=len(data)))
"""
)


class Scripted:
    """Hands for the clients of a script's job, and the executor that they are compared with."""

    def __init__(self, folder: Path, text: str, **changes: object) -> None:
        self.logged: list[tuple[str, int, Scalar]] = []
        self._folder, job = folder / "devices", script_job(folder, text, threads(2), **changes)
        self.work = job.prepared().work
        self.server = Trainer(self.work)
        self.sites = Sites("run", 2, folder / "sites", lambda client: told(client, self.work, self.server.layout)
                           .config["partition"], lambda *_: None)  # fmt: skip

    def executor(self) -> Executor:
        rehearsal = rehearse(self.work.algorithm, self.server.bound.params().clone(), 2)
        return threads(2).start(self.work, self.server, rehearsal, self.sites)

    def hands(self, client: str) -> ScriptHands:
        assert isinstance(self.work.learner, ScriptLearner)
        initial = self.work.algorithm.first_memory(self.server.bound.params().clone())
        first = {**self.server.first_local(), **initial}
        return ScriptHands(self.work.learner, told(client, self.work, self.server.layout), first, (), self._folder,
                           lambda *said: self.logged.append(said), uplink=self.work.uplink)  # fmt: skip

    def do(self, hands: ScriptHands, round: int = 1) -> Done:
        return hands.do(Task(round, "site-2", round), sent_in(self.work, self.server, round), {})


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": rd.Scaffold()},
        {"keep_local": ["second.*"]},
        {"uplink": JOBS["an uplink that remembers"]["uplink"]},
    ],
    ids=["scaffold", "head", "uplink"],
)
def test_a_script_comes_to_the_bits_of_a_simulated_one(changes: dict[str, object], tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, KEEPS, **changes)
    executor = scripted.executor()
    try:
        assert compare(executor, scripted.work, scripted.server, scripted.hands)
    finally:
        executor.close()
    counted = [(client, round, scalar.value) for client, round, scalar in scripted.logged]
    # what a submitted model has added to the memory was not committed
    assert counted == [(client, round, value) for client in ("site-1", "site-2")
                       for round, value in ((1, 1.0), (3, 2.0), (4, 3.0))]  # fmt: skip


def test_a_script_that_fails_once_is_started_anew(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, in_mid_training("if not os.path.exists('k'): note('k', 1); os.kill(os.getpid(), 9)",
                                                  "number == 1"))  # fmt: skip
    hands = scripted.hands("site-2")
    try:
        assert scripted.do(hands).answered.num_examples == 12
    finally:
        hands.close()


def test_a_script_that_fails_twice_cannot_do_its_task_and_can_do_the_next(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, in_mid_training("raise OSError('no such scan')", "model.current_round == 0"))
    hands = scripted.hands("site-2")
    try:
        with pytest.raises(CannotDo, match="client 'site-2' failed 2 times: OSError: no such scan") as caught:
            scripted.do(hands)
        assert "raise OSError" in caught.value.traceback
        assert scripted.do(hands, round=2).answered.task_id == 2
    finally:
        hands.close()


def test_a_script_at_work_is_interrupted_and_does_the_next_task(tmp_path: Path) -> None:
    hang = "fl.log('here', 1.0); import threading; threading.Event().wait()"
    scripted = Scripted(tmp_path, in_mid_training(hang, "model.current_round == 0"))
    hands = scripted.hands("site-2")
    reached = threading.Event()
    hands._watch = replace(hands._watch, on_scalar=lambda *_: reached.set())
    hands.interrupt()  # of nothing
    stopper = threading.Thread(target=lambda: reached.wait(30) and hands.interrupt())
    stopper.start()
    try:
        with pytest.raises(CannotDo, match="interrupted"):
            scripted.do(hands)
        assert scripted.do(hands, round=2).answered.task_id == 2
    finally:
        stopper.join()
        hands.close()
        hands.close()


# ---- what goes wrong ------------------------------------------------------------------------------------------------


class Sent(TrainerHands):
    sent: Payload


def trainer_hands(job: rd.Job) -> Sent:
    work = job.prepared().work
    server = Trainer(work)
    hands = Sent(replace(work, data=work.data.held_by("c0", "c0")), told("c0", work, server.layout))
    hands.sent = sent_in(work, server, 1)
    return hands


def test_code_that_raises_is_tried_twice_and_told_with_its_traceback() -> None:
    tries: list[int] = []

    def failing(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
        tries.append(task.round)
        if task.round == 1 or len(tries) == 3:
            raise OSError("no such scan")
        return len(data), {}

    hands = trainer_hands(small_job(learner=failing))
    with pytest.raises(CannotDo, match="client 'c0' failed 2 times: OSError: no such scan") as caught:
        hands.do(Task(1, "c0", 1), hands.sent, {})
    assert "in failing" in caught.value.traceback
    assert hands.do(Task(2, "c0", 2), hands.sent, {}).answered.num_examples == 10
    assert tries == [1, 1, 2, 2]


def test_training_is_interrupted_at_the_next_call_of_the_model_whatever_the_users_code_catches() -> None:
    interrupt: list[Callable[[], None]] = []

    def stubborn(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
        for inputs, _ in data.batches(torch.arange(len(data)), 5):
            interrupt[0]()
            try:
                model(inputs)
            except Exception as error:
                raise AssertionError("took it for its own mistake") from error
        return len(data), {}

    hands = trainer_hands(small_job(learner=stubborn))
    interrupt.append(hands.interrupt)
    with pytest.raises(CannotDo, match="interrupted"):
        hands.do(Task(1, "c0", 1), hands.sent, {})
    interrupt[0] = lambda: None
    assert hands.do(Task(2, "c0", 2), hands.sent, {}).answered.task_id == 2


def test_a_users_function_may_copy_and_pickle_the_model() -> None:
    def copying(model: nn.Module, data: rd.data.Examples, task: Task) -> tuple[int, dict[str, float]]:
        teacher = copy.deepcopy(model)
        saved = pickle.loads(pickle.dumps(model))
        assert torch.equal(teacher.eval()(torch.ones(1, 7)), saved.eval()(torch.ones(1, 7)))
        return len(data), {}

    hands = trainer_hands(small_job(learner=copying))
    assert hands.do(Task(1, "c0", 1), hands.sent, {}).answered.num_examples == 10


def test_another_model_than_the_servers_is_refused_by_the_tensor_that_differs() -> None:
    work = small_job().prepared().work
    site = told("c0", work, Trainer(replace(work, make_model=Plain)).layout)
    with pytest.raises(LayoutError, match=r"client 'c0': the model that is built here has a tensor 'norm.weight'"):
        TrainerHands(work, site)
