"""A site's way to its server, step by step: what works, what does not, and what to do.

Whatever is below a step that failed is not tried; what does not depend on it is.
"""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

from cryptography import x509
from pydantic import ValidationError

from roundelay.deployment import protocol
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.joining import server_address
from roundelay.deployment.doctor.findings import Finding, Report, State, check_disk, check_versions, day, moment, span
from roundelay.deployment.protocol import printable
from roundelay.deployment.trust.address import Address, explained
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, pin_of
from roundelay.deployment.trust.identity import CLOCK_SKEW_S
from roundelay.deployment.trust.kits import DEVICE_KEY
from roundelay.deployment.trust.pinning import check_server, client_context, trusted_authority
from roundelay.deployment.trust.questions import Said, ask, believing_anything
from roundelay.deployment.trust.signing import Request, sign
from roundelay.errors import DeviceError, IdentityError

_CLOCK_S = 120.0
_SOON = timedelta(days=14)


def examine_site(
    url: str, pin: str, folder: Path | None, *, insecure: bool = False, timeout_s: float = 10.0,
    now_s: Callable[[], float] = time.time,
) -> list[Finding]:  # fmt: skip
    """Look at everything between this machine and the server. ``folder`` is that of a client that has joined, or a kit;
    None: there is none yet. Only a client that does not run now has its key tried.
    """
    findings: list[Finding] = []

    def report(state: State, about: str, text: str) -> None:
        findings.append(Finding(state, about, text))

    check_versions(report)
    check_disk(report, folder or Path(), "this client's files")
    try:
        address = server_address(url, insecure)
    except IdentityError as error:
        report(State.WRONG, "address", str(error))
        return findings
    if _reaches(report, address, timeout_s):
        hello = _looks(report, address, timeout_s, now_s())
        authority = _trusts(report, address, pin, folder, timeout_s)
        if hello is not None and folder is not None and (authority is not None or not address.secured):
            _knows_us(report, address, authority, folder, hello.run, timeout_s, now_s())
    return findings


