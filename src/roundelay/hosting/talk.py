"""The agent's side of a script's conversation, whether the script is a process or a thread."""

import logging
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from roundelay.channel import Channel
from roundelay.client.exchange import Answered, Scalar, Site
from roundelay.errors import ChannelClosed, WireError
from roundelay.wire import Frame

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often a silent script is looked after: whether its process lives, whether its time is up."""

PATIENCE_S = 60.0
"""How often we say for whom we wait."""


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
            raise ScriptFailed(ended_instead(self._site.name, self._stage, self._gone(), expected)) from None

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
                    raise ScriptFailed(ended_instead(self._site.name, self._stage, gone, expected)) from None
                gone = self._gone()  # what it said before it went is still to be read
                if time.monotonic() > remind:
                    log.warning("still waiting for client %r, which %s", self._site.name, self._stage)
                    remind += PATIENCE_S
                continue
            except ChannelClosed:
                raise ScriptFailed(ended_instead(self._site.name, self._stage, self._gone(), expected)) from None
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


def ended_instead(name: str, stage: str, gone: str | None, expected: str) -> str:
    how, _, printed = (gone or "its connection is closed").partition("\n")
    return f"client {name!r} {stage} and ended ({how}); expected that it {expected}" + (
        f"\nWhat it printed last:\n{printed}" if printed else ""
    )
