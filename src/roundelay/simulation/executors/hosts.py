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
from contextlib import contextmanager, suppress
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
from roundelay.simulation.executors.forkserver import CHILDREN, Context, die_with_parent, main_hidden
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
    ``raised``. ``final`` asks for no second try. ``reason`` is the line of the message that says what happened.
    """

    def __init__(self, message: str, *, final: bool = False, raised: bool = False) -> None:
        super().__init__(message)
        self.final, self.raised = final, raised
        self.reason = (message.strip().splitlines() or [""])[-1 if raised else 0]


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

    def dismiss(self) -> None:
        """Say that nothing is left to do, where a script can take note beside others."""

    def close(self, until: float) -> None:
        """End the script, and give back what it holds. One without a task may come to its own end, up to a moment of
        ``time.monotonic``.
        """


class Talk:
    """The agent's side of one conversation. ``at_rest``: the script has no task; ``waits``: it asks for one."""

    def __init__(
        self, channel: Channel, site: Site, first_round: int, watch: Watch, gone: Callable[[], str | None]
    ) -> None:
        """``gone()`` tells how the script's process ended, and below what it printed last, or None while it lives."""
        self._channel, self._site, self._watch, self._gone = channel, site, watch, gone
        self._stage, self._round = "was started", first_round
        self._dismissed = False
        self.waits, self.at_rest = False, False

    def greet(self, until: float) -> None:
        self._next({"hello"}, until, "called fl.init()")
        self._stage = "called fl.init()"
        self._say(self._site.frame(), "called fl.is_running() or fl.receive()")

    def ready(self, until: float) -> None:
        """Wait until the script asks for something to do."""
        if not self.waits:
            self.at_rest = False
            self._next({"waiting"}, until, "called fl.is_running() or fl.receive()")
            self.waits = self.at_rest = True

    def work(self, task: Frame, until: float) -> Answered:
        self.waits = self.at_rest = False
        self._round = task.fields["round"]
        self._stage = f"was given the model of round {self._round}"
        expected = "called fl.send(fl.FLModel(params=...))"
        self._say(task, expected)
        try:
            answered = Answered.read(self._next({"answer"}, until, expected))
        except WireError as error:
            raise ScriptFailed(f"client {self._site.name!r} sent what is no answer: {error}") from error
        self._stage = f"answered in round {self._round}"
        if answered.task_id != task.fields["id"]:
            raise ScriptFailed(f"client {self._site.name!r} answered task {answered.task_id}, not {task.fields['id']}")
        self.at_rest = True
        return answered

    def _say(self, frame: Frame, expected: str) -> None:
        try:
            self._channel.send(frame)
        except ChannelClosed:
            raise ScriptFailed(_ended(self._site.name, self._stage, self._gone(), expected)) from None

    def dismiss(self) -> None:
        """Say that nothing is left to do; a script that is still busy with itself reads it when it asks."""
        if self.at_rest and not self._dismissed:
            self._dismissed = True
            with suppress(ChannelClosed, OSError):  # it has ended before
                self._channel.send(Frame("end", {}, {}))

    def see_out(self, until: float) -> None:
        """Let a script that has no task come to its end, and take in what it still says."""
        self.dismiss()
        try:
            while time.monotonic() < until:
                with suppress(TimeoutError):
                    frame = self._channel.receive(timeout_s=min(POLL_S, max(0.0, until - time.monotonic())))
                    if frame.kind == "scalar":
                        self._watch.on_scalar(self._site.name, self._round, Scalar.read(frame))
                    elif frame.kind == "failed":
                        log.warning("client %r failed after its last answer\n%s",
                                    self._site.name, frame.fields.get("traceback"))  # fmt: skip
                    continue
                if self._gone() is not None:
                    return
            log.warning("client %r was told that nothing is left to do and goes on; it is ended", self._site.name)
        except (ChannelClosed, WireError):
            return

    def _next(self, wanted: Set[str], until: float, expected: str) -> Frame:
        """Return the next frame of a kind that is wanted; ``until`` is a moment of ``time.monotonic``."""
        remind, gone = time.monotonic() + PATIENCE_S, None
        while True:
            self._check_time(until)  # each time: a script that hangs may talk all the while
            try:
                left = max(0.0, until - time.monotonic())
                frame = self._channel.receive(timeout_s=0.0 if gone is not None else min(POLL_S, left))
                if frame.kind == "scalar":
                    self._watch.on_scalar(self._site.name, self._round, Scalar.read(frame))
                    continue
            except TimeoutError:
                if gone is not None:
                    raise ScriptFailed(_ended(self._site.name, self._stage, gone, expected)) from None
                gone = self._gone()  # what it said before it went is still to be read
                if time.monotonic() > remind:
                    log.warning("still waiting for client %r, which %s", self._site.name, self._stage)
                    remind += PATIENCE_S
                continue
            except ChannelClosed:
                raise ScriptFailed(_ended(self._site.name, self._stage, self._gone(), expected)) from None
            except WireError as error:
                raise ScriptFailed(f"client {self._site.name!r} sent what is no message: {error}") from error
            if frame.kind == "failed":
                raise ScriptFailed(str(frame.fields.get("traceback")), raised=True)
            if frame.kind in wanted:
                return frame
            raise ScriptFailed(f"client {self._site.name!r} {self._stage} and said {frame.kind!r}; expected that it "
                               f"{expected}")  # fmt: skip

    def _check_time(self, until: float) -> None:
        if self._watch.interrupted():
            raise ScriptFailed("interrupted", final=True)
        if time.monotonic() > until:
            raise ScriptFailed(
                f"client {self._site.name!r} {self._stage} and did not go on within simulation.task_timeout_s = "
                f"{self._watch.timeout_s} s; its process was ended", final=True,
            )  # fmt: skip