def _reaches(report: Report, address: Address, timeout_s: float) -> bool:
    """Look up the name, and connect."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        report(State.WRONG, "name", f"{address.host}: no such host; check the spelling, and ask this network's "
               "administrator whether its DNS knows the name")  # fmt: skip
        return False
    numbers = list(dict.fromkeys(str(where[0]) for *_, where in found))
    report(State.OK, "name", f"{address.host} is {', '.join(numbers)}")
    try:
        begun_s = time.monotonic()
        with socket.create_connection((address.host, address.port), timeout_s):
            took_s = time.monotonic() - begun_s
    except OSError as error:
        report(State.WRONG, "port", explained(error, address))
        return False
    report(State.OK, "port", f"{address.port} is open from here, after {1e3 * took_s:.0f} ms")
    return True


def _looks(report: Report, address: Address, timeout_s: float, now_s: float) -> protocol.Hello | None:
    """Ask what answers there, believing nothing yet."""
    try:
        said = ask(address, protocol.HELLO, believing_anything() if address.secured else None, timeout_s=timeout_s)
    except IdentityError as error:
        report(State.WRONG, "TLS" if address.secured else "HTTP", str(error))
        return None
    if said.certificate is not None:
        report(State.OK, "TLS", "what answers there speaks TLS 1.2 or newer")
        _check_certificate(report, x509.load_der_x509_certificate(said.certificate), now_s)
    else:
        report(State.WARNING, "TLS", "nothing is encrypted: whoever stands between sees and changes all")
    check_clock(report, said, now_s)
    return greeted(report, said)


def _check_certificate(report: Report, certificate: x509.Certificate, now_s: float) -> None:
    """Its name and whose it is are checked by whoever trusts an authority."""
    now, end = moment(now_s), certificate.not_valid_after_utc
    if now >= end:
        report(State.WRONG, "certificate", f"the server's ran out on {day(end)}; if this machine's clock is right, the "
               "server's administrator must restart the server, which renews it")  # fmt: skip
    elif now < certificate.not_valid_before_utc:
        report(State.WRONG, "certificate", f"the server's begins on {day(certificate.not_valid_before_utc)}: this "
               "machine's clock, or that of the server, is wrong")  # fmt: skip
    elif end - now < _SOON:
        report(State.WARNING, "certificate", f"the server's ends on {day(end)}; it should have been renewed by itself: "
               "tell the server's administrator")  # fmt: skip
    else:
        report(State.OK, "certificate", f"the server's is good until {day(end)}")


def check_clock(report: Report, said: Said, now_s: float) -> None:
    try:
        theirs_s = parsedate_to_datetime(said.headers["date"]).timestamp()
    except (KeyError, ValueError):
        report(State.WARNING, "clock", "the server does not say what time it is")
        return
    off_s = now_s - theirs_s
    shown = f"this machine's is {span(abs(off_s))} {'ahead of' if off_s > 0 else 'behind'} the server's"
    if abs(off_s) > CLOCK_SKEW_S:
        report(State.WRONG, "clock", f"{shown}; more than {span(CLOCK_SKEW_S)} break certificates and signatures: set "
               "the one that is wrong (`date` shows it)")  # fmt: skip
    elif abs(off_s) > _CLOCK_S:
        report(State.WARNING, "clock", f"{shown}; it works, but set it, or let NTP do so")
    else:
        report(State.OK, "clock", "this machine's and the server's agree")


def greeted(report: Report, said: Said) -> protocol.Hello | None:
    """Read the hello that came; None where it is none."""
    try:
        hello = protocol.Hello.model_validate_json(said.body)
    except ValidationError:
        report(State.WRONG, "server", f"what answers there is no roundelay server (status {said.status}); check host "
               "and port, and whether a proxy answers in its place")  # fmt: skip
        return None
    theirs, own = printable(hello.version, 40), version("roundelay")
    if hello.protocol != protocol.PROTOCOL:
        report(State.WRONG, "server", f"it speaks version {hello.protocol} of the protocol, this program version "
               f"{protocol.PROTOCOL}: install roundelay {theirs}, as the server has (here: {own})")  # fmt: skip
    elif theirs != own:
        report(State.WARNING, "server", f"it has roundelay {theirs}, this machine {own}; they understand each other, "
               "but the same version on both sides is what was tested")  # fmt: skip
    else:
        taken = "new clients may join" if hello.joining else "it takes no new clients"
        report(State.OK, "server", f"run {printable(hello.run)!r}; {taken}")
    return hello


def _trusts(report: Report, address: Address, pin: str, folder: Path | None, timeout_s: float) -> bytes | None:
    """Return the authority that the server proved itself with, None where it did not."""
    kept = folder / AUTHORITY_PUBLIC if folder is not None else None
    if not address.secured:
        return None
    try:
        if kept is not None and kept.is_file():
            pem = kept.read_bytes()
            own = pin_of(x509.load_pem_x509_certificate(pem))
            if pin and pin != own:
                raise IdentityError(f"{folder} trusts the server with pin {own}, not the one with {pin}")
            check_server(address, pem, timeout_s)
        elif pin:
            pem, own = trusted_authority(address, pin, timeout_s), pin
        else:
            report(State.WARNING, "pin", "whose server this is was not checked: give --pin, from the join line, or "
                   "--folder, of a client that has joined")  # fmt: skip
            return None
    except (IdentityError, OSError, ValueError) as error:
        report(State.WRONG, "pin", str(error))
        return None
    report(State.OK, "pin", f"the server is the one with pin {own}")
    return pem


def _knows_us(
    report: Report, address: Address, authority: bytes | None, folder: Path, run: str, timeout_s: float, now_s: float
) -> None:
    """Sign a request as the client would."""
    if not os.path.lexists(folder / DEVICE_KEY):
        report(State.WARNING, "client", f"{folder}: has not joined yet: there is no {DEVICE_KEY}")
        return
    try:
        with Device(folder) as device:
            if device.joined is None:
                report(State.WARNING, "client", f"{folder}: has a key, but has not joined yet")
                return
            client = device.joined.client
            fields = sign(Request("GET", protocol.RUN, run), client, device.key(), device.counter.next(), now_s)
    except (DeviceError, IdentityError, OSError) as error:
        running = isinstance(error, DeviceError) and "another process" in str(error)
        report(State.OK if running else State.WRONG, "client",
               f"{folder}: takes part at this moment, so its key is not tried" if running else str(error))  # fmt: skip
        return
    context = client_context(authority) if authority is not None else None
    try:
        said = ask(address, protocol.RUN, context, headers=dict(fields), timeout_s=timeout_s)
    except IdentityError as error:
        report(State.WRONG, "client", str(error))
        return
    told = printable(str(said.table().get("message", f"status {said.status}")))
    if said.status in (200, 410):
        report(State.OK, "client", f"the server knows client {client!r} by its key")
    elif said.status >= 500:
        report(State.WARNING, "client", f"the server cannot say now whether it knows client {client!r}: {told}")
    else:
        report(State.WRONG, "client", f"the server does not take client {client!r}: {told}")
