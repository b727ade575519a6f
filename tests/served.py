"""A run on real devices whose server and clients are processes, each of which may die at moments of its own."""

import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lives import Ending, Life, together
from loopback import free_port
from projects import BRINGS, write_job

from roundelay.deployment.device import delivery, link
from roundelay.deployment.device.delivery import Delivery
from roundelay.deployment.device.device import JOINED
from roundelay.deployment.device.hands import TrainerHands
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.shelves import Answers
from roundelay.deployment.front.server import Server
from roundelay.serving import OVER
from roundelay.tracking.run_folder import JOURNAL

CLIENTS = ("c0", "c1", "c2", "c3")
READY = "ready"
PAUSE_S = 0.5
"""So long at most a client rests before it tries to reach its server again."""

TABLES = """
[simulation]
executor = "serial"
[tracking]
checkpoint_every_s = 0.3
[uplink]
codec = "fp32"
feedback = "ef21"
"""


@dataclass
class Run:
    """A server and its clients, each with the moments at which its next lives end; then it lives on."""

    folder: Path
    rounds: int
    plant: Callable[[], None] = lambda: None
    plant_client: Callable[[], None] = lambda: None
    of_server: list[Ending] = field(default_factory=list)
    of_clients: dict[str, list[Ending]] = field(default_factory=dict)
    kills: dict[str, list[str]] = field(default_factory=dict)
    stopped: list[Life] = field(default_factory=list)
    ended: list[Life] = field(default_factory=list)
    """Lives that were ended by a kill."""
    clients: Sequence[str] = CLIENTS
    tables: str = TABLES
    """What its job says besides."""
    killed_s: list[float] = field(default_factory=list)
    """When the server was killed, on the clock that all processes of a machine share."""
    from_journal: int = 0
    line: list[str] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        write_job(self.folder, self.rounds, len(self.clients), algorithm="scaffold", tables=self.tables)
        self.port = free_port()

    @property
    def ready_after_s(self) -> list[float]:
        """How long after a kill the server was ready again, for each time that it was."""
        ready = map(float, (self.folder / READY).read_text().splitlines())
        return [at - max(before) for at in ready if (before := [kill for kill in self.killed_s if kill < at])]

    # ---- what is run ------------------------------------------------------------------------------------------------

    def simulated(self) -> Path:
        life = Life("simulation", ["run", "job.toml", "--set", "tracking.root=simulated"], self.folder, lambda: None)
        life.wait(lambda _: False)
        assert life.status == 0, life.output
        return next((self.folder / "simulated").iterdir())

    def served(self) -> Path:
        """Run to the end, through all kills; return the run folder."""
        self.lives["server"] = self.opened()
        self.lives |= {client: self.begin(client) for client in self.clients}
        self.go_on()
        self.leave()
        (finished,) = self.finished()
        return finished

    def opened(self) -> Life:
        """Begin the server, however often it is killed, until it has said how to join; that is ``line`` from now on."""
        while True:
            server = self.begin("server")
            server.wait(lambda life: "--insecure" in life.output or " --pin " in life.output)
            found = re.search(r"roundelay join (.+)\n", server.output)
            if server.status is None:
                break
            assert server.status == -signal.SIGKILL, server.output
            self._note(server)
        assert found is not None, server.output
        self.line = found[1].split()
        return server

    def go_on(self) -> None:
        """Begin anew who is killed, until the server has ended otherwise."""
        while self.lives["server"].status is None:
            for over in together([life for life in self.lives.values() if life.status is None]):
                if over.status == -signal.SIGKILL:
                    self._note(over)
                    if over.name == "server" and self.is_over:
                        continue
                elif over.status == 2 and over.name != "server" and not (self.folder / over.name / JOINED).exists():
                    # it did not come as far as to know its server: its user types the line again
                    if over.moment is not None:
                        self.of_clients[over.name].insert(0, over.moment)
                elif over.name == "server" or over.status == 0:
                    continue
                else:
                    assert over.status == 130, f"{over.name} ended with {over.status}:\n{over.output}"
                    self.stopped.append(over)
                self.lives[over.name] = self.begin(over.name)

    def leave(self) -> None:
        """End the clients; some may not have heard of the run's end, which a server waits for only for some seconds."""
        for life in self.lives.values():
            if life.name != "server":
                life.signal(signal.SIGTERM)
                life.wait(lambda _: False)
                ended = life.status in (0, 130, -signal.SIGKILL)
                assert ended, f"{life.name} ended with {life.status}:\n{life.output}"

    @property
    def is_over(self) -> bool:
        """Whether the server was done but for what it shows at the end: its command would begin another run."""
        return any((folder / JOURNAL / OVER).exists() for folder in self.finished())

    def finished(self) -> list[Path]:
        """Return the folders of the runs that came to their end, the first one first."""
        states = sorted((self.folder / "runs").glob("*/state.json"))  # one that began and was killed has none
        return [path.parent for path in states if json.loads(path.read_text())["state"] == "finished"]

    def begin(self, name: str) -> Life:
        if name == "server":
            left = self.of_server
            arguments = ["serve", "job.toml", "--host", "127.0.0.1", "--port", str(self.port)]
        else:
            left = self.of_clients.get(name, [])
            arguments = ["join", *self.line, "--id", name, *BRINGS, "--folder", name]
        moment = left.pop(0) if left else None

        def prepare() -> None:
            if name == "server":
                self.plant()
                noted(self.folder / READY)
            else:
                self.plant_client()
                link.LONGEST_S = PAUSE_S
                told(self.folder / f"{name}.told")
            if moment is not None:
                moment.arm()

        life = Life(name, arguments, self.folder, prepare)
        life.moment = moment
        return life

    def _note(self, over: Life) -> None:
        self.kills.setdefault(over.name, []).append(str(over.moment))
        self.ended.append(over)
        if over.name == "server":
            self.killed_s.append(time.monotonic())
            self.from_journal += self._journal_is_ahead()

    def _journal_is_ahead(self) -> bool:
        """Whether rounds were closed since the checkpoint from which the next life goes on."""
        for path in (self.folder / "runs").glob("*/journal/journal.db"):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                try:
                    (ahead,) = db.execute(
                        "SELECT count(*) FROM rounds WHERE state = 'closed' "
                        "AND number > (SELECT COALESCE(MAX(round), 0) FROM checkpoints)"
                    ).fetchone()
                except sqlite3.OperationalError:  # it was killed before there were tables
                    return False
                return bool(ahead)
        return False


