"""A worker serves one run after another, for the coordinators that dial it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from roundelay.deployment.device.device import Device
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.reverse import Listener, ReverseConnector
from roundelay.deployment.device.trouble import Refusal
from roundelay.deployment.greeting import COORDINATOR
from roundelay.deployment.patience import Backoff, Patience, Sleep
from roundelay.deployment.trust.address import Address
from roundelay.errors import DeviceError, IdentityError


async def worker_loop(
    listener: Listener,
    device: Device,
    serve: Callable[[Link], Awaitable[str]],
    say: Callable[[str], None],
    *,
    sleep: Sleep = asyncio.sleep,
    now_s: Callable[[], float] = time.monotonic,
    draw: Callable[[], float] = random.random,
) -> NoReturn:
    """Serve one run after another for whoever dials. ``serve`` takes part over an open link until the run is over, and
    returns why it is; ``Agent.run`` does. What goes wrong in one run ends that run only.
    """
    backoff = Backoff(5.0)
    while True:
        greeting = await listener.arrived()
        say(f"a coordinator is here, for run {greeting.run!r}")
        link = Link(
            Address(COORDINATOR, 443), None, device.key(), device.counter, connector=lambda: ReverseConnector(listener)
        )
        try:
            async with link:
                patience = Patience(say, sleep, now_s, draw, link.longest_pause_s)
                client = (await patience.insist(lambda: link.join("", greeting.client))).client  # noqa: B023
                if device.require(client, "") is None:
                    device.join(client, "")
                link.client = client
                say(f"run {greeting.run!r} is over: {await serve(link)}")
        except (Refusal, DeviceError, IdentityError) as error:
            say(f"run {greeting.run!r}: {error}")
        finally:
            listener.release()
        await sleep(backoff.pause_s(draw()))  # a coordinator whose run is over may dial until it stops
