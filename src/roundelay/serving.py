"""A run on real devices: its journal, its board, the server that devices talk to, and where it lies on disk.

The same call after a crash finds the run that was going on, by its job, and goes on with it.
"""

import errno
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import tomli_w

from roundelay.algorithms.protocol import num_groups
from roundelay.client.exchange import Scalar, Site
from roundelay.components import describe
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.connections import Limits, open_files
from roundelay.deployment.front.curves import curves_of
from roundelay.deployment.front.dialling import Dialler, Dialling
from roundelay.deployment.front.front import Front
from roundelay.deployment.front.meters import SYNC_BOUNDS_S, Durations
from roundelay.deployment.front.server import Server
from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Run as JournalRun
from roundelay.deployment.offered import offered_settings
from roundelay.deployment.protocol import Briefing, Curves, Holding
from roundelay.deployment.running.answers import limits_of, max_answer_bytes
from roundelay.deployment.running.world import Deployed
from roundelay.deployment.trust.address import Address, join_line
from roundelay.deployment.trust.certificates import Authority, server_certificate, server_context
from roundelay.deployment.trust.doors import Doors
from roundelay.deployment.trust.kits import ROSTER
from roundelay.deployment.trust.place import Listening, Place
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import ConfigError, DiskError, JournalMismatch, NoJournal, RoundelayError
from roundelay.federation import Plan, Version
from roundelay.guard import Expected
from roundelay.history import History, Round
from roundelay.prepared import Prepared
from roundelay.run import Run
from roundelay.standing import fixed_part
from roundelay.tracking.run_folder import JOURNAL

log = logging.getLogger(__name__)

OVER = "over"
"""The file beside the journal that says that the run has ended and its clients could hear so. Until then the same
command takes it up again: whoever is killed in the farewell does not begin to train anew.
"""

TOKEN_DAYS = 7.0
FAREWELL_S = 5.0
"""How long a server whose run has ended waits for its clients to hear so."""

DRAIN_S = 30.0
"""How long one that is told to stop lets uploads come to their end."""

LOOK_S, ROOM_BYTES = 2.0, 16 * 2**20
"""How often a server that waits for its disk looks again, and how much must fit."""
_DAY_S = 86_400.0


