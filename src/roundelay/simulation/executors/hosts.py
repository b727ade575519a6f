"""Where a client's script runs: in a process of its own, or in a thread of this one. Both are spoken to alike."""

import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Protocol

import torch

from roundelay import client as fl
from roundelay import seeds
from roundelay.channel import Channel, Listener, pair
from roundelay.client.exchange import Answered, Scalar, Site
from roundelay.client.launch import Script, Surroundings, run
from roundelay.errors import ChannelClosed, WireError
from roundelay.simulation.executors.forkserver import Context, die_with_parent, main_hidden
from roundelay.wire import Frame

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often a silent script is looked after: whether its process lives, whether its time is up."""

PATIENCE_S = 60.0
"""How often we say for whom we wait."""

OUTPUT_BYTES = 10 * 2**20
"""How much of what a script prints is kept in its file."""

TAIL_BYTES = 4096
"""How much of it goes into the message when the script fails."""


class ScriptFailed(Exception):
    """A script raised, ended, hung or said what it must not; the message is for the user, a traceback where it
    ``raised``. ``final`` asks for no second try.
    """

    def __init__(self, message: str, *, final: bool = False, raised: bool = False) -> None:
        super().__init__(message)
        self.final, self.raised = final, raised


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks after a script: where its numbers go (with client and round), how long it may take, and whether the run
    was interrupted.
    """

    on_scalar: Callable[[str, int, Scalar], None]
    timeout_s: float | None
    interrupted: Callable[[], bool]


class Host(Protocol):
    def work(self, task: Frame) -> Answered:
        """Let the script do one task. The answer's tensors are valid until the next call.

        Raises:
            ScriptFailed: it did not; the host is of no more use.
        """

    def ended(self) -> bool:
        """Tell whether the script came to its end after its last answer, waiting until that is clear."""

    def kill(self) -> None:
        """End a script that is at work, from another thread than the one that waits for it."""

    def close(self) -> None:
        """End the script, and give back what it holds."""


class Talk:
    """The agent's side of one conversation."""

    def __init__(self, channel: Channel, site: Site, watch: Watch, gone: Callable[[], str | None]) -> None:
        """``gone()`` tells how the script's process ended, or None while it lives."""
        self._channel, self._site, self._watch, self._gone = channel, site, watch, gone
        self._stage, self._round = "was started", 1
        self.waits = False

    def greet(self, until: float) -> None:
        self._next({"hello"}, until, "called fl.init()")
        self._channel.send(self._site.frame())
        self._stage = "called fl.init()"

    def ready(self, until: float) -> None:
        """Wait until the script asks for something to do."""
        if not self.waits:
            self._next({"waiting"}, until, "called fl.is_running() or fl.receive()")
            self.waits = True

    def work(self, task: Frame, until: float) -> Answered:
        self.waits = False
        self._round = task.fields["round"]
        self._stage = f"was given the model of round {self._round}"
        try:
            self._channel.send(task)
        except ChannelClosed:
            raise ScriptFailed(self._ended_instead("sent an answer (fl.send)")) from None
        answered = Answered.read(self._next({"answer"}, until, "called fl.send(fl.FLModel(params=...))"))
        self._stage = f"answered in round {self._round}"
        if answered.task_id != task.fields["id"]:
            raise ScriptFailed(f"client {self._site.name!r} answered task {answered.task_id}, not {task.fields['id']}")
        return answered

    def say_end(self) -> None:
        try:
            self._channel.send(Frame("end", {}, {}))
        except (ChannelClosed, OSError):
            return  # it has ended before

    def _next(self, wanted: Set[str], until: float, expected: str) -> Frame:
        """Return the next frame of a kind that is wanted; ``until`` is a moment of ``time.monotonic``."""
        remind = time.monotonic() + PATIENCE_S
        while True:
            try:
                frame = self._channel.receive(timeout_s=POLL_S)
            except TimeoutError:
                self._look_after(until)
                if time.monotonic() > remind:
                    log.warning("still waiting for client %r, which %s", self._site.name, self._stage)
                    remind += PATIENCE_S
                continue
            except ChannelClosed:
                raise ScriptFailed(self._ended_instead(expected)) from None
            except WireError as error:
                raise ScriptFailed(f"client {self._site.name!r} sent what is no message: {error}") from error
            if frame.kind == "scalar":
                self._watch.on_scalar(self._site.name, self._round, Scalar.read(frame))
            elif frame.kind == "failed":
                raise ScriptFailed(str(frame.fields.get("traceback")), raised=True)
            elif frame.kind in wanted:
                return frame
            else:
                raise ScriptFailed(f"client {self._site.name!r} {self._stage} and said {frame.kind!r}; expected that "
                                   f"it {expected}")  # fmt: skip

    def _look_after(self, until: float) -> None:
        if self._watch.interrupted():
            raise ScriptFailed("interrupted", final=True)
        how = self._gone()
        if how is not None:
            raise ScriptFailed(self._ended_instead("called fl.send(fl.FLModel(params=...))"))
        if time.monotonic() > until:
            raise ScriptFailed(
                f"client {self._site.name!r} {self._stage} and did not go on within simulation.task_timeout_s = "
                f"{self._watch.timeout_s:g} s; its process was ended", final=True,
            )  # fmt: skip

    def _ended_instead(self, expected: str) -> str:
        how = self._gone() or "its connection is closed"
        return f"client {self._site.name!r} {self._stage} and ended ({how}); expected that it {expected}"


