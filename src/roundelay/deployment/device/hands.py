"""What does a device's tasks. Whoever talks to the server knows a ``Hands``, and nothing of models, data or scripts."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from roundelay import seeds
from roundelay.algorithms.protocol import Algorithm
from roundelay.client.exchange import Answered, Scalar, Site, task_frame
from roundelay.client.launch import Script, ScriptLearner
from roundelay.errors import RoundelayError, WireError
from roundelay.hosting.forkserver import context
from roundelay.hosting.process import ScriptProcess
from roundelay.hosting.talk import ScriptFailed, Watch
from roundelay.hosting.tasks import FAREWELL_S, PRELOAD, checked, folder_of, on_the_air, tried
from roundelay.layout.travel import opened
from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.stages.downlink import Downlink
from roundelay.stages.uplink import Uplink, apart, for_training
from roundelay.trainer import TRIES, Evaluated, Trainer, Work, lost, one_thread, run_or_describe

MANY = 2**16
"""More clients than any algorithm asks for; how many there are changes no vector's length."""


@dataclass(frozen=True, slots=True)
class Done:
    """A task's answer, whose own ``memory`` is empty, and beside it what the client would remember from then on, which
    never travels. An evaluation changes nothing: its ``memory`` is empty. Its ``metrics`` and ``num_examples``, as they
    are, are a simulated client's, to the bit.
    """

    answered: Answered
    memory: Memory


class CannotDo(RoundelayError, RuntimeError):
    """A task that this device's own code failed at, for good; ``traceback`` is "" where nothing was raised."""

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.reason, self.traceback = reason, traceback


class Hands(Protocol):
    def do(self, task: Task, received: Payload, memory: Memory) -> Done:
        """Do a task, in whatever thread it is called from, one task at a time. An empty ``memory`` is that of a client
        that has none yet. The tensors of what it returns are valid until the next call.

        Raises:
            CannotDo: it failed, and failed again; or it was interrupted.
        """

    def interrupt(self) -> None:
        """Make a ``do`` that is under way end soon with ``CannotDo``; called from another thread."""

    def close(self) -> None:
        """Give back processes and memory; harmless when called twice."""


class _Stop:
    """Whether what is under way is to end. What was asked for while nothing was under way concerns nobody."""

    def __init__(self) -> None:
        self._asked, self._lock, self._under_way = threading.Event(), threading.Lock(), False
        self.asked: Callable[[], bool] = self._asked.is_set

    @contextmanager
    def watched(self) -> Iterator[None]:
        with self._lock:
            self._asked.clear()
            self._under_way = True
        try:
            yield
        finally:
            with self._lock:
                self._under_way = False

    def ask(self) -> bool:
        """Return whether there is anything to end."""
        with self._lock:
            if self._under_way:
                self._asked.set()
            return self._under_way


class _Interrupted(BaseException):
    """No ``Exception``: a user's own code must not take it for a mistake of its own."""


class TrainerHands:
    """Trains with roundelay's own parts, to the bits of a simulated client. What interrupts it is seen when the model
    is next called.
    """

    def __init__(self, work: Work, site: Site) -> None:
        """``work.data`` holds the part of the client ``site.name``.

        Raises:
            LayoutError: the model here is not the one that the server trains; names the tensor.
        """
        self._stop, self._downlink = _Stop(), work.downlink
        with one_thread():
            make_model = partial(_interruptible, work.make_model, self._stop.asked)
            self._trainer = Trainer(replace(work, make_model=make_model))
            site.layout.require_same(self._trainer.layout, f"client {site.name!r}: the model that is built here")
            params = self._trainer.bound.params().clone()
            self._first = work.algorithm.first_memory(params)
        self._lengths, self._dtype = broadcast_lengths(work.algorithm, params, work.downlink), params.dtype
        self.examples = work.data.train(site.name)

    def do(self, task: Task, received: Payload, memory: Memory) -> Done:
        trace, received = "", _opened(self._downlink, task, received, self._lengths, self._dtype)
        with self._stop.watched(), one_thread():
            for _ in range(TRIES):
                try:
                    with seeds.preserved_globals():
                        outcome = run_or_describe(self._trainer, task, received, memory or self._first)
                except _Interrupted:
                    raise CannotDo("interrupted") from None
                if isinstance(outcome, Evaluated):
                    return Done(Answered(task.id, outcome.num_examples, True, outcome.metrics, rows=outcome.rows), {})
                if not isinstance(outcome, str):
                    update = outcome.update
                    answered = Answered(task.id, update.num_examples, True, update.metrics, update.payload,
                                        group=update.group, silent=update.silent, fresh=update.fresh)  # fmt: skip
                    return Done(answered, outcome.memory)
                trace = outcome
        raise _cannot(lost(task, trace))

    def interrupt(self) -> None:
        self._stop.ask()

    def close(self) -> None:
        """Nothing is held."""


