"""Kills of a served run, and bugs that the check of them must catch.

Run as a program, in a process of its own: ``python killed.py WHAT FOLDER SEED``; what was seen is printed as JSON.
"""

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lives import Ending, Moment
from served import CLIENTS, Run, check

from roundelay.deployment.device.delivery import Delivery
from roundelay.deployment.device.hands import TrainerHands
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.shelves import Answers, Kept, Memories, Models
from roundelay.deployment.front import desk
from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Opening, Verdict
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.journal.tasks import Tasks
from roundelay.deployment.journal.uploads import Uploads
from roundelay.deployment.protocol import Receipt, Settled
from roundelay.standing import Standing

OF_SERVER: Sequence[tuple[type, str]] = (
    (Journal, "accept"), (Uploads, "begin"), (Uploads, "write"), (Uploads, "finish"), (Tasks, "open"),
    (Rounds, "open"), (Rounds, "close"), (Journal, "commit"), (Journal, "save_checkpoint"), (Standing, "checkpoint"),
    (Clients, "advance"), (Blobs, "put"), (Standing, "finish_round"),
)  # fmt: skip
OF_CLIENT: Sequence[tuple[type, str]] = (
    (Memories, "save"), (Memories, "forget_before"), (Answers, "keep"), (Answers, "drop"), (Link, "announce"),
    (Link, "put_part"), (Models, "put"), (TrainerHands, "do"), (Delivery, "settle"), (Link, "poll"),
)  # fmt: skip
SERVERS_CALLS, CLIENTS_CALLS = (20_000, 250_000), (20_000, 100_000)
"""Between these, a life ends at any moment: some in their beginning, some rounds later."""


NUM_ROUNDS, LAST_ROUNDS, NUM_KILLS = 30, 5, 60
EACH_ROUND = (
    (Rounds, "open"), (Tasks, "open"), (Rounds, "close"), (Journal, "commit"), (Blobs, "put"),
    (Standing, "finish_round"),
)  # fmt: skip
EACH_UPDATE = ((Clients, "advance"), (Uploads, "begin"), (Uploads, "write"), (Uploads, "finish"), (Journal, "accept"))
EARLY_CALLS = (2_000, 40_000)


def kills(folder: Path, seed: int) -> object:
    draw = random.Random(seed)
    run = Run(folder, 10, of_server=moments(OF_SERVER, SERVERS_CALLS, 12, draw))
    drawn = moments(OF_CLIENT, CLIENTS_CALLS, 14, draw)
    run.of_clients = {client: drawn[number :: len(CLIENTS)] for number, client in enumerate(CLIENTS)}
    seen = check(run, run.simulated(), run.served())
    return seen | {"kills": run.kills, "from_journal": run.from_journal, "ready_after_s": run.ready_after_s}


def server_kills(folder: Path, seed: int) -> object:
    """Kill the server all over a long run, beside one that nobody disturbs, and its simulation."""
    draw = random.Random(seed)
    folder.mkdir()
    undisturbed = Run(folder / "undisturbed", NUM_ROUNDS)
    simulated = undisturbed.simulated()
    check(undisturbed, simulated, undisturbed.served())
    run = Run(folder / "killed", NUM_ROUNDS, of_server=[*spread(NUM_KILLS, NUM_ROUNDS, draw)])
    seen = check(run, simulated, run.served())
    return seen | {"kills": run.kills, "from_journal": run.from_journal, "ready_after_s": run.ready_after_s}


@dataclass(frozen=True)
class From:
    """A moment that is waited for only from this round on."""

    number: int
    moment: Moment

    def __str__(self) -> str:
        return f"{self.moment} from round {self.number} on"

    def arm(self) -> None:
        opens = Rounds.open

        def opening(rounds: Rounds, opening: Opening) -> Any:
            if opening.number >= self.number:
                Rounds.open = opens  # type: ignore[method-assign]
                self.moment.arm()
                return rounds.open(opening)
            return opens(rounds, opening)

        Rounds.open = opening  # type: ignore[method-assign]