def _ended(name: str, stage: str, gone: str | None, expected: str) -> str:
    how, _, printed = (gone or "its connection is closed").partition("\n")
    return f"client {name!r} {stage} and ended ({how}); expected that it {expected}" + (
        f"\nWhat it printed last:\n{printed}" if printed else ""
    )


class ScriptProcess:
    def __init__(
        self, script: Script, site: Site, first_round: int, allowed: tuple[str, ...], watch: Watch, context: Context
    ) -> None:
        """Start the script, for a task of ``first_round``.

        Raises:
            ScriptFailed: it ended, or did not call ``fl.init()`` in time.
        """
        self._watch, self._name, self._first_round = watch, site.name, first_round
        self._channel: Channel | None = None
        self._talk: Talk | None = None
        self._output = Output(script.folder / "output.log")
        listener = Listener()
        self._process = context.Process(
            target=_child, args=(listener.address, allowed, script, seeds.key(site.seed, 0, 0, site.name, "script"),
                                 self._output.theirs), name=f"roundelay-{site.name}", daemon=True,
        )  # fmt: skip
        try:
            with main_hidden():
                self._process.start()
            self._output.begin()
            self._talk = self._connected(listener, site)
        except BaseException:
            self.close(0.0)
            raise
        finally:
            listener.close()

    def _connected(self, listener: Listener, site: Site) -> Talk:
        until = self._until()
        while True:
            ready = multiprocessing.connection.wait([listener.fileno(), self._process.sentinel], timeout=POLL_S)
            if listener.fileno() in ready:
                self._channel = listener.accept()
                talk = Talk(self._channel, site, self._first_round, self._watch, self._gone)
                talk.greet(until)
                return talk
            if self._process.sentinel in ready:
                raise ScriptFailed(_ended(site.name, "was started", self._gone(), "called fl.init()"))
            if self._watch.interrupted() or time.monotonic() > until:
                raise ScriptFailed(f"client {site.name!r} was started and did not call fl.init() within "
                                   f"simulation.task_timeout_s = {self._watch.timeout_s} s", final=True)  # fmt: skip

    def ended(self) -> bool:
        assert self._talk is not None
        try:
            self._talk.ready(self._until())
        except ScriptFailed as failure:
            if failure.raised:
                log.warning("client %r failed after it had answered\n%s", self._name, failure)
            return True
        return False

    def work(self, task: Frame) -> Answered:
        assert self._talk is not None
        until = self._until()
        self._talk.ready(until)
        return self._talk.work(task, until)

    def dismiss(self) -> None:
        if self._talk is not None:
            self._talk.dismiss()

    def close(self, until: float) -> None:
        if self._talk is not None and self._talk.at_rest:
            self._talk.see_out(until)
            self._process.join(timeout=max(0.0, until - time.monotonic()))
        if self._channel is not None:
            self._channel.close()
        if self._process.pid is not None:
            self.kill()
            self._process.join()
            _end_group(self._process.pid)
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

    def _until(self) -> float:
        return time.monotonic() + (self._watch.timeout_s or float("inf"))

    def _gone(self) -> str | None:
        with CHILDREN:
            if self._process.is_alive():
                self._process.join(timeout=0.05)
            code = self._process.exitcode
        if code is None:
            return None
        how = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return f"{how}\n{self._output.tail()}"


