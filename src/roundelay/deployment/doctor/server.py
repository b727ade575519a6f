"""A server's folder, port, disk and clock: what works, what does not, and what to do."""

import errno
import os
import resource
import socket
import stat
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from roundelay.deployment import protocol
from roundelay.deployment.doctor.findings import Finding, Report, State, check_disk, check_versions, day, moment, span
from roundelay.deployment.doctor.site import greeted
from roundelay.deployment.protocol import printable
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, AUTHORITY_SECRET, SERVER_SECRET
from roundelay.deployment.trust.identity import read_secret
from roundelay.deployment.trust.kits import ROSTER
from roundelay.deployment.trust.pinning import client_context
from roundelay.deployment.trust.place import last_address, settled
from roundelay.deployment.trust.questions import ask
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import IdentityError

_FILES = 4_096
_BACK_S = 120.0
_ROTATE = timedelta(days=365)


def examine_server(
    folder: Path, runs: Path, host: str, port: int | None, *, timeout_s: float = 5.0,
    now_s: Callable[[], float] = time.time,
) -> list[Finding]:  # fmt: skip
    """Look at what a server needs, whether it runs now or not. ``runs`` is where its run folders are; ``port`` None:
    where it was last, or 8443.
    """
    findings: list[Finding] = []

    def report(state: State, about: str, text: str) -> None:
        findings.append(Finding(state, about, text))

    check_versions(report)
    if not folder.is_dir():
        report(State.WARNING, "folder", f"{folder}: there is none yet; it is made when a server is started")
    else:
        _check_secrets(report, folder)
        _check_certificates(report, folder, now_s())
        _check_roster(report, folder, now_s())
    _check_port(report, folder, host, port, timeout_s)
    check_disk(report, runs, "runs and their journals")
    check_disk(report, folder, "who is who")
    _check_clock(report, folder, runs, now_s())
    _check_files(report)
    return findings