class Serving:
    """One run, its door open from the beginning; iterate over ``rounds()`` to train. Sites type ``join_line``, and
    ``return_line`` where they have joined before.
    """

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
        self._metrics: Server | None = None
        self._syncs = Durations(SYNC_BOUNDS_S)
        self._deployed: Deployed | None = None
        self._dialling: Dialling | None = None
        assert self.run.folder is not None
        with ExitStack() as undone:
            undone.callback(self.run.standing.close, "interrupted", "it could not be served")
            self.journal = _journal(self.run.folder / JOURNAL, job, Disk(self._syncs.add))
            undone.callback(self.journal.close)
            self.board = Board(self.journal, job.deployment.heartbeat_s)
            now_s = time.time()
            place.make()
            authority = Authority.open(place.folder, now_s) if place.is_secured else None
            self.roster = Roster(place.folder / ROSTER)
            clients, algorithm = tuple(job.work.data.clients), job.work.algorithm
            expected = Expected.of(
                self.run.trainer.layout, self.run.rehearsal.lengths, num_groups(algorithm),
                encoded=job.work.uplink is not None,
            )  # fmt: skip
            self._front = Front(
                self.board, self.roster, Doors(clients), run=self.journal.run.id,
                briefing=self._briefing, max_answer_bytes=max_answer_bytes(limits_of(expected, job.work)),
                curves=self._curves, authority_pem=None if authority is None else authority.pem,
                on_scalar=self._keep_scalar, on_data=self._keep_data,
            )  # fmt: skip
            self.join_line = self.return_line = ""
            self.metrics_port = 0
            if place.metrics is not None:
                self._metrics = self._measured(place.metrics)
                undone.callback(self._metrics.stop, 0.0)
            self._open(authority)
            undone.pop_all()

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

    @property
    def strangers(self) -> list[str]:
        """Those of the missing that need the join line, as they have no key or token of their own."""
        now_s = time.time()
        return [client for client in self.missing if not self.roster.expects(client, now_s)]

    def rounds(self) -> Generator[Round, None, None]:
        """Train round by round, and let everything go. What stops it before its end lets uploads come in first; a disk
        that is full stops nothing, but everything waits until there is room.
        """
        try:
            while True:
                try:
                    yield from self.run
                    break
                except (DiskError, OSError) as error:
                    self._outlast(error)
            self._conclude()
        except BaseException as error:
            if not isinstance(error, RoundelayError):
                self._drain()
            raise
        finally:
            self._let_go()

    def _outlast(self, error: DiskError | OSError) -> None:
        """Wait until the disk takes something again; then go on from the last checkpoint, and the journal.

        Raises:
            OSError, JournalError: that does not pass by itself.
        """
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        self.journal.check()
        folder = self.run.folder
        assert folder is not None
        log.error("everything waits for the disk: %s", error)
        self.board.turn(Phase.PAUSED, str(error))
        while not _has_room(folder):
            time.sleep(LOOK_S)
        self.run = Run(self._job, folder, world=self._world)

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
        with suppress(OSError):
            (self.journal.folder / OVER).touch()

    def _let_go(self) -> None:
        assert self._server is not None
        if self._dialling is not None:
            self._dialling.stop()
        self._server.stop(1.0)
        if self._metrics is not None:
            self._metrics.stop(1.0)
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

    def _curves(self) -> Curves:
        return curves_of(list(self.run.standing.rows), self._job.work.measures.names)

    def _keep_scalar(self, client: str, number: int, name: str, value: float, step: int) -> None:
        self.run.standing.keep_scalar(client, number, Scalar(name, value, step))

    def _keep_data(self, client: str, holding: Holding) -> None:
        self.run.standing.keep_data(client, holding)

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
        self._server = server = Server(self._front.app, None if place.workers else place.host,
                                       0 if place.workers else place.listens_on(), tls, renew=renew,
                                       limits=self._limits())  # fmt: skip
        port = server.start()
        if place.workers:
            pem = None if authority is None else authority.pem
            dialler = Dialler(place.workers, self.journal.run.id, pem, partial(server.adopt, tls=tls), log.warning,
                              insecure=place.insecure)  # fmt: skip
            self._dialling = Dialling(dialler)
            self._dialling.start()
            return
        pin, address = None if authority is None else authority.pin, Address(names[0], port, authority is not None)
        place.note(address)
        self.join_line = self.return_line = join_line(address, pin)
        if strangers := self.strangers:
            token = self.roster.open_door(strangers, len(strangers), TOKEN_DAYS * _DAY_S, time.time())
            self.join_line = join_line(address, pin, token.reveal())

    def _limits(self) -> Limits:
        wanted = self._job.deployment.max_connections
        allowed = open_files(wanted)
        if allowed < wanted:
            log.warning("at most %d connections at once, not %d: more open files are not allowed to this account "
                        "(`ulimit -Hn`)", allowed, wanted)  # fmt: skip
        return Limits(max_connections=allowed)

    def _measured(self, where: Listening) -> Server:
        """Open the address at which Prometheus asks."""
        from roundelay.deployment.front import metrics  # its package comes with an extra

        def rounds() -> tuple[int, int]:
            return self.run.num_rounds_done, self.plan.num_rounds

        def num_connections() -> int:
            return 0 if self._server is None else self._server.num_connections

        told = metrics.Server(
            self._front.meters, self.board, self.roster, self._syncs, rounds=rounds, num_clients=len(self.clients),
            num_connections=num_connections,
        )  # fmt: skip
        server = Server(metrics.metrics_app(told), where.host, where.port)
        self.metrics_port = server.start()
        return server

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
    if job.work.downlink is not None and job.work.downlink.difference:
        raise ConfigError("downlink difference takes clients that hear every broadcast, and a device fetches the "
                          "models of its own rounds only: leave it out to serve this job")  # fmt: skip


def _journal(folder: Path, job: Prepared, disk: Disk) -> Journal:
    """Open the run's journal, or begin it. No run's name is used again: what was signed for it is worthless then."""
    wanted = tomli_w.dumps({**fixed_part(job.resolved), "clients": list(job.work.data.clients)})
    try:
        journal = Journal(folder, None, disk=disk)
    except NoJournal:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.parent.name)[:50].strip("-.") or "run"
        return Journal(folder, JournalRun(f"{name}-{secrets.token_hex(5)}", wanted), disk=disk)
    if journal.run.job != wanted:
        journal.close()
        difference = journal.run.difference(JournalRun(journal.run.id, wanted))
        raise JournalMismatch(f"the journal in {folder} is that of another job: {difference}")
    return journal


def _has_room(folder: Path) -> bool:
    """Whether the disk takes some megabytes, and syncs them."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True