class ScriptHands:
    """Lets a user's own script train, in a process that is started with the first task and kept for the next ones."""

    def __init__(
        self, script: ScriptLearner, site: Site, first_memory: Memory, allowed: Collection[str], folder: Path,
        on_scalar: Callable[[str, int, Scalar], None], *, uplink: Uplink | None = None,
        downlink: Downlink | None = None, lengths: Mapping[str, int] = {},
    ) -> None:  # fmt: skip
        """``allowed`` names algorithms beyond our own that may run beside the script; what it logs goes to
        ``on_scalar(client, round, scalar)``, in the thread of ``do``. It lives in a folder of its own below ``folder``.
        ``lengths`` are those of what is broadcast, where that comes encoded.
        """
        self._script, self._site, self._first, self._folder = script, site, first_memory, folder
        self._allowed, self._stop, self._lock = tuple(allowed), _Stop(), threading.Lock()
        self._watch = Watch(on_scalar, None, self._stop.asked)
        self._host: ScriptProcess | None = None
        self._uplink, self._downlink, self._lengths = uplink, downlink, lengths

    def do(self, task: Task, received: Payload, memory: Memory) -> Done:
        layout = self._site.layout
        received = opened(layout, _opened(self._downlink, task, received, self._lengths, layout.dtype))
        work, beside = apart(memory or self._first)
        frame = task_frame(for_training(task), received, work)

        def once(anew: bool) -> Answered:
            return checked(task, self._waiting(task.round, anew).work(frame))

        with self._stop.watched():
            outcome = tried(task, once, partial(self._end, 0.0), self._stop.asked)
            if isinstance(outcome, Lost):
                raise CannotDo("interrupted") if self._stop.asked() else _cannot(outcome)
        if task.kind == "evaluate":
            num_examples = max(1.0, outcome.num_examples)
            return Done(Answered(task.id, num_examples, outcome.weighted, outcome.metrics), {})
        outcome = on_the_air(self._uplink, layout, self._site.seed, task, received, outcome, beside)
        return Done(replace(outcome, memory={}), outcome.memory)

    def interrupt(self) -> None:
        with self._lock:
            if self._stop.ask() and self._host is not None:
                self._host.kill()

    def close(self) -> None:
        """Tell a script that waits that nothing is left to do, and let it come to its own end for a while."""
        self._end(FAREWELL_S)

    def _waiting(self, first_round: int, anew: bool) -> ScriptProcess:
        """Return where the script waits for a task."""
        if self._host is not None and (anew or self._host.ended()):
            self._end(FAREWELL_S)
        if self._host is None:
            script = Script(self._script.path, self._script.args, folder_of(self._folder, self._site.name))
            host = ScriptProcess(script, self._site, first_round, self._allowed, self._watch, context(PRELOAD))
            with self._lock:
                self._host = host
        if self._stop.asked():  # while the script was started, when there was none to end
            raise ScriptFailed("interrupted", final=True)
        return self._host

    def _end(self, farewell_s: float) -> None:
        with self._lock:
            host, self._host = self._host, None
        if host is not None:
            host.close(time.monotonic() + farewell_s)


def broadcast_lengths(algorithm: Algorithm, params: Tensor, downlink: Downlink | None) -> dict[str, int]:
    """Return how long the vectors are that every client receives, where they come encoded; ``params`` (D,) may hold any
    values.
    """
    if downlink is None:
        return {}
    return {name: vector.numel() for name, vector in algorithm.broadcast(algorithm.init(params, MANY)).items()}


def _opened(
    downlink: Downlink | None, task: Task, received: Payload, lengths: Mapping[str, int], dtype: torch.dtype
) -> Payload:
    """Return what came as a client knows it; what is to be evaluated comes as it is."""
    if downlink is None or task.kind == "evaluate":
        return received
    try:
        return downlink.opened(received, lengths, dtype)
    except WireError as error:
        raise CannotDo(f"what the server sent as a model cannot be decoded: {error}") from error


def _cannot(lost: Lost) -> CannotDo:
    return CannotDo(lost.reason, lost.traceback)


def _interruptible(make_model: Callable[[], nn.Module], asked: Callable[[], bool]) -> nn.Module:
    module = make_model()
    if isinstance(module, nn.Module):  # else whoever asked for it says so
        module.register_forward_pre_hook(_Check(asked))
    return module


class _Check:
    """Raises in a model that is called when it is to stop. A copy that a user makes of a model has nothing of it."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, module: nn.Module, arguments: Any) -> None:  # Any: what a user's model takes
        if self._asked():
            raise _Interrupted

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _never, ()


def _never() -> Callable[..., None]:
    return _nothing


def _nothing(module: nn.Module, arguments: Any) -> None: ...  # Any: see _Check
