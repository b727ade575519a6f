"""An answer's way to the server, in parts, each of which is on the server's disk before the next one goes."""

import asyncio

from roundelay.deployment.device.link import Link
from roundelay.deployment.device.pulse import Pulse, TaskOver
from roundelay.deployment.device.shelves import Kept
from roundelay.deployment.device.trouble import Again, OwnDisk, Refusal, Unreachable
from roundelay.deployment.patience import Backoff, Patience
from roundelay.deployment.protocol import PART_BYTES, Receipt, Settled

MIN_PART_BYTES = 64 * 1024
"""Parts get smaller on a line that cuts them, so that some come through."""

_MAX_REFUSED = 10
_OFTEN = ("upload", "digest", "signature")
"""Refusals of a part after which the server is asked where to go on."""


class Spoiled(Exception):
    """The kept answer was damaged on this device's disk."""


class Delivery:
    def __init__(self, link: Link, patience: Patience, pulse: Pulse) -> None:
        self._link, self._patience, self._pulse = link, patience, pulse
        self._length = PART_BYTES

    async def settle(self, kept: Kept, *, fresh: bool) -> Settled:
        """Bring an answer to the server, however long it takes, and return what it says. One that is ``fresh``, of
        which the server cannot have anything yet, goes without being announced where it fits into one part.

        Raises:
            Refusal: the server does not take it.
            Spoiled: there is nothing to bring any more.
        """
        receipt = Receipt(received=0) if fresh and kept.size <= self._length else await self._announced(kept)
        backoff, num_refused = self._patience.backoff(), 0
        while receipt.settled is None:
            try:
                receipt = await self._part(kept, receipt.received)
            except Refusal as refusal:
                num_refused += 1
                if refusal.problem.error not in _OFTEN or num_refused >= _MAX_REFUSED:
                    raise
                if refusal.problem.error == "digest" and not await asyncio.to_thread(kept.is_whole):
                    raise Spoiled from refusal
                receipt = await self._rested(Again(str(refusal), 0.0), backoff, kept)
            except (Unreachable, Again, OwnDisk) as trouble:
                if isinstance(trouble, Unreachable):
                    self._length = max(self._length // 2, MIN_PART_BYTES)
                receipt = await self._rested(trouble, backoff, kept)
            except TaskOver:
                receipt = await self._announced(kept)  # it may be so because the answer is there: ask
                if receipt.settled is None:
                    receipt = await self._rested(Again(_UNCLEAR, 0.0), backoff, kept)
            else:
                self._patience.well()
                self._length = min(2 * self._length, PART_BYTES)
                backoff, num_refused = self._patience.backoff(), 0
        self._patience.well()
        return receipt.settled

    async def _part(self, kept: Kept, at: int) -> Receipt:
        """Send the part from ``at``. A server whose word cannot be is one that does not answer."""
        offer = kept.offer
        if not 0 <= at < kept.size:
            raise Unreachable(f"{self._link.address}: has {at} of {kept.size} bytes of an answer, and does not take it")
        try:
            data = await asyncio.to_thread(kept.read, at, min(self._length, kept.size - at))
        except OSError as error:
            raise OwnDisk("reading a finished answer", error) from error
        if not data:
            raise Spoiled
        receipt = await self._link.put_part(offer.id, offer.round, kept.digest, kept.size, at, data)
        if receipt.settled is None:
            if receipt.received <= at:
                raise Unreachable(f"{self._link.address}: took a part of an answer, and has no more of it than before")
            await self._pulse.check(offer.id)
        return receipt

    async def _announced(self, kept: Kept) -> Receipt:
        offer = kept.offer
        return await self._patience.insist(lambda: self._link.announce(offer.id, offer.round, kept.digest, kept.size))

    async def _rested(self, trouble: Unreachable | Again | OwnDisk, backoff: Backoff, kept: Kept) -> Receipt:
        await self._patience.rest(trouble, backoff)
        return await self._announced(kept)


_UNCLEAR = "the server says of a task that it is over, and takes its answer"