def spread(count: int, num_rounds: int, draw: random.Random) -> Iterator[Ending]:
    """Draw moments all over a run but for its last rounds, each of them not far from where a life begins: so many come
    to pass in it.
    """
    for number in range(count):
        kind, after = draw.randrange(3), draw.random() < 0.5
        if kind == 0:
            yield Moment(None, draw.randint(*EARLY_CALLS))
        else:
            where = draw.choice(EACH_ROUND if kind == 1 else EACH_UPDATE)
            moment = Moment(where, 1 if kind == 1 else draw.randint(1, 3), after)
            yield From(1 + number * (num_rounds - LAST_ROUNDS) // count, moment)


def moments(
    places: Sequence[tuple[type, str]], calls: tuple[int, int], count: int, draw: random.Random
) -> list[Moment]:
    """Draw moments: some in the places that matter, others anywhere."""
    named = draw.sample(places, count - count // 3)
    chosen = [Moment(place, draw.randint(1, 3), draw.random() < 0.5) for place in named]
    chosen += [Moment(None, draw.randint(*calls)) for _ in range(count // 3)]
    draw.shuffle(chosen)
    return chosen


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def acknowledged_before_it_is_written() -> None:
    """The server says "accepted", and writes the row when the client comes again."""
    accepted, work, late = desk.Desk._accepted, desk.Desk.work, dict[str, tuple[Any, ...]]()

    def planted(self: Any, client: str, task_id: int, digest: str, size: int) -> Any:
        late[client] = (client, task_id, digest, size)
        settled = Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)
        return Receipt(received=size, settled=settled)

    async def later(self: Any, call: Any, poll: Any) -> Any:
        if call.client in late:
            await self.in_thread(accepted, self, *late.pop(call.client))
        return await work(self, call, poll)

    desk.Desk._accepted, desk.Desk.work = planted, later  # type: ignore[method-assign]


def forgotten_before_it_is_acknowledged() -> None:
    """The device drops its answer when the server has heard of it."""
    announce = Delivery._announced

    async def planted(self: Any, kept: Any) -> Any:
        receipt = await announce(self, kept)
        os.unlink(kept.path)
        return receipt

    def read(self: Any, offset: int, num_bytes: int) -> bytes:
        return held[self.digest][offset : offset + num_bytes]

    held, keep = dict[str, bytes](), Answers.keep

    def keeping(self: Any, run: str, offer: Any, frame: Any) -> Any:
        kept = keep(self, run, offer, frame)
        held[kept.digest] = kept.path.read_bytes()[kept.start :]
        return kept

    Delivery._announced, Kept.read, Answers.keep = planted, read, keeping  # type: ignore[assignment, method-assign]


def remembers_what_it_did_last() -> None:
    """The device begins from its newest memory, whether or not what it came from ever counted."""
    read = Memories.read

    def planted(self: Any, run: str, task_id: int) -> Any:
        newest = max((int(path.name) for path in (self._folder / run).iterdir() if path.name.isdecimal()), default=0)
        return read(self, run, newest)

    Memories.read = planted  # type: ignore[method-assign]


def caught(folder: Path, _: int) -> object:
    """Return by planted bug what the check said, "" where it did not notice."""
    said = {}
    for plant, who, where in (
        (acknowledged_before_it_is_written, "server", Moment((Journal, "accept"), 6)),
        (forgotten_before_it_is_acknowledged, "c1", Moment((Link, "put_part"), 2)),
        (remembers_what_it_did_last, "c1", Moment((Answers, "keep"), 2)),
    ):
        run = Run(folder / plant.__name__, 3)
        if who == "server":
            run.of_server, run.plant = [where], plant
        else:
            run.of_clients, run.plant_client = {who: [where]}, plant
        simulated, served = run.simulated(), run.served()
        assert sum(map(len, run.kills.values())) == 1
        try:
            check(run, simulated, served)
            said[plant.__name__] = ""
        except AssertionError as error:
            said[plant.__name__] = str(error)
    return said


if __name__ == "__main__":
    played = {"kills": kills, "server_kills": server_kills, "caught": caught}[sys.argv[1]]
    print(json.dumps(played(Path(sys.argv[2]), int(sys.argv[3]))))
