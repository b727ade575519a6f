"""One script's part in a federation: it drives the algorithm's client half, whose fits the user's own loop answers.

``receive`` hands out the start that the algorithm asks for, ``send`` goes on with what the loop reached. All that the
script does wrong is told here, where its own line is in the traceback.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from roundelay import algorithms, metrics, seeds
from roundelay.algorithms.protocol import NUMBERS, Algorithm, Fit, Fitted, Losses, Personalised, Reply
from roundelay.channel import Channel
from roundelay.client.exchange import Answered, Scalar, Site, read_task
from roundelay.client.patch import Steps
from roundelay.client.remembered import Remembered, kept_state
from roundelay.components import build, foreign, namespace
from roundelay.errors import ChannelClosed, ClientError, ConfigError
from roundelay.layout import Scope, Vectors
from roundelay.learner import Context
from roundelay.messages import FLModel, ParamsType, Payload, Task
from roundelay.wire import Frame

STEPS = "NUM_STEPS_CURRENT_ROUND"


class Session:
    """What a script is connected to. ``state`` is the script's to change; see ``fl.state``. ``last_round`` is that of
    the last task, whether or not it was answered.
    """

    def __init__(self, channel: Channel, allowed: Collection[str]) -> None:
        """Greet the agent. ``allowed`` names algorithms beyond our own, "module:Name", that it may ask for: which code
        runs here is decided here.

        Raises:
            ClientError: it asks for another one.
        """
        self._channel = channel
        channel.send(Frame("hello", {}, {}))
        self.site = Site.read(channel.receive())
        self._algorithm = _algorithm(self.site.algorithm, allowed)
        self.state: dict[str, Any] = {}  # Any: tensors and numbers
        self.patched = WeakSet[torch.optim.Optimizer]()
        self.last_round = 1
        self._work: _Work | None = None
        self._ended, self._base_known = False, False

    @property
    def task(self) -> Task | None:
        """The task that waits for an answer."""
        return self._work.task if self._work else None

    @property
    def fit(self) -> tuple[Fit | None, Steps]:
        """The fit that the script is at, and the steps that it has taken, for ``patch``."""
        return (self._work.ask, self._work.steps) if self._work else (None, Steps())

    def is_running(self) -> bool:
        """Wait for the next model; return False when nothing is left to do."""
        if self._work is None:
            self._next_task()
        elif self._work.taken:
            raise self._work.wrong("was received, and nothing was sent back: call fl.send(fl.FLModel(params=...)) "
                                   "before the next fl.is_running() or fl.receive()")  # fmt: skip
        return not self._ended

    def receive(self) -> FLModel | None:
        """Return the model to work on, or None when nothing is left to do."""
        if not self.is_running():
            return None
        assert self._work is not None
        self._work.taken = True
        return self._work.model

    def send(self, model: FLModel) -> None:
        """Answer with what the script came to. See ``fl.send``."""
        work = self._work
        if work is None or not work.taken:
            raise ClientError(
                f"client {self.site.name!r}: fl.send() answers a model that fl.receive() gave, once; there is none to "
                "answer: was send called twice, or before receive?"
            )
        if not isinstance(model, FLModel):
            raise ClientError(f"client {self.site.name!r}: fl.send() takes an fl.FLModel, got {type(model).__name__}")
        if not self._base_known and isinstance(model.params, Mapping) and model.params_type is ParamsType.FULL:
            named = {name: torch.as_tensor(value) for name, value in model.params.items()}
            self.site.layout.require_frozen(named, f"client {self.site.name!r}: the model that this script sends")
            self._base_known = True
        answered = work.answer(model)
        if answered is not None:
            self._channel.send(answered.frame())
            self._work = None

    def log(self, scalar: Scalar) -> None:
        self._channel.send(scalar.frame())

    def fail(self, trace: str) -> None:
        self._channel.send(Frame("failed", {"traceback": trace}, {}))

    def leave(self) -> None:
        self._ended, self._work = True, None
        self._channel.close()

    def _next_task(self) -> None:
        if self._ended:
            return
        try:
            self._channel.send(Frame("waiting", {}, {}))
            frame = self._channel.receive()
        except ChannelClosed:
            frame = Frame("end", {}, {})
        if frame.kind == "end":
            self._ended = True
            return
        task, payload, memory = read_task(frame)
        remembered = Remembered.read({name: value.clone() for name, value in memory.items()})
        self.state.clear()
        self.state.update(remembered.state)
        self._work = _Work(self.site, self._algorithm, task, payload, remembered, self.state)
        self.last_round = task.round


class _Work:
    """One task: the algorithm's client half, where it stands, and the model that the script works on.

    ``taken`` says whether the script has received that model; ``ask`` is the fit that it answers, ``steps`` what the
    patched optimizers did for it.
    """

    def __init__(
        self, site: Site, algorithm: Algorithm, task: Task, payload: Payload, remembered: Remembered,
        state: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.task, self._site, self._layout, self._algorithm = task, site, site.layout, algorithm
        self._remembered, self._state, self._local = remembered, state, remembered.local
        self._private = remembered.private
        self._buffers = self._received = payload.buffers.clone(), payload.integers.clone()
        self._first: Fitted | None = None
        self._num_fits = 0
        received = {name: vector.clone() for name, vector in payload.vectors.items()}
        if task.kind == "evaluate":
            self._hand_out(Fit(self._evaluated(received)))
        else:
            self._half = algorithm.client(received, remembered.algorithms)
            self._hand_out(next(self._half))

    def answer(self, model: FLModel) -> Answered | None:
        """Take what the script came to; return the answer, or None where the algorithm asks for another fit."""
        reported = metrics.scalars(model.metrics)
        weighted = model.num_examples is not None
        weight = metrics.scalar("num_examples", model.num_examples) if weighted else 1.0
        if self.task.kind == "evaluate":
            if not reported:
                raise self.wrong("is to be evaluated (fl.is_evaluate()): send fl.FLModel(metrics={...})")
            return Answered(self.task.id, weight, weighted, reported)
        state = kept_state(self._state, self._site.name)  # refused while the half can still be answered
        came = self._came_to(model)
        fitted = self._fitted(came, weight, reported, model.meta)
        if self.ask.private:
            self._private = came.buffers, came.integers
        else:
            self._buffers = came.buffers, came.integers
        self._first = self._first or fitted
        self._num_fits += 1
        try:
            self._hand_out(self._half.send(fitted))
            return None
        except StopIteration as stop:
            reply: Reply = stop.value
        memory = Remembered(reply.memory, self._local, self._private, self._state).memory(state)
        return Answered(self.task.id, float(reply.num_examples), weighted, self._first.metrics,
                        Payload(reply.vectors, *self._buffers), memory, int(reply.group))  # fmt: skip

    def wrong(self, what: str) -> ClientError:
        return ClientError(f"client {self._site.name!r}: the model of round {self.task.round} {what}")

    def _evaluated(self, received: Mapping[str, Tensor]) -> Tensor:
        """Return the parameters to evaluate: those received, or the client's own where the algorithm gives it some."""
        if not isinstance(self._algorithm, Personalised):
            return received["params"]
        half = self._algorithm.personal(received, self._remembered.algorithms)
        try:
            self._hand_out(next(half))  # asks for losses, which is refused
        except StopIteration as stop:
            params: Tensor = stop.value
        if self._private is not None:
            self._buffers = self._private
        return params

    def _hand_out(self, ask: Fit | Losses) -> None:
        """Make the model that the script receives; from here on its draws are those of this fit."""
        if isinstance(ask, Losses):
            raise ConfigError(
                f"{type(self._algorithm).__name__} asks for the losses of models, which a script cannot give"
            )
        buffers, integers = (self._private or self._received) if ask.private else self._buffers
        self.ask, self._start = ask, Vectors(ask.start, buffers, integers)
        params = self._layout.unflatten(self._start)
        if self._local is not None:
            params |= self._layout.unflatten(self._local, Scope.LOCAL)
        meta = {"submit_model_name": "best_model"} if self.task.kind == "submit" else {}
        self.model = FLModel(params, meta=meta, current_round=self.task.round - 1, total_rounds=self._site.num_rounds)
        self.taken, self.steps = False, Steps()
        purpose = "evaluate" if self.task.kind == "evaluate" else "training"
        seeds.seed_globals(Context(self.task, self._site.seed, self._num_fits).key(purpose))

    def _came_to(self, model: FLModel) -> Vectors:
        """Return what is shared of the script's tensors as vectors; what stays here is kept."""
        if model.params is None:
            raise self.wrong("is to be trained: send fl.FLModel(params=net.state_dict())")
        if not isinstance(model.params, Mapping):
            raise self.wrong(f"was answered with params that are a {type(model.params).__name__}; expected a state "
                             "dict: params=net.state_dict()")  # fmt: skip
        named = {name: torch.as_tensor(value) for name, value in model.params.items()}
        difference = model.params_type is ParamsType.DIFF
        if difference:
            assert self.model.params is not None
            named = {name: torch.zeros_like(value) for name, value in self.model.params.items()} | named
        came = self._layout.flatten(named)
        if self._local is not None:
            local = self._layout.flatten(named, Scope.LOCAL)
            self._local = _sum(self._local, local) if difference else local
        return _sum(self._start, came) if difference else came

    def _fitted(
        self, came: Vectors, weight: float, reported: Mapping[str, float], meta: Mapping[str, object]
    ) -> Fitted:
        ask, steps, algorithm = self.ask, self.steps, type(self._algorithm).__name__
        if self.task.kind == "submit":  # a model that the script had: nobody looks at more than its parameters
            return Fitted(came.params, weight, 1.0, 1.0, 1.0, reported)
        if ask.correct is not None and not steps.num_steps:
            raise self.wrong(
                f"is to be trained by {algorithm}, which corrects every gradient: call fl.patch(optimizer) once, after "
                "the optimizer is made, and take steps with it"
            )
        told = metrics.scalar(STEPS, meta[STEPS]) if STEPS in meta else math.nan
        numbers = {
            "num_steps": told if math.isfinite(told) else steps.num_steps or math.nan,
            "lr_sum": steps.lr_sum,
            "a_norm": steps.a_norm(ask.pull) if steps.num_steps else told,  # of plain SGD, for want of better
        }
        for name in sorted(ask.needs):
            if not math.isfinite(numbers[name]):
                raise self.wrong(
                    f"is to be trained by {algorithm}, which needs {name} ({NUMBERS[name]}): call fl.patch(optimizer) "
                    f"with a plain torch.optim.SGD, or send meta={{{STEPS!r}: n}} where a number of steps will do"
                )
        return Fitted(came.params, weight, numbers["num_steps"], numbers["lr_sum"], numbers["a_norm"], metrics=reported)


def _algorithm(table: Mapping[str, Any], allowed: Collection[str]) -> Algorithm:  # Any: what TOML can hold
    for where, name in foreign(table, "algorithm"):
        if name not in allowed:
            raise ClientError(f"the server asks for the {where} {name!r}, which is not one of roundelay's; whoever "
                              f"starts this script must allow it; allowed are {sorted(allowed)}")  # fmt: skip
    algorithm: Algorithm = build(table, namespace(algorithms), "algorithm")
    return algorithm


def _sum(start: Vectors, step: Vectors) -> Vectors:
    return Vectors(start.params + step.params, start.buffers + step.buffers, start.integers + step.integers)
