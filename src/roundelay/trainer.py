"""The client's side of one process: a module bound to flat vectors, driving an algorithm's client half.

A serial simulation has one trainer, a pool has one per worker, a device has one. Each gives the same bits.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from roundelay import seeds
from roundelay.algorithms.protocol import Algorithm, Fit, Fitted, Losses, Personalised, Reply
from roundelay.data.examples import Examples
from roundelay.data.federated import FederatedData
from roundelay.errors import ConfigError
from roundelay.layout import Bound, Layout, Vectors
from roundelay.layout.travel import opened, packed
from roundelay.learner import Context, Learner, LossFunction, Measured, Measures, evaluate
from roundelay.messages import Lost, Memory, Payload, Task, Update
from roundelay.metrics import Rows, scalars
from roundelay.stages.downlink import Downlink
from roundelay.stages.uplink import Uplink, apart, coded, for_training, kept

CPU = torch.device("cpu")
LOCAL = ("local params", "local buffers", "local integers")
"""Under these names a client's memory keeps the tensors that ``keep_local`` names."""

LARGE_BYTES = 64 * 2**20
"""Above it, a copy of the parameters that nobody needs just now is not kept."""

TRIES = 2
"""A task that fails is run again once, then its client counts as lost."""

PRIVATE = ("private buffers", "private integers")
"""Under these names a client's memory keeps the buffers of a model that stays on the client."""

LEARNER = "learner "
"""Before the names of what the learner remembers of a client."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's update, and what the client will remember once that update was folded."""

    update: Update
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A client's answer to an evaluation task: its metrics, and the rows of measures of whole sets."""

    task: Task
    num_examples: float
    metrics: Mapping[str, float]
    rows: Rows = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Work:
    """All that local work needs, whoever does it; sent once to every worker.

    ``make_model`` builds the module; ``data`` holds every client's part; ``loss`` and ``measures`` serve evaluation,
    ``train_loss`` is what the clients minimise; ``keep_local`` says which tensors stay on each client; ``uplink`` and
    ``downlink`` say how vectors travel.
    """

    make_model: Callable[[], nn.Module]
    data: FederatedData
    algorithm: Algorithm
    learner: Learner
    loss: LossFunction
    train_loss: LossFunction
    measures: Measures
    seed: int
    eval_batch_size: int = 256
    keep_local: Sequence[str] = ()
    uplink: Uplink | None = None
    downlink: Downlink | None = None

    def initial_module(self) -> nn.Module:
        """Build the module from the job's seed, leaving the caller's random state as it was.

        Raises:
            ConfigError: ``make_model`` gave no ``nn.Module``.
        """
        with seeds.preserved_globals():
            seeds.seed_globals(seeds.key(self.seed, 0, 0, "", "model"))
            module = self.make_model()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"model must be a function that returns a torch.nn.Module, it returned {type(module).__name__}"
            )
        return module


