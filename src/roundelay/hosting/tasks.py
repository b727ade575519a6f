"""What every agent of scripts does alike, the simulator's and a device's: where a script lives, what makes what it says
an answer, and when it is tried again.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from roundelay.client.exchange import Answered
from roundelay.hosting.talk import ScriptFailed
from roundelay.layout import Layout
from roundelay.layout.travel import packed
from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.stages.uplink import Uplink, coded, kept
from roundelay.trainer import TRIES

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")

PRELOAD = ("roundelay.hosting.process",)
"""What the forkserver of scripts has imported."""

FAREWELL_S = 30.0
"""How long a script may go on when nothing is left to do."""


def folder_of(root: Path, client: str) -> Path:
    """Make the folder in which a client's script lives, one for each client whatever its name is made of."""
    name = quote(client, safe=" ")
    folder = root / (name if name.strip(".") else name.replace(".", "%2E"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tried(
    task: Task, once: Callable[[bool], Outcome], end: Callable[[], None], given_up: Callable[[], bool]
) -> Outcome | Lost:
    """Return what ``once(anew)`` comes to; a script that failed is ended, and tried once more with one started anew."""
    reason, trace = "", ""
    for attempt in range(TRIES):
        try:
            return once(attempt > 0)
        except ScriptFailed as failure:
            end()
            reason, trace = failure.reason, str(failure)
            if failure.final or given_up():
                return Lost(task, reason, trace)
            log.info("client %s failed in round %d, its task is run again\n%s", task.client, task.round, trace)
    return Lost(task, f"client {task.client!r} failed {TRIES} times: {reason}", trace)


def on_the_air(
    uplink: Uplink | None, layout: Layout, seed: int, task: Task, received: Payload, answered: Answered, beside: Memory
) -> Answered:
    """Return a script's answer as it travels; ``beside`` is what its client remembers for its uplink, of which the
    script knows nothing.
    """
    if task.kind == "evaluate":
        return answered
    payload = answered.payload
    if uplink is None or task.kind != "train" or payload is None:
        shown = None if payload is None else packed(layout, payload)
        return replace(answered, payload=shown, memory={**answered.memory, **kept(beside)})
    sent = coded(uplink, seed, task, received, payload, beside)
    memory = {**answered.memory, **sent.memory}
    return replace(answered, payload=sent.payload, memory=memory, silent=sent.silent, fresh=sent.fresh)


def checked(task: Task, answered: Answered) -> Answered:
    """Return the answer, if it is one to this kind of task.

    Raises:
        ScriptFailed: it is none.
    """
    if task.kind == "evaluate":
        if not (math.isfinite(answered.num_examples) and answered.num_examples >= 0):
            raise ScriptFailed(f"client {task.client!r} measured on num_examples = {answered.num_examples}")
    elif answered.payload is None:
        raise ScriptFailed(f"client {task.client!r} was asked for a model and sent metrics only")
    return answered
