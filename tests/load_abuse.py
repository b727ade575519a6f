"""Clients and strangers who ask a front for all that they can, in a process of their own, until it is killed:
``python load_abuse.py URL AUTHORITY SEED NUM_LORIS NUM_HALVES NUM_STREAMS``.

So many strangers send a header a byte a second; so many clients, ``half-1`` and on, each with a task of that number,
send half of an answer and stop; and ``greedy`` has so many polls open at once. Who is cut off comes again.
"""

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from fronts import RUN, Device, head
from loads import GREEDY, halves, key_of

from roundelay.deployment.trust.pinning import client_context

PART = bytes(2**20)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def main() -> None:
    url, authority, seed, *numbers = sys.argv[1:]
    tls = client_context(Path(authority).read_bytes())
    num_loris, num_halves, num_streams = map(int, numbers)

    def device(client: str) -> Device:
        return Device(url, client, key_of(int(seed), client), RUN, tls)

    sessions = [await device(GREEDY).__aenter__() for _ in range(-(-num_streams // 100))]  # of 100 connections at most
    await asyncio.gather(
        *(again(url, tls, loris) for _ in range(num_loris)),
        *(again(url, tls, half(device(client), task)) for task, client in enumerate(halves(num_halves), 1)),
        *(polls(sessions[number % len(sessions)]) for number in range(num_streams)),
    )


async def again(url: str, tls: ssl.SSLContext, act: Callable[[Streams], Awaitable[None]]) -> None:
    at = urlsplit(url)
    while True:
        with suppress(OSError):
            streams = await asyncio.open_connection(at.hostname, at.port, ssl=tls)
            try:
                await act(streams)
            finally:
                streams[1].transport.abort()
        await asyncio.sleep(0.1)


async def loris(streams: Streams) -> None:
    streams[1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
    while not streams[1].is_closing():
        await asyncio.sleep(1.0)
        streams[1].write(b"x")


def half(device: Device, task: int) -> Callable[[Streams], Awaitable[None]]:
    async def send(streams: Streams) -> None:
        streams[1].write(head(device, task, PART, 0, len(PART)) + PART[: len(PART) // 2])
        await streams[0].read()

    return send


async def polls(device: Device) -> None:
    while True:
        await device.poll(wait_s=20.0)


if __name__ == "__main__":
    asyncio.run(main())