def noted(path: Path) -> None:
    """Have a server note when its port is open."""
    start = Server.start

    def starting(self: Server) -> int:
        port = start(self)
        with path.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        return port

    Server.start = starting  # type: ignore[method-assign]


# ---- what clients say -----------------------------------------------------------------------------------------------


def told(path: Path) -> None:
    """Have a client note, in a file of its own, what it does and what it was told, as soon as it knows; and let every
    second one send each answer in several parts, the others in one.
    """
    if path.stem[-1] in "13579":
        delivery.PART_BYTES, delivery.MIN_PART_BYTES = 1000, 500
    file, begun_s = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), time.monotonic()
    do, keep, put, settle = TrainerHands.do, Answers.keep, Link.put_part, Delivery.settle
    briefing, joined = Link.briefing, (path.with_suffix("") / JOINED).exists()

    def note(*words: object) -> None:
        os.write(file, (json.dumps(words) + "\n").encode())

    def doing(self: Any, task: Any, *rest: Any) -> Any:
        note("does", task.id)
        return do(self, task, *rest)

    def keeping(self: Any, run: str, offer: Any, frame: Any) -> Any:
        kept = keep(self, run, offer, frame)
        note("kept", offer.id)
        return kept

    async def putting(self: Any, task: int, round: int, digest: str, size: int, offset: int, data: bytes) -> Any:
        note("puts", task, digest, offset)
        return await put(self, task, round, digest, size, offset, data)

    async def settling(self: Any, kept: Any, *, fresh: bool) -> Any:
        settled = await settle(self, kept, fresh=fresh)
        note(settled.verdict.value, kept.offer.id, kept.digest)
        return settled

    async def briefed(self: Any) -> Any:
        said = await briefing(self)
        note("back", time.monotonic() - begun_s, joined)
        return said

    TrainerHands.do, Answers.keep, Link.put_part = doing, keeping, putting  # type: ignore[method-assign]
    Delivery.settle, Link.briefing = settling, briefed  # type: ignore[method-assign]


