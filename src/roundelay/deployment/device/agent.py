"""A device's agent: asks for work, has it done, and keeps each answer until the server has said what became of it.

A kill costs the work that was under way, never an answer: a task that was begun is offered again, and comes to the same
bits; an answer that was finished is on this device's disk before anybody hears of it.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import NoReturn

from torch import Tensor

from roundelay.client.exchange import Answered, Scalar
from roundelay.deployment.device.delivery import Delivery, Spoiled
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.hands import CannotDo, Done, Hands
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.offers import Offers
from roundelay.deployment.device.pulse import Pulse, TaskOver
from roundelay.deployment.device.shelves import Kept
from roundelay.deployment.device.trouble import OwnDisk, Refusal
from roundelay.deployment.journal.records import Verdict
from roundelay.deployment.patience import UNSIGNED, Patience, Sleep
from roundelay.deployment.protocol import MAX_WAIT_S, PROTOCOL, Briefing, Hello, Holding, Offer, printable
from roundelay.deployment.trust.identity import checked_name
from roundelay.errors import DeviceError, WireError
from roundelay.load import Load, measured
from roundelay.messages import Task

GONE = 410
_NEVER = ("message", "too_large", "not_found", "upload", "digest")
"""Refusals of one answer or failure, after which the device still takes part."""


class _RunOver(Exception):
    """The run has ended; says how."""


class _AnotherRun(Exception):
    """The server serves another run than the one that this device takes part in."""


class Agent:
    """Takes part in whatever run the server serves, with one task at a time."""

    def __init__(
        self,
        link: Link,
        device: Device,
        hands: Callable[[Briefing], Hands],
        say: Callable[[str], None],
        *,
        holding: Callable[[Hands], Holding | None] = lambda hands: None,
        load: Callable[[], Load] = measured,
        sleep: Sleep = asyncio.sleep,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        longest_pause_s: float | None = None,
    ) -> None:
        """``link`` is open, and its client the one that this device is. ``hands`` is called once for each run, in the
        thread in which tasks are done; ``holding`` says what to tell of the data that they have; ``load`` measures how
        busy this machine is, in that thread, while no task is done. ``now_s`` must be monotonic.
        ``longest_pause_s`` is that between two tries to reach the server; None: as it fits the link.
        """
        self._link, self._device, self._make_hands, self._say = link, device, hands, say
        self._holding, self._load, self._sleep, self._now_s = holding, load, sleep, now_s
        longest_s = link.longest_pause_s if longest_pause_s is None else longest_pause_s
        self._patience = Patience(say, sleep, now_s, draw, longest_s)
        self._pulse = Pulse(link, self._patience, sleep, now_s, draw)
        self._offers = Offers(link, device, self._patience, self._pulse, sleep)
        self._delivery = Delivery(link, self._patience, self._pulse)

    def log(self, client: str, round: int, scalar: Scalar) -> None:
        """Have a number that a script of this device's ``client`` logged sent to the server soon. May be called from
        any thread.
        """
        self._pulse.log(round, scalar)

    async def run(self) -> str:
        """Take part until the run is over; return what the server says of its end. To stop earlier, cancel it: what is
        finished stays on the disk.

        Raises:
            DeviceError: the server turned this device away, or cannot be understood; the message says what to do.
        """
        try:
            while True:
                try:
                    await self._take_part()
                except _AnotherRun:
                    self._say(f"run {self._link.run!r} is not served any more; asking what is")
        except _RunOver as over:
            return str(over)
        finally:
            self._pulse.close()

    async def _take_part(self) -> NoReturn:
        """Serve one run until it is over or another one takes its place."""
        try:
            self._begin(await self._patience.insist(self._link.hello))
            briefing = await self._patience.insist(self._link.briefing)
            if briefing.client != self._link.client or briefing.run != self._link.run:
                raise DeviceError(
                    f"{self._link.address}: this device is client {self._link.client!r} in run {self._link.run!r}, and "
                    f"was briefed as {briefing.client!r} in {briefing.run!r}; start it again, and if that does not "
                    "help, ask the server's administrator"
                )
            self._pulse.heartbeat_s = briefing.heartbeat_s
            for kept in self._device.answers.of(self._link.run):
                self._say(f"task {kept.offer.id}: its answer was finished before, and goes to the server now")
                await self._deliver(kept)
            hands = await self._pulse.in_thread(lambda: self._make_hands(briefing))
            try:
                holding = await self._pulse.in_thread(lambda: self._holding(hands))
                if holding is not None:
                    await self._patience.insist(lambda: self._link.tell(holding))
                await self._serve(hands)
            finally:
                await self._pulse.finish(hands.close)
        except Refusal as refusal:
            self._shut(refusal)

    def _begin(self, hello: Hello) -> None:
        """Turn to the run that is served."""
        if hello.protocol != PROTOCOL:
            raise DeviceError(
                f"{self._link.address}: the server speaks version {hello.protocol} of the protocol, this device "
                f"{PROTOCOL}; install roundelay {printable(hello.version)} here, as the server has it"
            )
        run = self._link.run = checked_name(hello.run, "run")
        if num_dropped := self._device.answers.drop_others(run):
            self._say(f"{num_dropped} finished answers for other runs than {run!r} were dropped: nobody takes them now")
        self._device.memories.turn_to(run)
        self._pulse.doing = {kept.offer.id for kept in self._device.answers.of(run)}
        self._pulse.over = set()

    async def _serve(self, hands: Hands) -> NoReturn:
        while True:
            offer = await self._next()
            if offer is not None:
                await self._one(hands, offer)

    async def _next(self) -> Offer | None:
        pulse = self._pulse
        wait_s = min(MAX_WAIT_S - 5, 5 * pulse.heartbeat_s)
        begun_s = self._now_s()
        offer = await self._offers.next(wait_s)
        if offer is not None and offer.id not in pulse.doing:
            return offer
        if offer is not None or self._now_s() - begun_s < min(1.0, wait_s / 2):
            await self._sleep(1.0)  # a server that does not keep us waiting is not hurried either
        return None

    # ---- one task ---------------------------------------------------------------------------------------------------

    async def _one(self, hands: Hands, offer: Offer) -> None:
        self._pulse.doing.add(offer.id)
        try:
            done = await (self._measured(offer) if offer.kind == "load" else self._done(hands, offer))
            kept = await self._patience.insist(lambda: self._keep(offer, done))
        except TaskOver:
            self._say(f"task {offer.id}: nobody waits for it any more; left")
            self._pulse.doing.discard(offer.id)
        except CannotDo as error:
            await self._fail(offer, error)
        else:
            await self._deliver(kept, fresh=True)

    async def _done(self, hands: Hands, offer: Offer) -> Done:
        received = await self._offers.model(offer)
        memory = await self._pulse.in_thread(lambda: self._remembered(offer), offer.id)
        task = Task(offer.id, self._link.client, offer.round, offer.attempt, offer.kind, offer.config)
        self._say(f"task {task.id}: {task.kind}, round {task.round}")
        return await self._pulse.in_thread(lambda: hands.do(task, received, memory), offer.id, hands.interrupt)

    async def _measured(self, offer: Offer) -> Done:
        """Tell how busy this machine is: what it knows of it."""
        readings = (await self._pulse.in_thread(self._load, offer.id)).readings
        known = ", ".join(f"{name} {value:.4g}" for name, value in readings.items())
        self._say(f"task {offer.id}: load, round {offer.round}: {known or _LOAD_UNKNOWN}")
        return Done(Answered(offer.id, 1.0, False, readings), {})

    def _remembered(self, offer: Offer) -> dict[str, Tensor]:
        """Return what the task begins from: only what the server names counts, not what was done last."""
        if offer.memory is None:
            return {}
        memories, run = self._device.memories, self._link.run
        memories.forget_before(run, offer.memory)
        memory = memories.read(run, offer.memory)
        if memory is None:
            # Better than to be shut out for good: a site whose disk broke may go on as a new one would.
            self._say(f"task {offer.id}: what this client remembered of task {offer.memory} is not in "
                      f"{self._device.folder} any more; it goes on as one that has just joined")  # fmt: skip
        return memory or {}

    async def _keep(self, offer: Offer, done: Done) -> Kept:
        """Have what was done on the disk: first what the client remembers, since the answer may count from the moment
        that it is announced.
        """

        def keep() -> Kept:
            if offer.kind in ("train", "submit"):
                self._device.memories.save(self._link.run, offer.id, done.memory)
            return self._device.answers.keep(self._link.run, offer, done.answered.frame())

        await self._pulse.check(offer.id)
        try:
            return await self._pulse.in_thread(keep, offer.id)
        except WireError as error:
            raise CannotDo(f"the answer cannot be sent: {error}") from error
        except OSError as error:
            raise OwnDisk("keeping a finished answer", error) from error

    async def _deliver(self, kept: Kept, *, fresh: bool = False) -> None:
        """``fresh``: the server cannot have anything of this answer."""
        task_id, run = kept.offer.id, self._link.run
        await self._pulse.send_logged()
        try:
            settled = await self._delivery.settle(kept, fresh=fresh)
        except Spoiled:
            self._say(f"task {task_id}: its answer was damaged on this device's disk; the task will be done again")
            self._forget(kept)
            return
        except Refusal as refusal:
            if refusal.problem.error not in _NEVER:
                raise
            self._forget(kept)
            await self._fail(kept.offer, CannotDo(f"the server does not take the answer: {refusal}"))
            return
        if settled.verdict is Verdict.ACCEPTED:
            self._device.answers.drop(kept)
        else:
            self._say(f"task {task_id}: the answer does not count ({settled.verdict.value}); forgotten")
            self._device.memories.forget(run, task_id)
            self._forget(kept)
        self._pulse.doing.discard(task_id)

    def _forget(self, kept: Kept) -> None:
        self._device.answers.drop(kept)
        self._pulse.doing.discard(kept.offer.id)

    async def _fail(self, offer: Offer, error: CannotDo) -> None:
        self._say(f"task {offer.id}: cannot be done here: {error.reason}")
        self._pulse.doing.add(offer.id)
        try:
            await self._patience.insist(lambda: self._link.fail(offer.id, offer.round, error.reason, error.traceback))
        except Refusal as refusal:
            if refusal.problem.error not in _NEVER:
                raise
            return  # it stays among those that this device has, so that it is not offered again and again
        self._pulse.doing.discard(offer.id)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _shut(self, refusal: Refusal) -> NoReturn:
        """Say what a refusal means for this device."""
        message = printable(refusal.problem.message)
        if refusal.status == GONE:
            raise _RunOver(message)
        if refusal.problem.error == "another_run":
            raise _AnotherRun from refusal
        if refusal.status == UNSIGNED:
            raise DeviceError(
                f"{self._link.address}: takes nothing that this device signs as {self._link.client!r} ({message}). If "
                "the client was shut out or has another key now, ask the server's administrator for a new token, and "
                "join from a new folder"
            ) from refusal
        if refusal.problem.error == "token":
            raise DeviceError(f"{self._link.address}: {message}") from refusal
        raise DeviceError(f"{refusal}; are server and device of the same version?") from refusal


_LOAD_UNKNOWN = "unknown; pip install 'roundelay[load]' lets this client measure it"
