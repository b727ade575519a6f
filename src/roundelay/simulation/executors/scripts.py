"""Clients that are scripts: each runs a user's own file, beside its own data, and is given its tasks one by one.

A client's script is started with its first task and kept for the next ones; of more than ``keep_alive`` clients, the
one whose last task is the longest ago is ended. Who that is follows from the order of the tasks, never from the clock
or from how many train at once: a script that keeps something in its variables finds it, or not, in every run alike.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from roundelay.client.exchange import Answered, Scalar, Site, task_frame
from roundelay.client.launch import Script, ScriptLearner
from roundelay.components import describe, foreign
from roundelay.errors import ConfigError
from roundelay.hosting.forkserver import context
from roundelay.hosting.process import ScriptProcess
from roundelay.hosting.talk import Host, ScriptFailed, Watch
from roundelay.hosting.tasks import FAREWELL_S, PRELOAD, checked, folder_of, on_the_air, tried
from roundelay.hosting.thread import ScriptThread
from roundelay.layout.travel import opened
from roundelay.messages import Lost, Memory, Payload, Task, Update
from roundelay.simulation.executors.protocol import Result
from roundelay.stages.uplink import apart, for_training
from roundelay.trainer import Answer, Evaluated, Trainer, Work

log = logging.getLogger(__name__)

OPTIMISER = "torch._dynamo"
"""What torch imports, for a second or more, when a process makes its first optimiser."""

HURRIED_S = 1.0
"""How long scripts may go on when the run was interrupted."""

FEW = 2
"""With so few clients each may import it for itself, if it needs it; for more, the forkserver does it once."""


@dataclass(frozen=True, slots=True)
class Sites:
    """What scripts are told beside their tasks, and where they live: each client in a folder of its own below
    ``folder``. ``partition`` gives a client's part of the data.
    """

    job_id: str
    num_rounds: int
    folder: Path
    partition: Callable[[str], Mapping[str, Any]]  # Any: what JSON holds
    on_scalar: Callable[[str, int, Scalar], None]


@dataclass(frozen=True, slots=True)
class _Order:
    """``fresh`` asks for a script that is started anew."""

    task: Task
    received: Payload
    memory: Memory
    fresh: bool


@dataclass(slots=True)
class _Client:
    """A client's script, where one is kept; ``pending`` counts tasks that were submitted and are not done."""

    busy: threading.Lock = field(default_factory=threading.Lock)
    host: Host | None = None
    pending: int = 0