def _end_group(leader: int) -> None:
    """End what a script has left: a process of its own that it started and did not wait for."""
    try:
        os.kill(leader, 0)
    except ProcessLookupError:  # nobody has the number anew: the group of that number is the script's
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    except PermissionError:
        return  # somebody else has


def _child(address: str, allowed: tuple[str, ...], script: Script, seed: int, output: Connection) -> None:
    multiprocessing.current_process().daemon = False  # the script may have children: the workers of a DataLoader
    multiprocessing.set_start_method(None, force=True)  # they start as any script's do
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

    def __init__(self, script: Script, site: Site, first_round: int, allowed: tuple[str, ...], watch: Watch) -> None:
        self._ours, theirs = pair()
        self._surroundings = Surroundings(script)
        self._over, self._failure = False, ""
        self._talk = Talk(self._ours, site, first_round, watch, self._gone)
        self._seed = seeds.key(site.seed, 0, 0, site.name, "script")
        thread = threading.Thread(
            target=self._run, args=(theirs, allowed, script), name=f"roundelay-{site.name}", daemon=True
        )
        self._name = site.name
        try:
            with self._surroundings.entered(), seeds.preserved_globals():
                seeds.seed_globals(self._seed)
                thread.start()
                self._talk.greet(float("inf"))
                self._talk.ready(float("inf"))
        except BaseException:
            self._ours.close()
            raise

    def _run(self, theirs: Channel, allowed: tuple[str, ...], script: Script) -> None:
        torch.set_num_threads(1)
        fl.attach(theirs, allowed)
        failure = self._failure = run(script, self._surroundings)
        self._over = True
        with suppress(ChannelClosed):  # nobody waits for it any more; or it is this that it failed at
            if failure:
                theirs.send(Frame("failed", {"traceback": failure}, {}))
        theirs.close()

    def _gone(self) -> str | None:
        return f"its thread ended\n{self._failure}" if self._over else None

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

    def dismiss(self) -> None:
        """Only one script of a process may run at a time: ``close`` says it."""

    def close(self, until: float) -> None:
        if self._talk.at_rest:
            with self._surroundings.entered(), seeds.preserved_globals(), _quick_turns():
                self._talk.see_out(until)
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
        """Return what was printed last, by a process that has ended."""
        self._thread.join(timeout=0.1)
        return b"".join(self._tail)[-TAIL_BYTES:].decode(errors="replace").strip()

    def close(self) -> None:
        if self._thread.ident is None:  # never begun
            self.theirs.close()
            self._file.close()
        else:
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