def check(run: Run, simulated: Path, served: Path) -> dict[str, int]:
    """Nothing is lost, nothing counts twice, nothing is done again that was finished, and the bits are the same. Return
    how many answers were acknowledged, how many of them are lost, how many updates count, and how many too often.
    """
    states = [json.loads((folder / "state.json").read_text()) for folder in (simulated, served)]
    seen, counted, updates = check_kept(run, served)
    wanted = {(number, 0, client) for number in range(1, run.rounds + 1) for client in run.clients}
    assert counted.keys() == wanted, f"missing: {wanted - counted.keys()}, too many: {counted.keys() - wanted}"
    assert seen["counted"] == len(updates)
    assert states[1]["sha256"] == states[0]["sha256"], "another model came out"
    for table in ("metrics.jsonl", "clients.jsonl"):
        one, other = ([timeless(line) for line in (folder / table).read_text().splitlines()]
                      for folder in (simulated, served))  # fmt: skip
        assert one == other, f"{table} is another one"
    return seen


Counted = Counter[tuple[int, int, str]]
"""How often each client counts, by round and attempt."""


def check_kept(run: Run, served: Path) -> tuple[dict[str, int], Counted, dict[int, tuple[str, str]]]:
    """Nothing that was acknowledged is lost or asked for again, nothing counts twice, nothing is done again that was
    finished. Return what was seen, who counts where, and the journal's updates by task.
    """
    with closing(sqlite3.connect(f"file:{served / 'journal' / 'journal.db'}?mode=ro", uri=True)) as db:
        updates = {task: (client, digest) for task, client, digest in db.execute(
            "SELECT task, client, digest FROM updates JOIN tasks ON tasks.id = updates.task")}  # fmt: skip
        members = db.execute(
            "SELECT members.round, members.attempt, tasks.round, tasks.attempt, client, tasks.id "
            "FROM members JOIN tasks ON tasks.id = members.task"
        ).fetchall()
    heard: dict[int, tuple[str, str]] = {}
    for client in run.clients:
        finished, acknowledged = set[int](), dict[int, tuple[str, str]]()
        for word, task, *digest in map(json.loads, (run.folder / f"{client}.told").read_text().splitlines()):
            if word == "kept":
                finished.add(task)
            elif word == "accepted":
                acknowledged[task] = client, digest[0]
            elif word == "does":
                assert task not in acknowledged, f"{client} was asked again for task {task}, which was acknowledged"
                assert task not in finished, f"{client} did task {task} again, which it had finished"
        heard |= acknowledged
    lost = {task: answer for task, answer in heard.items() if updates.get(task) != answer}
    assert not lost, f"acknowledged, and lost: {lost}"
    assert all(where[:2] == where[2:4] for where in members), "counted in another round"
    counted = Counter((number, attempt, client) for number, attempt, _, _, client, _ in members)
    double = {who: times for who, times in counted.items() if times > 1}
    assert not double, f"counted more than once: {double}"
    assert {task for *_, task in members} <= set(updates)
    seen = {"acknowledged": len(heard), "lost": len(lost), "counted": counted.total(), "double": len(double)}
    return seen, counted, updates


def timeless(line: str) -> dict[str, object]:
    return {name: value for name, value in json.loads(line).items() if name not in ("seconds", "virtual_s")}
