"""Clients of a served run that are killed, stopped for seconds and cut off, while the server has deadlines to keep.

Run as a program, in a process of its own: ``python disturbed.py WHAT FOLDER SEED``; what was seen is printed as JSON.
"""

import asyncio
import json
import logging
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents import Harm, Proxy
from lives import Life, Moment, Stop
from served import TABLES, Run, check_kept

from roundelay.deployment.device.delivery import Delivery
from roundelay.deployment.device.hands import TrainerHands
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.shelves import Answers, Memories
from roundelay.deployment.front import server
from roundelay.deployment.journal.records import Opening
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.running.calls import Calls

CLIENTS = ("c0", "c1", "c2", "c3", "c4", "c5")
DEADLINE_S, STOP_S = 1.5, 3.0
WORKFLOW = """
[workflow]
use = "rounds"
quorum = 4
attempts = 3
deadline_s = 1.5
"""
OF_CLIENT: Sequence[tuple[type, str]] = (
    (Memories, "save"), (Answers, "keep"), (Answers, "drop"), (Link, "put_part"), (TrainerHands, "do"),
    (Delivery, "settle"), (Link, "poll"),
)  # fmt: skip
"""What a client does about once a round."""

ERRORS, ROUNDS, CUTS = "errors", "rounds", "cuts"
LATE_S = 0.05


@dataclass(frozen=True)
class Size:
    """What happens in so many rounds; the connections are cut until so many bytes have passed in each direction."""

    rounds: int
    kills: int
    stops: int
    cuts: int
    up_bytes: int
    down_bytes: int


SHORT, LONG = Size(8, 4, 1, 4, 40_000, 40_000), Size(24, 40, 10, 20, 300_000, 300_000)


