"""A script in a process of its own, which whatever it starts does not outlive."""

import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from roundelay import client as fl
from roundelay import seeds
from roundelay.channel import Channel, Listener
from roundelay.client.exchange import Answered, Site
from roundelay.client.launch import Script, Surroundings, run
from roundelay.hosting.forkserver import CHILDREN, Context, die_with_parent, main_hidden
from roundelay.hosting.output import Output
from roundelay.hosting.talk import POLL_S, ScriptFailed, Talk, Watch, ended_instead
from roundelay.wire import Frame

log = logging.getLogger(__name__)


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
                raise ScriptFailed(ended_instead(site.name, "was started", self._gone(), "called fl.init()"))
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