class ScriptProcess:
    def __init__(self, script: Script, site: Site, allowed: tuple[str, ...], watch: Watch, context: Context) -> None:
        """Start the script.

        Raises:
            ScriptFailed: it ended, or did not call ``fl.init()`` in time.
        """
        self._watch, self._name = watch, site.name
        self._output = Output(script.folder / "output.log")
        listener = Listener()
        self._process = context.Process(
            target=_child, args=(listener.address, allowed, script, seeds.key(site.seed, 0, 0, site.name, "script"),
                                 self._output.theirs), name=f"roundelay-{site.name}", daemon=True,
        )  # fmt: skip
        with main_hidden():
            self._process.start()
        self._output.begin()
        self._channel: Channel | None = None
        try:
            self._talk = self._connected(listener, site)
        except BaseException:
            self.close()
            raise
        finally:
            listener.close()

    def _connected(self, listener: Listener, site: Site) -> Talk:
        until = self._until()
        while True:
            ready = multiprocessing.connection.wait([listener.fileno(), self._process.sentinel], timeout=POLL_S)
            if listener.fileno() in ready:
                self._channel = listener.accept()
                talk = Talk(self._channel, site, self._watch, self._gone)
                talk.greet(until)
                return talk
            if self._process.sentinel in ready:
                raise ScriptFailed(f"client {site.name!r} was started and ended ({self._gone()}); expected that it "
                                   "called fl.init()")  # fmt: skip
            if self._watch.interrupted() or time.monotonic() > until:
                raise ScriptFailed(f"client {site.name!r} was started and did not call fl.init() within "
                                   f"simulation.task_timeout_s = {self._watch.timeout_s} s", final=True)  # fmt: skip

    def ended(self) -> bool:
        try:
            self._talk.ready(self._until())
        except ScriptFailed as failure:
            if failure.raised:
                log.warning("client %r failed after it had answered\n%s", self._name, failure)
            return True
        return False

    def work(self, task: Frame) -> Answered:
        until = self._until()
        self._talk.ready(until)
        return self._talk.work(task, until)

    def close(self) -> None:
        if self._channel is not None:
            if self._talk_waits:
                self._talk.say_end()
                self._process.join(timeout=POLL_S)
            self._channel.close()
        self.kill()
        self._process.join()
        self._output.close()

    def kill(self) -> None:
        if self._process.is_alive():
            try:
                os.killpg(self.process_id, signal.SIGKILL)
            except ProcessLookupError:  # it leads no group yet, or no more
                self._process.kill()

    @property
    def process_id(self) -> int:
        pid: int | None = self._process.pid
        assert pid is not None
        return pid

    @property
    def _talk_waits(self) -> bool:
        return getattr(self, "_talk", None) is not None and self._talk.waits

    def _until(self) -> float:
        return time.monotonic() + (self._watch.timeout_s or float("inf"))

    def _gone(self) -> str | None:
        if self._process.is_alive():
            self._process.join(timeout=0.05)
        code = self._process.exitcode
        if code is None:
            return None
        how = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        tail = self._output.tail()
        return f"{how}, having printed:\n{tail}\n" if tail else how