class Trainer:
    """One bound module and the work to do with it.

    Nothing of one task reaches the next: each begins with loaded values, no gradients, training mode and seeded global
    generators.
    """

    def __init__(self, work: Work, device: torch.device | None = None) -> None:
        self.work, self._device = work, device or torch.device("cpu")
        module = work.initial_module()
        self.layout = Layout.of(module, work.keep_local)
        self.bound = Bound(self.layout, module, self._device)  # made of it just now: nothing to check once more
        self._first_local = self.bound.local()
        self.part = lru_cache(maxsize=work.data.num_cached)(work.data.train)

    def run(self, task: Task, received: Payload, memory: Memory) -> Answer | Evaluated:
        """Do a task.

        Whatever it raises, the next task finds a module as new: a user's code may have left anything behind.
        """
        try:
            if task.kind != "evaluate":
                return self.train(task, received, memory)
            return self.evaluate_client(task, received, memory)
        except BaseException:
            self.bound = self.layout.bind(self.work.initial_module(), self._device)
            raise

    def train(self, task: Task, received: Payload, memory: Memory) -> Answer:
        """Drive the algorithm's client half to its reply, and bring that into the form in which it travels.

        The answer's tensors are on the CPU and may share the module's memory: they are valid until this trainer's next
        call.
        """
        memory, beside = apart(memory)
        received = opened(self.layout, received)
        answer = self._trained(for_training(task), received, memory)
        return travelling(self.work, self.layout, task, received, answer, beside)

    def _trained(self, task: Task, received: Payload, memory: Memory) -> Answer:
        bound, work = self.bound, self.work
        bound.load_buffers(received.buffers, received.integers)
        own, private = self._load_local(memory)
        learned = {name.removeprefix(LEARNER): value for name, value in memory.items() if name.startswith(LEARNER)}
        client = work.algorithm.client(moved(bound.device, received.vectors), own)
        fits: list[Fitted] = []
        try:
            ask = next(client)
            while True:
                if fits:
                    bound.renew()  # what the fit before handed out is the algorithm's to keep
                if isinstance(ask, Losses):
                    ask = client.send(self._losses(ask, task))
                    continue
                if ask.private:
                    shared = bound.buffers().clone(), bound.integers().clone()
                    bound.load_buffers(*private or (received.buffers, received.integers))
                fits.append(self._fit(ask, Context(task, work.seed, len(fits), learned)))
                if ask.private:
                    private = bound.buffers().clone(), bound.integers().clone()
                    bound.load_buffers(*shared)
                ask = client.send(fits[-1])
        except StopIteration as stop:
            reply: Reply = stop.value
        update = Update(
            task=task,
            payload=Payload(moved(CPU, reply.vectors), bound.buffers().to(CPU), bound.integers().to(CPU)),
            num_examples=float(reply.num_examples),
            group=int(reply.group),
            metrics=scalars(fits[0].metrics) if fits else {},
        )
        if fits:
            learned = {**learned, **fits[-1].memory}
        noted = {LEARNER + name: value for name, value in learned.items()}
        return Answer(update, moved(CPU, {**reply.memory, **private_memory(private), **self._local(), **noted}))

    def _fit(self, ask: Fit, context: Context) -> Fitted:
        bound = self.bound
        bound.load_params(ask.start)
        bound.start_training()
        seeds.seed_globals(context.key("training"))
        return self.work.learner.fit(bound, self.part(context.task.client), ask, context)

    def _losses(self, ask: Losses, task: Task) -> Tensor:
        bound, work, means = self.bound, self.work, []
        buffers, integers = bound.buffers().clone(), bound.integers().clone()
        for params in ask.models:
            bound.load_params(params)
            seeds.seed_globals(Context(task, work.seed).key("losses"))  # the same draws for every model, if it draws
            found = evaluate(bound, self.part(task.client), work.train_loss, Measures(), work.eval_batch_size)
            means.append(found.sums.means()["loss"])
        bound.load_buffers(buffers, integers)  # a model of the user's own may change them in evaluation too
        return torch.tensor(means, dtype=ask.models.dtype, device=ask.models.device)

    def evaluate_client(self, task: Task, received: Payload, memory: Memory) -> Evaluated:
        """Evaluate on a client's own held-out part, or on its training part where it holds none out: the received
        model, or the client's own where the algorithm gives it one.
        """
        bound, data, algorithm = self.bound, self.work.data, self.work.algorithm
        own, received = data.test(task.client), opened(self.layout, received)
        bound.load_buffers(received.buffers, received.integers)
        remembered, private = self._load_local(apart(memory)[0])
        if isinstance(algorithm, Personalised):
            client = algorithm.personal(moved(bound.device, received.vectors), remembered)
            try:
                ask = next(client)
                while True:
                    ask = client.send(self._losses(ask, task))
            except StopIteration as stop:
                bound.load_params(stop.value)
            if private:
                bound.load_buffers(*private)
        else:
            bound.load_params(received.vectors["params"])
        seeds.seed_globals(Context(task, self.work.seed).key("evaluate"))
        found = self._evaluate(data.train(task.client) if own is None else own)
        return Evaluated(task, float(found.sums.count), self.work.measures.metrics(found), found.rows)

    def evaluate_held_out(self, vectors: Vectors, round: int) -> dict[str, float]:
        """Return the metrics on the server's held-out data; of none, nothing. What clients keep for themselves is as
        it was at first.
        """
        if self.work.data.held_out is None:
            return {}
        self.bound.load(vectors)
        self.bound.load_local(self._first_local)
        try:
            return self._measured_held_out(self.work.data.held_out, round)
        finally:
            self.rest()

    def rest(self) -> None:
        """Between two uses, let the parameters of a large model take no memory: the server has them in its versions."""
        if self.layout.num_params * self.layout.dtype.itemsize > LARGE_BYTES:
            self.bound.put_away()

    def _measured_held_out(self, held_out: Examples, round: int) -> dict[str, float]:
        with seeds.preserved_globals():
            seeds.seed_globals(seeds.key(self.work.seed, round, 0, "", "evaluate"))
            return self.work.measures.metrics(self._evaluate(held_out))

    def _load_local(self, memory: Memory) -> tuple[Memory, tuple[Tensor, Tensor] | None]:
        """Load what the client keeps for itself; return the algorithm's part of its memory, and the buffers of its
        private model.
        """
        memory = moved(self.bound.device, {k: v for k, v in memory.items() if not k.startswith(LEARNER)})
        if self.layout.local_names:
            local = Vectors(*(memory[name] for name in LOCAL)) if LOCAL[0] in memory else self._first_local
            self.bound.load_local(local)
        own = {name: value for name, value in memory.items() if name not in LOCAL + PRIVATE}
        return own, private_buffers(memory)

    def first_local(self) -> Memory:
        """Return what a client keeps for itself before its first task, as part of its memory."""
        return local_memory(self._first_local) if self.layout.local_names else {}

    def _local(self) -> Memory:
        return local_memory(self.bound.local()) if self.layout.local_names else {}

    def _evaluate(self, examples: Examples) -> Measured:
        work = self.work
        return evaluate(self.bound, examples, work.loss, work.measures, work.eval_batch_size)