def disturbed(
    folder: Path, seed: int, size: Size, plant: Callable[[], None], plant_client: Callable[[], None]
) -> dict[str, Any]:
    """Run a job to its end, and once more in simulation as it went; return what was seen."""

    def of_server() -> None:
        plant()
        watch(folder)

    draw = random.Random(seed)
    run = Run(folder, size.rounds, of_server, plant_client, clients=CLIENTS, tables=TABLES + WORKFLOW)
    run.of_clients = endings(size, draw)
    run.lives["server"] = run.opened()
    up, down = (sorted(draw.sample(range(3_000, most), size.cuts // 2)) for most in (size.up_bytes, size.down_bytes))
    between = Life("proxy", [], folder, lambda: pass_on(run.port, up, down))
    between.wait(lambda life: "\n" in life.output)
    run.line[0] = run.line[0].replace(f":{run.port}", f":{int(between.output)}")
    run.lives |= {client: run.begin(client) for client in CLIENTS}
    run.go_on()
    run.leave()
    between.signal(signal.SIGTERM)
    between.wait(lambda _: False)
    (served,) = run.finished()
    seen, _, _ = check_kept(run, served)
    replay(run, served)
    return seen | look(run, json.loads((folder / CUTS).read_text()))


def endings(size: Size, draw: random.Random) -> dict[str, list[Moment]]:
    """Draw by client how its lives end; before some ends it stops for a while, and goes on."""
    by_client: dict[str, list[Moment]] = defaultdict(list)
    for number in range(size.kills):
        by_client[CLIENTS[number % len(CLIENTS)]].append(moment(draw))
    for client in draw.choices(CLIENTS, k=size.stops):
        lives = by_client[client]
        at = draw.randrange(len(lives))
        lives[at] = replace(moment(draw), act=Stop(STOP_S, lives[at]))
    return by_client


def moment(draw: random.Random) -> Moment:
    return Moment(draw.choice(OF_CLIENT), draw.randint(1, 2), draw.random() < 0.5)


# ---- what is watched ------------------------------------------------------------------------------------------------


def watch(folder: Path) -> None:
    """Have the server note its errors, and when it opens and closes each round."""
    errors = logging.FileHandler(folder / ERRORS)
    errors.setLevel(logging.ERROR)
    for name in ("roundelay", "aiohttp", "asyncio"):
        logging.getLogger(name).addHandler(errors)
    opens, close = Rounds.open, Rounds.close

    def note(*words: object) -> None:
        with (folder / ROUNDS).open("a") as file:
            file.write(json.dumps([*words, time.monotonic()]) + "\n")

    def opening(self: Rounds, opening: Opening) -> Any:
        opened = opens(self, opening)
        note("open", opening.number, opening.attempt)
        return opened

    def closing(self: Rounds, number: int, attempt: int, *rest: Any, **more: Any) -> None:
        close(self, number, attempt, *rest, **more)
        note("close", number, attempt)

    Rounds.open, Rounds.close = opening, closing  # type: ignore[method-assign]


def pass_on(port: int, up: Sequence[int], down: Sequence[int]) -> None:
    """Stand between clients and server until the end; leave how many connections were cut, and when this process, which
    has next to nothing to do, woke late by how much: so late this machine may make anybody.
    """
    late: list[tuple[float, float]] = []

    async def serve() -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        harms = ([Harm(at, True) for at in places] for places in (up, down))
        async with Proxy(port, (), *harms) as proxy:
            print(proxy.port, flush=True)
            while not over.is_set():
                wanted_s = time.monotonic() + LATE_S
                await asyncio.sleep(LATE_S)
                if time.monotonic() - wanted_s > LATE_S:
                    late.append((time.monotonic(), time.monotonic() - wanted_s))
            told = {"cut": proxy.num_cut, "up": proxy.num_up, "down": proxy.num_down, "late": late}
            Path(CUTS).write_text(json.dumps(told))

    asyncio.run(serve())
    raise SystemExit


def look(run: Run, passed: Any) -> dict[str, Any]:
    """Return what happened, what the rounds took, and what the server's log says."""
    noted = [json.loads(line) for line in (run.folder / ROUNDS).read_text().splitlines()]
    opened = {(number, attempt): at for word, number, attempt, at in noted if word == "open"}
    took = {f"{number}.{attempt}": (opened[number, attempt], at) for word, number, attempt, at in noted
            if word == "close"}  # fmt: skip
    back = [
        after
        for client in CLIENTS
        for word, after, *joined in map(json.loads, (run.folder / f"{client}.told").read_text().splitlines())
        if word == "back" and joined == [True]
    ]
    return {
        "kills": sum(map(len, run.kills.values())), "cut": passed["cut"], "passed": [passed["up"], passed["down"]],
        "stops": sum(life.num_stops for life in run.ended) + sum(life.num_stops for life in run.lives.values()),
        "took_s": {which: closed - begun for which, (begun, closed) in took.items()},
        "machine_late_s": {
            which: max((by for at, by in passed["late"] if begun <= at <= closed + 1), default=0.0)
            for which, (begun, closed) in took.items()
        },
        "back_s": back, "errors": (run.folder / ERRORS).read_text(),
    }  # fmt: skip


def replay(run: Run, served: Path) -> None:
    """The model is what a simulation comes to that keeps to who was in time, late and lost."""
    life = Life("replay", ["run", "--replay", str(served)], run.folder, lambda: None)
    life.wait(lambda _: False)
    assert life.status == 0, life.output
    sha256 = json.loads((served / "state.json").read_text())["sha256"]
    assert sha256[:8] in life.output, f"another model came out of the replay:\n{life.output}"


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def waits_for_everybody() -> None:
    """The server takes no deadline for the end of a round."""
    answers = Calls.answers

    def planted(self: Any, tasks: Any, until_s: float | None, tick_s: float | None) -> Any:
        return answers(self, tasks, None, tick_s)

    Calls.answers = planted  # type: ignore[method-assign]


def minds_who_hangs_up() -> None:
    """The server takes a connection that has ended for an error of its own."""
    lost = server._Watched.connection_lost

    def planted(self: Any, error: Exception | None) -> None:
        logging.getLogger(server.__name__).error("a connection was lost")
        lost(self, error)

    server._Watched.connection_lost = planted  # type: ignore[method-assign]


def comes_back_late() -> None:
    """A client that begins anew waits, as if it had been turned away before."""
    briefing = Link.briefing

    async def planted(self: Any) -> Any:
        await asyncio.sleep(6.0)
        return await briefing(self)

    Link.briefing = planted  # type: ignore[method-assign]


OF_THE_SERVER = {one.__name__: one for one in (waits_for_everybody, minds_who_hangs_up)}
OF_THE_CLIENTS = {one.__name__: one for one in (comes_back_late,)}


def nothing() -> None: ...


if __name__ == "__main__":
    what, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    plants = OF_THE_SERVER.get(what, nothing), OF_THE_CLIENTS.get(what, nothing)
    print(json.dumps(disturbed(folder, seed, LONG if what == "long" else SHORT, *plants)))
