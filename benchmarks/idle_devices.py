"""Devices that train nothing, for ``deployment.py``: each a process, with the agent, link and folder of a real one.

    python benchmarks/idle_devices.py ROOT NUM_CLIENTS URL TOKEN PIN

They write down, each into a file of its own in ROOT, when what happened, by the clock that all processes share.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from roundelay.client.exchange import Answered
from roundelay.deployment.device.agent import Agent
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.hands import Done
from roundelay.deployment.device.joining import enrolled
from roundelay.messages import Memory, Payload, Task


class Large(nn.Module):
    """25 million parameters, 100 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5000, 5000, bias=False)


class IdleHands:
    """Answers with what came, of which one value is the client's own: no two answers are the same bytes."""

    def __init__(self, number: int, note: Callable[..., None]) -> None:
        self._number, self._note = number, note

    def do(self, task: Task, received: Payload, memory: Memory) -> Done:
        self._note("model", round=task.round)
        received.vectors["params"][0] = 1000 * task.round + self._number
        return Done(Answered(task.id, 1.0, True, {}, received), {})

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


async def take_part(root: Path, number: int, url: str, token: str, pin: str) -> None:
    client = f"site-{number + 1}"
    with (root / f"{client}.jsonl").open("w", buffering=1) as file, Device(root / client) as device:
        note = noting(file)
        async with await enrolled(device, url, token=token, pin=pin, client=client) as link:
            # what is timed is the real one: only told when it begins and ends
            for name in ("poll", "fetch", "announce"):
                setattr(link, name, noted(getattr(link, name), name, note))
            agent = Agent(link, device, lambda _: IdleHands(number, note), lambda text: note("said", text=text),
                          longest_pause_s=1.0)  # fmt: skip
            deliver = agent._deliver
            agent._deliver = noted(deliver, "deliver", note)  # type: ignore[method-assign]
            await agent.run()


def noting(file: IO[str]) -> Callable[..., None]:
    def note(what: str, **more: Any) -> None:
        file.write(json.dumps({"what": what, "at": time.monotonic(), "cpu": time.process_time(), **more}) + "\n")

    return note


def noted(ask: Callable[..., Awaitable[Any]], name: str, note: Callable[..., None]) -> Callable[..., Awaitable[Any]]:
    async def asked(*args: Any, **options: Any) -> Any:
        note(f"{name}?")
        came = await ask(*args, **options)
        note(name, **({"found": came is not None, "round": came[0].round if came else 0} if name == "poll" else {}))
        return came

    return asked


def main() -> None:
    root, num_clients, url, token, pin = sys.argv[1:]
    torch.set_num_threads(1)
    children = []
    for number in range(int(num_clients)):
        child = os.fork()
        if not child:
            try:
                asyncio.run(take_part(Path(root), number, url, token, pin))
            except BaseException as error:
                print(f"site-{number + 1}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(statuses))


if __name__ == "__main__":
    main()
