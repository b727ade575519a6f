"""A run on real devices: its journal, its board, the server that devices talk to, and where it lies on disk.

The same call after a crash finds the run that was going on, by its job, and goes on with it.
"""

import logging
import re
import secrets
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from roundelay.algorithms.protocol import num_groups
from roundelay.client.exchange import Scalar, Site
from roundelay.components import describe
from roundelay.deployment.answers import limits_of, max_answer_bytes
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.certificates import Authority, server_certificate, server_context
from roundelay.deployment.dialling import Dialler, Dialling
from roundelay.deployment.doors import Doors
from roundelay.deployment.front import Front
from roundelay.deployment.greeting import COORDINATOR, Worker, is_loopback
from roundelay.deployment.journal import Journal
from roundelay.deployment.kits import ROSTER
from roundelay.deployment.offered import offered_settings
from roundelay.deployment.pinning import Address, join_line
from roundelay.deployment.protocol import Briefing
from roundelay.deployment.records import Run as JournalRun
from roundelay.deployment.roster import Roster
from roundelay.deployment.server import Server
from roundelay.deployment.world import Deployed
from roundelay.errors import ConfigError, JournalMismatch, NoJournal, RoundelayError
from roundelay.federation import Plan, Version
from roundelay.guard import Expected
from roundelay.history import History, Round
from roundelay.prepared import Prepared
from roundelay.run import Run
from roundelay.standing import fixed_part

log = logging.getLogger(__name__)

JOURNAL = "journal"
"""The journal's folder inside the run folder."""

OVER = "over"
"""The file beside the journal that says that the run has ended and its clients could hear so. Until then the same
command takes it up again: whoever is killed in the farewell does not begin to train anew.
"""

TOKEN_DAYS = 7.0
FAREWELL_S = 5.0
"""How long a server whose run has ended waits for its clients to hear so."""