class Scripts:
    def __init__(
        self, work: Work, server: Trainer, sites: Sites, *, threads: bool, max_concurrent: int, keep_alive: int,
        timeout_s: float | None,
    ) -> None:  # fmt: skip
        """With ``threads``, scripts run in threads of this process, one at a time, when a result is asked for."""
        assert isinstance(work.learner, ScriptLearner)
        self._work, self._sites, self._learner, self._layout = work, sites, work.learner, server.layout
        self._algorithm: Mapping[str, Any] = describe(work.algorithm)
        self._allowed = tuple(name for _, name in foreign(self._algorithm, "algorithm"))  # our own job asks for them
        self._first_local = server.first_local()
        self._keep_alive = keep_alive
        self._interrupted = threading.Event()
        self._watch = Watch(sites.on_scalar, timeout_s, self._interrupted.is_set)
        preload = PRELOAD if len(work.data.clients) <= FEW else (*PRELOAD, OPTIMISER)
        self._context = None if threads else context(preload)
        self._pool = None if threads else ThreadPoolExecutor(max_concurrent, thread_name_prefix="roundelay-agent")
        self._waiting: dict[int, tuple[Task, Callable[[], Result], Callable[[], bool]]] = {}
        self._kept: OrderedDict[str, None] = OrderedDict()  # clients whose scripts are kept, by their last task
        self._lock = threading.Lock()  # of what follows, which the agents share with the run
        self._clients: defaultdict[str, _Client] = defaultdict(_Client)
        self._cancelled: set[int] = set()
        self._weighted: dict[bool, str] = {}  # a client that told its number of examples, and one that did not
        # in a thread, somebody may stand at a breakpoint
        self._farewell_s = math.inf if threads else min(FAREWELL_S, timeout_s or FAREWELL_S)

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        received = opened(self._layout, received)
        for task in tasks:
            memory = {**self._first_local, **memories.get(task.client, {})}
            order = _Order(task, received, memory, self._keep(task.client))
            if self._pool is None:
                self._waiting[task.id] = (task, partial(self._do, order), lambda: True)
            else:
                future = self._pool.submit(self._do, order)
                self._waiting[task.id] = (task, future.result, future.cancel)

    def result(self, task_id: int) -> Result:
        task, wait, _ = self._waiting[task_id]
        try:
            outcome = wait()
        except CancelledError:
            outcome = Lost(task, "interrupted")
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        return outcome

    def release(self, task_id: int) -> None:
        self._waiting.pop(task_id, None)

    def cancel(self, task_ids: Sequence[int]) -> None:
        """Drop tasks, and the scripts that may have begun with them: whether they had is a matter of real time."""
        for task_id in task_ids:
            if task_id not in self._waiting:
                continue
            task, _, cancel = self._waiting.pop(task_id)
            self._kept.pop(task.client, None)
            with self._lock:
                self._cancelled.add(task_id)
            if cancel():
                self._done(task.client)
            else:
                self._kill(task.client)

    def interrupt(self) -> None:
        self._interrupted.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the scripts: those at work at once; those that wait for a task are told that there is none."""
        farewell_s = HURRIED_S if self._interrupted.is_set() else self._farewell_s
        self._interrupted.set()
        for client in list(self._clients):
            if self._clients[client].pending:
                self._kill(client)
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        until = time.monotonic() + farewell_s
        for entry in self._clients.values():
            if entry.host is not None:
                entry.host.dismiss()  # all of them before we wait for one: they end side by side
        for client in list(self._clients):
            self._end(client, until)

    @property
    def process_ids(self) -> dict[str, int]:
        """The processes of the clients whose scripts are kept."""
        with self._lock:
            hosts = {client: entry.host for client, entry in self._clients.items()}
        return {client: host.process_id for client, host in hosts.items() if isinstance(host, ScriptProcess)}

    def _keep(self, client: str) -> bool:
        """Note a client's next task; return whether its script must be started for it."""
        fresh = client not in self._kept
        self._kept[client] = None
        self._kept.move_to_end(client)
        with self._lock:
            self._clients[client].pending += 1
        if len(self._kept) > self._keep_alive:
            oldest, _ = self._kept.popitem(last=False)
            with self._lock:
                idle = not self._clients[oldest].pending
            if idle:  # else its agent ends it, after the tasks that it has
                self._end(oldest)
        return fresh

    # ---- the agents: one client's task in a thread of its own -------------------------------------------------------

    def _do(self, order: _Order) -> Result:
        with self._clients[order.task.client].busy:
            try:
                return self._try(order)
            finally:
                self._done(order.task.client)

    def _try(self, order: _Order) -> Result:
        task = order.task

        def once(anew: bool) -> Answer | Evaluated:
            host = self._host(task, order.fresh or anew)
            if self._was_cancelled(task):  # while the script was started, when there was none to end
                raise ScriptFailed("cancelled", final=True)
            memory, beside = apart(order.memory)
            answered = checked(task, host.work(task_frame(for_training(task), order.received, memory)))
            uplink, seed = self._work.uplink, self._work.seed
            return self._result(task, on_the_air(uplink, self._layout, seed, task, order.received, answered, beside))

        return tried(task, once, partial(self._end, task.client), partial(self._was_cancelled, task))

    def _was_cancelled(self, task: Task) -> bool:
        with self._lock:
            return task.id in self._cancelled

    def _result(self, task: Task, answered: Answered) -> Answer | Evaluated:
        if task.kind == "evaluate":
            return Evaluated(task, max(1.0, answered.num_examples), answered.metrics)
        assert answered.payload is not None
        if task.kind == "train":
            with self._lock:
                first_without = not answered.weighted and False not in self._weighted
                self._weighted.setdefault(answered.weighted, task.client)
                with_number, without = self._weighted.get(True), self._weighted.get(False)
            if with_number is not None and without is not None:
                raise ConfigError(
                    f"client {with_number!r} sends num_examples and client {without!r} does not: they cannot be "
                    "weighed together; send it from every client, or from none, and all weigh the same"
                )
            if first_without:
                log.warning("the scripts send no num_examples: all clients weigh the same in the average")
        update = Update(task, answered.payload, answered.num_examples, answered.group, answered.metrics,
                        answered.silent, answered.fresh)  # fmt: skip
        return Answer(update, answered.memory)

    def _host(self, task: Task, fresh: bool) -> Host:
        """Return where the client's script waits for a task."""
        client = task.client
        entry = self._clients[client]
        if entry.host is not None and (fresh or entry.host.ended()):
            self._end(client)
        if entry.host is None:
            script = Script(self._learner.path, self._learner.args, folder_of(self._sites.folder, client))
            site = Site(
                client, self._sites.job_id, self._work.seed, self._sites.num_rounds, self._algorithm, self._layout,
                {"partition": self._sites.partition(client)},
            )  # fmt: skip
            if self._context is None:
                host: Host = ScriptThread(script, site, task.round, self._allowed, self._watch)
            else:
                host = ScriptProcess(script, site, task.round, self._allowed, self._watch, self._context)
            with self._lock:
                entry.host = host
        assert entry.host is not None
        return entry.host

    def _done(self, client: str) -> None:
        """Note that a task is done with; end the script where it is no longer kept."""
        with self._lock:
            self._clients[client].pending -= 1
            idle = not self._clients[client].pending
        if idle and client not in self._kept:
            self._end(client)

    def _end(self, client: str, until: float | None = None) -> None:
        with self._lock:
            host, self._clients[client].host = self._clients[client].host, None
        if host is not None:
            host.close(time.monotonic() + self._farewell_s if until is None else until)

    def _kill(self, client: str) -> None:
        """End a script that is at work; its agent notices."""
        with self._lock:
            host = self._clients[client].host
        if host is not None:
            host.kill()