def travelling(
    work: Work, layout: Layout, task: Task, received: Payload, answer: Answer, beside: Memory
) -> Answer:  # fmt: skip
    """Return what came of a task in the form in which it travels; ``beside`` is what the client remembers for that."""
    uplink = work.uplink if task.kind == "train" else None
    if uplink is None:  # what a client shows to others is shown as it is
        payload = packed(layout, answer.update.payload)
        if payload is answer.update.payload and not beside:
            return answer
        return Answer(replace(answer.update, payload=payload), {**answer.memory, **kept(beside)})
    sent = coded(uplink, work.seed, task, received, answer.update.payload, beside)
    update = replace(answer.update, task=task, payload=sent.payload, silent=sent.silent, fresh=sent.fresh)
    return Answer(update, {**answer.memory, **sent.memory})


def run_or_describe(trainer: Trainer, task: Task, received: Payload, memory: Memory) -> Answer | Evaluated | str:
    """Run one task; where the client's own code raises, return the traceback as text.

    This is the border between us and code that we do not know, the one place where any exception becomes a value.
    """
    try:
        return trainer.run(task, received, memory)
    except Exception:
        return traceback.format_exc()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: their number changes sums, and a client gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lost(task: Task, trace: str) -> Lost:
    """Describe a client that failed for the last time; the last line of the traceback is the reason."""
    return Lost(task, f"client {task.client!r} failed {TRIES} times: {trace.strip().splitlines()[-1]}", trace)


def local_memory(local: Vectors) -> Memory:
    """Return what a client keeps for itself, as part of its memory."""
    return dict(zip(LOCAL, (local.params, local.buffers, local.integers), strict=True))


def private_buffers(memory: Memory) -> tuple[Tensor, Tensor] | None:
    """Return the buffers of a client's private model, float and integer, or None where it remembers none."""
    if not any(name in memory for name in PRIVATE):
        return None
    none, no_integers = torch.empty(0), torch.empty(0, dtype=torch.int64)  # some models have buffers of one kind
    return memory.get(PRIVATE[0], none), memory.get(PRIVATE[1], no_integers)


def private_memory(buffers: tuple[Tensor, Tensor] | None) -> Memory:
    """Return the buffers of a client's private model, as part of its memory."""
    return {name: value for name, value in zip(PRIVATE, buffers or (), strict=False) if value.numel()}


def moved(device: torch.device, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: vector.to(device) for name, vector in vectors.items()}