def _child(address: str, allowed: tuple[str, ...], script: Script, seed: int, output: Connection) -> None:
    multiprocessing.current_process().daemon = False  # the script may have children: the workers of a DataLoader
    os.setsid()  # Ctrl+C goes to the whole terminal; the simulator tells us when to stop, and then our children too
    threading.Thread(target=die_with_parent, args=(True,), daemon=True).start()
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - the forkserver's own may be closed
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    os.environ[fl.ADDRESS], os.environ[fl.ALLOWED] = address, ",".join(allowed)
    surroundings = Surroundings(script)
    with surroundings.entered():
        seeds.seed_globals(seed)
        failure = run(script, surroundings)
        if failure:
            print(failure, file=sys.stderr)
            fl.report_failure(failure)
            sys.stdout.flush()
            os._exit(1)  # threads that the script left must not keep us


class ScriptThread:
    """A script in a thread of this process, where a breakpoint stops in it. It runs only while it has a task."""

    def __init__(self, script: Script, site: Site, allowed: tuple[str, ...], watch: Watch) -> None:
        self._ours, theirs = pair()
        self._surroundings = Surroundings(script)
        self._over = False
        self._talk = Talk(self._ours, site, watch, lambda: "its thread ended" if self._over else None)
        self._seed = seeds.key(site.seed, 0, 0, site.name, "script")
        thread = threading.Thread(
            target=self._run, args=(theirs, allowed, script), name=f"roundelay-{site.name}", daemon=True
        )
        self._name = site.name
        self._failure = ""
        with self._surroundings.entered(), seeds.preserved_globals():
            seeds.seed_globals(self._seed)
            thread.start()
            self._talk.greet(float("inf"))
            self._talk.ready(float("inf"))

    def _run(self, theirs: Channel, allowed: tuple[str, ...], script: Script) -> None:
        torch.set_num_threads(1)
        fl.attach(theirs, allowed)
        failure = run(script, self._surroundings)
        self._over = True
        if failure:
            theirs.send(Frame("failed", {"traceback": failure}, {}))
        theirs.close()

    def ended(self) -> bool:
        return not self._talk.waits

    def kill(self) -> None:
        """Nothing ends a thread from outside; the one that waits for it sees that the run was interrupted."""

    def work(self, task: Frame) -> Answered:
        with self._surroundings.entered(), seeds.preserved_globals(), _quick_turns():
            answered = self._talk.work(task, float("inf"))
            try:  # what it does after its answer is part of its turn
                self._talk.ready(float("inf"))
            except ScriptFailed as failure:
                if failure.raised:
                    log.warning("client %r failed after it had answered\n%s", self._name, failure)
            return answered

    def close(self) -> None:
        if self._talk.waits:
            self._talk.say_end()
        self._ours.close()


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let threads that wait for each other take turns at once: Python would let them wait for milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


class Output:
    """What a script prints: its first bytes in a file, its last ones at hand, the rest dropped."""

    def __init__(self, path: Path) -> None:
        self._ours, self.theirs = multiprocessing.connection.Pipe(duplex=False)
        self._file: IO[bytes] = path.open("ab")
        self._tail: deque[bytes] = deque(maxlen=TAIL_BYTES // 256)
        self._thread = threading.Thread(target=self._drain, daemon=True)

    def begin(self) -> None:
        """Read, now that the other end is the process's."""
        self.theirs.close()
        self._thread.start()

    def tail(self) -> str:
        return b"".join(self._tail)[-TAIL_BYTES:].decode(errors="replace").strip()

    def close(self) -> None:
        self._thread.join(timeout=POLL_S)  # a grandchild may hold the pipe open
        self._ours.close()

    def _drain(self) -> None:
        left = OUTPUT_BYTES - self._file.tell()
        with self._file:
            while True:
                try:
                    chunk = os.read(self._ours.fileno(), 65536)
                except OSError:
                    return
                if not chunk:
                    return
                self._tail.append(chunk[-TAIL_BYTES:])
                if left > 0:
                    self._file.write(chunk[:left])
                    self._file.flush()
                    left -= len(chunk)
                    if left <= 0:
                        self._file.write(b"\n[what was printed beyond this is dropped]\n")