def _check_secrets(report: Report, folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        report(State.WRONG, "folder", f"{folder}: others may write there (mode {mode:04o}): chmod 700 {folder}")
    wrong = False
    for name in (AUTHORITY_SECRET, SERVER_SECRET, ROSTER):
        if os.path.lexists(folder / name):
            try:
                read_secret(folder / name, limit=2**30)
            except IdentityError as error:
                wrong = True
                report(State.WRONG, "secrets", str(error))
    if not wrong:
        report(State.OK, "secrets", f"{folder}: only their owner may read them")


def _check_certificates(report: Report, folder: Path, now_s: float) -> None:
    authority, server = (_certificate(report, folder / name) for name in (AUTHORITY_SECRET, SERVER_SECRET))
    now = moment(now_s)
    if authority is None:
        report(State.WARNING, "authority", f"{folder}: there is none yet; it is made when a server is started with TLS")
        return
    end = authority.not_valid_after_utc
    if now >= end:
        report(State.WRONG, "authority", f"ran out on {day(end)}: move {folder / AUTHORITY_SECRET} away, start the "
               "server again, and hand the new join lines to all sites")  # fmt: skip
    elif now < authority.not_valid_before_utc:
        report(State.WRONG, "authority", f"begins on {day(authority.not_valid_before_utc)}: this machine's clock is "
               "wrong (`date` shows it)")  # fmt: skip
    elif end - now < _ROTATE:
        report(State.WARNING, "authority", f"ends on {day(end)}: plan for new kits, since all sites will need one")
    else:
        report(State.OK, "authority", f"good until {day(end)}")
    if server is not None:
        end = server.not_valid_after_utc
        if now >= end:
            report(State.WARNING, "certificate", f"the server's ran out on {day(end)}: restart it, which renews it")
        else:
            report(
                State.OK, "certificate", f"good until {day(end)}, renewed by itself; for {', '.join(_names(server))}"
            )


def _certificate(report: Report, path: Path) -> x509.Certificate | None:
    """Return the certificate in a file that has it beside its key, None where there is none that can be read."""
    if not os.path.lexists(path):
        return None
    try:
        return x509.load_pem_x509_certificates(read_secret(path))[0]
    except (IdentityError, ValueError):
        report(State.WRONG, "certificate", f"{path}: cannot be read as a key and its certificate; restore it from a "
               "copy")  # fmt: skip
        return None


def _names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def _check_roster(report: Report, folder: Path, now_s: float) -> None:
    if not os.path.lexists(folder / ROSTER):
        return
    try:
        roster = Roster(folder / ROSTER)
    except IdentityError as error:
        report(State.WRONG, "clients", str(error))
        return
    joined = [one.client for one in roster.members() if one.public_key]
    late = [one.client for one in roster.members() if not one.public_key and not one.waits(now_s)]
    waiting = len(roster.members()) - len(joined) - len(late)
    report(State.OK, "clients", f"{len(joined)} have joined, {waiting} more are invited by name")
    if late:
        shown = ", ".join(late[:8]) + ", ..." * (len(late) > 8)
        report(State.WARNING, "clients", f"tokens ran out before they were used: {shown}; make new ones with "
               "`roundelay clients invite`")  # fmt: skip


def _check_port(report: Report, folder: Path, host: str, port: int | None, timeout_s: float) -> None:
    last = last_address(folder)
    try:
        port = port or (last.port if last is not None else settled(folder)[1])
    except IdentityError as error:
        report(State.WRONG, "settings", str(error))
        return
    here = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    try:
        socket.create_connection((here, port), timeout_s).close()
    except OSError:
        _check_free(report, host, port)
        return
    secured = last.secured if last is not None else (folder / AUTHORITY_PUBLIC).is_file()
    address = Address(last.host if last is not None else here, port, secured)
    try:
        context = client_context((folder / AUTHORITY_PUBLIC).read_bytes()) if secured else None
        said = ask(address, protocol.HELLO, context, timeout_s=timeout_s, at=here)
        ready = ask(address, protocol.READY, context, timeout_s=timeout_s, at=here)
    except (IdentityError, OSError) as error:
        report(State.WRONG, "port", f"port {port} is taken, and not by the server of this folder ({error}); stop the "
               "program that has it, or give another port")  # fmt: skip
        return
    if greeted(report, said) is not None:
        report(State.OK, "port", f"the server of this folder serves port {port}")
        if ready.status != 200:
            told = ready.table()
            disk = "" if told.get("disk", True) else "; its disk failed or is full"
            report(State.WARNING, "server", f"it is not ready ({printable(str(told.get('phase', '')))}{disk})")


def _check_free(report: Report, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        why = {
            errno.EADDRINUSE: "taken by a program that does not answer; stop it, or give another port",
            errno.EACCES: "not for this account; ports below 1024 are the system's, give a higher one",
            errno.EADDRNOTAVAIL: f"not to be had: this machine has no address {host}; give one of its own, or 0.0.0.0",
        }.get(error.errno or 0, error.strerror or str(error))
        report(State.WRONG, "port", f"port {port} on {host} is {why}")
        return
    report(State.OK, "port", f"port {port} is free; no server runs there now")


def _check_clock(report: Report, folder: Path, runs: Path, now_s: float) -> None:
    """Hold the clock against the times of what was written: it may not have gone back."""
    written = [*runs.glob("*/journal/journal.db*"), *folder.glob("*")]
    newest_s = max((path.stat().st_mtime for path in written), default=0.0)
    if newest_s - now_s > _BACK_S:
        report(State.WRONG, "clock", f"it is {span(newest_s - now_s)} behind what was written here before: set it "
               "(`date` shows it), or tokens and certificates are good for the wrong time")  # fmt: skip
    else:
        report(State.OK, "clock", f"{moment(now_s):%Y-%m-%d %H:%M} UTC, behind nothing that was written here")


def _check_files(report: Report) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # which a server raises its own limit to
    if 0 <= most < _FILES:
        report(State.WARNING, "open files", f"this account may have {most} open; each client needs two. For more "
               f"than {most // 3} clients: LimitNOFILE in the unit, or the account's hard limit")  # fmt: skip
    else:
        report(State.OK, "open files", f"up to {most}" if most > 0 else "as many as there are")
