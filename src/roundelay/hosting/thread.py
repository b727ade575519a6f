"""A script in a thread of this process."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from roundelay import client as fl
from roundelay import seeds
from roundelay.channel import Channel, pair
from roundelay.client.exchange import Answered, Site
from roundelay.client.launch import Script, Surroundings, run
from roundelay.errors import ChannelClosed
from roundelay.hosting.talk import ScriptFailed, Talk, Watch
from roundelay.wire import Frame

log = logging.getLogger(__name__)


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
