"""What a device is asked to do, and the model that it is to do it with."""

from collections.abc import Awaitable, Callable

from roundelay.deployment.device.device import Device
from roundelay.deployment.device.hands import CannotDo
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.pulse import Pulse, TaskOver
from roundelay.deployment.device.trouble import OwnDisk, Refusal
from roundelay.deployment.patience import Patience, Sleep
from roundelay.deployment.protocol import Offer
from roundelay.errors import WireError
from roundelay.messages import Payload

MAX_MODEL_BYTES = 2**36
NOT_FOUND = 404


class Offers:
    def __init__(self, link: Link, device: Device, patience: Patience, pulse: Pulse, sleep: Sleep) -> None:
        self._link, self._device, self._patience, self._pulse, self._sleep = link, device, patience, pulse, sleep

    async def next(self, wait_s: float) -> Offer | None:
        """Ask for an offer, which the server may take so long to have; None: there is none now.

        Raises:
            Refusal: the server turns this device away.
        """
        return await self._patience.insist(self._polled(wait_s))

    def _polled(self, wait_s: float) -> Callable[[], Awaitable[Offer | None]]:
        """Return what asks for an offer, and keeps the model that came with it. Where that was cut off once, the model
        is left out: it comes in pieces then, of which none is lost.
        """
        first = True

        async def polled() -> Offer | None:
            nonlocal first
            having = self._device.models.having() if first else None
            first = False
            came = await self._link.poll(self._pulse.shown, wait_s, having)
            if came is None:
                return None
            offer, model = came
            if offer.enclosed and offer.kind != "load":  # with which comes nothing that would be used
                try:
                    self._device.models.keep(offer.sent, model)
                except OSError as error:
                    raise OwnDisk("keeping a model", error) from error
            return offer

        return polled

    async def model(self, offer: Offer) -> Payload:
        """Return the model of an offer, fetched unless it is here.

        Raises:
            CannotDo: it is too large, or no model.
            TaskOver: nobody waits for the task any more, or its model is not there.
            Refusal: the server turns this device away.
        """
        models, digest = self._device.models, offer.sent
        if offer.size > MAX_MODEL_BYTES:
            raise CannotDo(f"the model has {offer.size} bytes; a device takes up to {MAX_MODEL_BYTES}")
        for is_last in (False, True):
            if not models.has(digest, offer.size):
                await self._patience.insist(lambda: self._fetch(offer))
            try:
                return await self._pulse.in_thread(lambda: models.read(digest), offer.id)
            except (WireError, FileNotFoundError) as error:
                if is_last:
                    raise CannotDo(f"what the server sent as a model is none: {error}") from error
        raise AssertionError("the last try returns or raises")

    async def _fetch(self, offer: Offer) -> None:
        models, digest = self._device.models, offer.sent
        try:
            await self._link.fetch(digest, offer.size, models.part(digest), lambda: self._pulse.check(offer.id))
            models.put(digest)
        except Refusal as refusal:
            if refusal.status != NOT_FOUND:
                raise
            await self._sleep(1.0)  # should the task be offered again
            raise TaskOver from refusal
        except OSError as error:
            raise OwnDisk("keeping a model", error) from error