DRAIN_S = 30.0
"""How long one that is told to stop lets uploads come to their end."""
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens, and where it keeps who is who. ``names`` are what clients reach it under, the first in
    the join line; without any, what this machine is known by. With ``workers`` it does not listen: it dials them.
    Without TLS (``insecure``), whoever stands between sees and changes all; to this machine itself, TLS is not needed.
    """

    folder: Path
    host: str = "0.0.0.0"
    port: int = 8443
    names: Sequence[str] = ()
    insecure: bool = False
    workers: Sequence[Worker] = ()

    @property
    def is_secured(self) -> bool:
        dials_out = not self.workers or any(not is_loopback(worker.host) for worker in self.workers)
        return dials_out and not self.insecure

    def known_as(self) -> list[str]:
        if self.workers:
            return [COORDINATOR]
        if self.names:
            return list(self.names)
        if self.host in ("0.0.0.0", "::"):
            return list(dict.fromkeys([_outward(), socket.gethostname(), "localhost", "127.0.0.1"]))
        return list(dict.fromkeys([self.host, "localhost", "127.0.0.1"]))


class Serving:
    """One run, its door open from the beginning; iterate over ``rounds()`` to train. Sites type ``join_line``."""

    def __init__(self, job: Prepared, place: Place) -> None:
        """Find the run that was going on, or begin one, and open the door.

        Raises:
            ConfigError: the job cannot be served, or its run is going on in another process.
            IdentityError, JournalError, ServeError: a key, the journal or the port cannot be used.
        """
        _check(job)
        self.run = Run(job, unfinished(job), world=self._world)
        self._job, self._place = job, place
        self._server: Server | None = None
        self._deployed: Deployed | None = None
        self._dialling: Dialling | None = None
        assert self.run.folder is not None
        self.journal = _journal(self.run.folder / JOURNAL, job)
        try:
            self.board = Board(self.journal, job.deployment.heartbeat_s)
            now_s = time.time()
            authority = Authority.open(place.folder, now_s) if place.is_secured else None
            place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.roster = Roster(place.folder / ROSTER)
            clients, algorithm = tuple(job.work.data.clients), job.work.algorithm
            expected = Expected.of(self.run.trainer.layout, self.run.rehearsal.lengths, num_groups(algorithm))
            self._front = Front(
                self.board, self.roster, Doors(clients, len(clients)), run=self.journal.run.id,
                briefing=self._briefing, max_answer_bytes=max_answer_bytes(limits_of(expected)),
                stats=self._stats, authority_pem=None if authority is None else authority.pem,
                on_scalar=self._keep_scalar,
            )  # fmt: skip
            self.join_line = ""
            self._open(authority)
        except BaseException:
            self.journal.close()
            raise

    @property
    def clients(self) -> Sequence[str]:
        return self._job.work.data.clients

    @property
    def plan(self) -> Plan:
        return self._job.plan

    @property
    def missing(self) -> list[str]:
        """The clients that have not joined yet."""
        joined = {participant.client for participant in self.journal.clients.all()}
        return [client for client in self._job.work.data.clients if client not in joined]

    def rounds(self) -> Generator[Round, None, None]:
        """Train round by round, and let everything go. What stops it before its end lets uploads come in first."""
        rounds = iter(self.run)
        try:
            yield from rounds
        except BaseException as error:
            if not isinstance(error, RoundelayError):
                self._drain()
            raise
        else:
            self._conclude()
        finally:
            rounds.close()  # type: ignore[attr-defined]
            self._let_go()

    def train(self) -> History:
        for _ in self.rounds():
            pass
        return self.run.history()

    def _drain(self) -> None:
        """Take nothing new on, and let what is under way come in: then the run can be stopped."""
        self.board.turn(Phase.DRAINING)
        assert self._server is not None
        self._server.stop(DRAIN_S)

    def _conclude(self) -> None:
        """Tell the clients that the run has ended."""
        if self._deployed is not None and self.run.standing.version is not None:
            self._deployed.checkpointed(self.run.standing.version)
        self.board.turn(Phase.ENDED, self.run.history().stopped)
        until_s = time.monotonic() + FAREWELL_S
        with suppress(KeyboardInterrupt):  # the run is over: only the farewell is cut short
            while time.monotonic() < until_s and self._unaware():
                time.sleep(0.05)
        (self.journal.folder / OVER).touch()

    def _let_go(self) -> None:
        assert self._server is not None
        if self._dialling is not None:
            self._dialling.stop()
        self._server.stop(1.0)
        self.journal.close()

    # ---- what the front asks ----------------------------------------------------------------------------------------

    def _briefing(self, client: str) -> Briefing:
        work, plan = self._job.work, self._job.plan
        number = list(work.data.clients).index(client)
        told = {"partition": {"client": client, "number": number, "num_clients": len(work.data.clients)}}
        site = Site(client, self.journal.run.id, work.seed, plan.num_rounds, describe(work.algorithm),
                    self.run.trainer.layout, told)  # fmt: skip
        return Briefing(
            run=self.journal.run.id, client=client, heartbeat_s=self.board.heartbeat_s,
            site=dict(site.frame().fields), settings=offered_settings(self._job.resolved),
        )  # fmt: skip

    def _stats(self) -> Mapping[str, Any]:  # Any: JSON's types nest
        rows = list(self.run.standing.rows)
        names = dict.fromkeys(name for row in rows for name in row)
        return {"run": self.journal.run.id, "rounds": {name: [row.get(name) for row in rows] for name in names}}

    def _keep_scalar(self, client: str, number: int, name: str, value: float, step: int) -> None:
        self.run.standing.keep_scalar(client, number, Scalar(name, value, step))

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _world(self, run: Run) -> Deployed:
        standing, wait_s = run.standing, self._job.deployment.wait_for_clients_s
        self._deployed = Deployed(self.board, standing.flights, standing.virtual_ns, wait_s, self._sha256)
        return self._deployed

    def _sha256(self, version: Version) -> str:
        return self.run.trainer.layout.sha256(version.vectors)

    def _open(self, authority: Authority | None) -> None:
        place, names = self._place, self._place.known_as()
        tls, renew = None, None
        if authority is not None:
            tls = server_context(place.folder, names, time.time())

            def renew() -> None:
                tls.load_cert_chain(server_certificate(place.folder, names, time.time()))

        elif place.insecure:
            log.warning("without TLS, whoever stands between sees and changes all that is sent")
        self._server = server = Server(self._front.app, None if place.workers else place.host, place.port, tls,
                                       renew=renew)  # fmt: skip
        port = server.start()
        self.pin = None if authority is None else authority.pin
        if place.workers:
            pem = None if authority is None else authority.pem
            dialler = Dialler(place.workers, self.journal.run.id, pem, partial(server.adopt, tls=tls), log.warning,
                              insecure=place.insecure)  # fmt: skip
            self._dialling = Dialling(dialler)
            self._dialling.start()
            return
        self.address = Address(names[0], port)
        missing = self.missing
        token = self.roster.open_door(missing, len(missing), TOKEN_DAYS * _DAY_S, time.time()) if missing else None
        self.join_line = _line(self.address, self.pin, "" if token is None else token.reveal())

    def _unaware(self) -> set[str]:
        present = {client for client in self.board.presence() if self.board.is_present(client)}
        return present - self._front.told_over()


def unfinished(job: Prepared) -> Path | None:
    """Return the folder of the run of this job that was served last and did not come to its end."""
    assert job.tracking is not None
    root = Path(job.tracking.root)
    folders = [folder for folder in root.glob("*") if (folder / JOURNAL / "journal.db").exists()]
    wanted = fixed_part(job.resolved)
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        is_over = (folder / JOURNAL / OVER).exists()
        if not is_over and fixed_part((folder / "job.toml").read_text()) == wanted:
            return folder
    return None


def _check(job: Prepared) -> None:
    if job.tracking is None:
        raise ConfigError("a run on real devices is kept in a run folder: leave tracking = None out")
    if job.roles:
        raise ConfigError("attacks are played by simulated clients; leave them out to serve this job")


def _journal(folder: Path, job: Prepared) -> Journal:
    """Open the run's journal, or begin it. No run's name is used again: what was signed for it is worthless then."""
    wanted = tomli_w.dumps({**fixed_part(job.resolved), "clients": list(job.work.data.clients)})
    try:
        journal = Journal(folder, None)
    except NoJournal:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.parent.name)[:50].strip("-.") or "run"
        return Journal(folder, JournalRun(f"{name}-{secrets.token_hex(5)}", wanted))
    if journal.run.job != wanted:
        journal.close()
        difference = journal.run.difference(JournalRun(journal.run.id, wanted))
        raise JournalMismatch(f"the journal in {folder} is that of another job: {difference}")
    return journal


def _line(address: Address, pin: str | None, token: str) -> str:
    if pin is not None:
        return join_line(address, pin, token)
    shown = f" --token {token}" if token else ""
    return f"roundelay join {str(address).replace('https', 'http', 1)}{shown} --insecure"


def _outward() -> str:
    """Return the address with which this machine goes out; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:  # no way out
            return "127.0.0.1"
        return str(probe.getsockname()[0])
