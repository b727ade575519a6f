"""A device that knows a pin trusts one server, over real sockets; whoever poses as it is refused, and told why."""

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from loopback import context_of, handshake, only_tls_1_1, serving

from roundelay.deployment.trust import pinning
from roundelay.deployment.trust.address import Address, explained
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, Authority, server_context
from roundelay.deployment.trust.pinning import AUTHORITY_PATH, client_context, trusted_authority
from roundelay.errors import IdentityError

NOW_S = time.time()  # TLS has no clock but the machine's
NAMES = ["127.0.0.1", "localhost"]
YEAR_S = 365 * 86_400.0
needs_tls_1_1 = pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="this OpenSSL cannot speak it at all")


def refusal(address: Address, pin: str) -> str:
    """The contract: whoever is not the pinned server is refused by an error that is ours, and says where."""
    try:
        trusted_authority(address, pin, timeout_s=10)
    except IdentityError as error:
        said = str(error)
    else:
        raise AssertionError("it was trusted")
    assert str(address) in said
    return said


# ---- the one that is pinned -----------------------------------------------------------------------------------------


def test_a_pin_is_enough_to_trust_the_server_and_nothing_is_told_before(tmp_path: Path) -> None:
    context = server_context(tmp_path, NAMES, NOW_S)
    offered = (tmp_path / AUTHORITY_PUBLIC).read_bytes()
    with serving(context, offered) as server:
        pem = trusted_authority(server.address(), Authority.open(tmp_path, NOW_S).pin)
        assert pem == offered
        assert handshake(server.address("localhost"), client_context(pem)) == "TLSv1.3"
    (path, fields), *more = server.asked
    assert path == AUTHORITY_PATH
    assert not more
    assert fields.keys() == {"Host", "User-Agent", "Accept-Encoding"}


def test_the_pin_outlives_the_names_and_certificates_of_a_server(tmp_path: Path) -> None:
    server_context(tmp_path, ["fl.example.org"], NOW_S - 2 * YEAR_S)
    pin = Authority.open(tmp_path, NOW_S).pin
    with serving(server_context(tmp_path, NAMES, NOW_S), (tmp_path / AUTHORITY_PUBLIC).read_bytes()) as server:
        trusted_authority(server.address(), pin)


# ---- everybody else -------------------------------------------------------------------------------------------------


def check_pin(folder: Path) -> None:
    """An impostor with an authority of the same name, which it offers."""
    ours, other = Authority.new(NOW_S), Authority.new(NOW_S)
    with serving(context_of(folder, other, NAMES, NOW_S), other.pem) as server:
        said = refusal(server.address(), ours.pin)
        assert ours.pin in said
        assert "Compare the pin" in said
        assert server.num_connections == 1, "it was called back"


def check_chain(folder: Path) -> None:
    """An impostor that offers our authority's certificate, which everybody can have, and has its own for itself."""
    ours, other = Authority.new(NOW_S), Authority.new(NOW_S)
    in_our_name = Authority(ours.certificate, other._key)  # says it was issued by our key, and was not
    for impostor in (other, in_our_name):
        with serving(context_of(folder, impostor, NAMES, NOW_S), ours.pem) as server:
            assert "not from the pinned authority" in refusal(server.address(), ours.pin)


def check_own_signature(folder: Path) -> None:
    """Somebody who stands before the server and offers our key in a certificate of his own making, valid for ever."""
    ours, thief = Authority.new(NOW_S), ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(ours.certificate.subject)
        .issuer_name(ours.certificate.issuer)
        .public_key(ours.certificate.public_key())
        .serial_number(1)
        .not_valid_before(ours.certificate.not_valid_before_utc)
        .not_valid_after(ours.certificate.not_valid_after_utc.replace(year=2999))
    )
    for extension in ours.certificate.extensions:
        made = made.add_extension(extension.value, extension.critical)
    forged = Authority(made.sign(thief, hashes.SHA256()), thief)
    assert forged.pin == ours.pin
    with serving(context_of(folder, ours, NAMES, NOW_S), forged.pem) as server:
        assert "has not signed" in refusal(server.address(), ours.pin)


def check_host(folder: Path) -> None:
    """A certificate of ours for another machine."""
    ours = Authority.new(NOW_S)
    with serving(context_of(folder, ours, ["fl.example.org", "192.0.2.7"], NOW_S), ours.pem) as server:
        for host in NAMES:
            assert f"is not for '{host}'" in refusal(server.address(host), ours.pin)


def check_end(folder: Path) -> None:
    ours = Authority.new(NOW_S - 2 * YEAR_S)
    with serving(context_of(folder, ours, NAMES, NOW_S - 2 * YEAR_S), ours.pem) as server:
        assert "has run out" in refusal(server.address(), ours.pin)


def check_start(folder: Path) -> None:
    ours = Authority.new(NOW_S)
    with serving(context_of(folder, ours, NAMES, NOW_S + YEAR_S), ours.pem) as server:
        assert "clock is late" in refusal(server.address(), ours.pin)


CHECKS = (check_pin, check_chain, check_own_signature, check_host, check_end, check_start)


@pytest.mark.parametrize("check", CHECKS)
def test_an_impostor_is_refused(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path)


def compares_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("roundelay.deployment.trust.pinning.hmac.compare_digest", lambda one, other: True)


def trusts_everybody(patch: pytest.MonkeyPatch) -> None:
    def lenient(pem: bytes) -> ssl.SSLContext:
        context = client_context(pem)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    patch.setattr(pinning, "client_context", lenient)


def reads_no_names(patch: pytest.MonkeyPatch) -> None:
    def lenient(pem: bytes) -> ssl.SSLContext:
        context = client_context(pem)
        context.check_hostname = False
        return context

    patch.setattr(pinning, "client_context", lenient)


def believes_any_certificate_of_the_key(patch: pytest.MonkeyPatch) -> None:
    parsed = pinning._parsed

    class Believed:
        def __init__(self, certificate: x509.Certificate) -> None:
            self.public_key, self.public_bytes = certificate.public_key, certificate.public_bytes

        def verify_directly_issued_by(self, issuer: object) -> None:
            pass

    patch.setattr(pinning, "_parsed", lambda *args: Believed(parsed(*args)))


def never_comes_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pinning, "check_server", lambda *args: None)


@pytest.mark.parametrize(
    ("check", "plant"),
    [
        (check_pin, compares_nothing),
        (check_own_signature, believes_any_certificate_of_the_key),
        (check_host, reads_no_names),
        *((check, plant) for check in (check_chain, check_host, check_end, check_start)
          for plant in (trusts_everybody, never_comes_back)),
    ],
)  # fmt: skip
def test_the_checks_of_impostors_catch(
    check: Callable[[Path], None],
    plant: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path)


def test_errors_of_aiohttp_are_explained_as_well(tmp_path: Path) -> None:
    """Deployments will speak through it: one context, one explanation."""
    ours, other = Authority.new(NOW_S), Authority.new(NOW_S)

    async def get(address: Address) -> bytes:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context(ours.pem))) as session,
            session.get(f"{address}{AUTHORITY_PATH}") as answer,
        ):
            return await answer.read()

    with serving(context_of(tmp_path, ours, NAMES, NOW_S), ours.pem) as server:
        assert asyncio.run(get(server.address())) == ours.pem
    for context, said in (
        (context_of(tmp_path, other, NAMES, NOW_S), "not from the pinned authority"),
        (context_of(tmp_path, ours, ["192.0.2.7"], NOW_S), "is not for '127.0.0.1'"),
        (None, "does not speak TLS"),
    ):
        with serving(context, ours.pem) as server:
            with pytest.raises(aiohttp.ClientError) as caught:
                asyncio.run(get(server.address()))
            assert said in explained(caught.value, server.address())
    with pytest.raises(aiohttp.ClientError) as caught:
        asyncio.run(get(server.address()))
    assert "nothing listens there" in explained(caught.value, server.address())


# ---- what is no such server at all ----------------------------------------------------------------------------------


def test_plain_http_is_named() -> None:
    ours = Authority.new(NOW_S)
    with serving(None, ours.pem) as server:
        assert "does not speak TLS" in refusal(server.address(), ours.pin)


@needs_tls_1_1
def test_a_server_of_tls_1_1_is_refused(tmp_path: Path) -> None:
    ours = Authority.new(NOW_S)
    with serving(only_tls_1_1(context_of(tmp_path, ours, NAMES, NOW_S)), ours.pem) as server:
        assert handshake(server.address(), only_tls_1_1(client_context(ours.pem))) == "TLSv1.1", "control"
        assert "no version of TLS in common" in refusal(server.address(), ours.pin)
        with pytest.raises(ssl.SSLError):
            handshake(server.address(), client_context(ours.pem))


@needs_tls_1_1
def test_a_client_of_tls_1_1_is_refused(tmp_path: Path) -> None:
    context = server_context(tmp_path, NAMES, NOW_S)
    pem = (tmp_path / AUTHORITY_PUBLIC).read_bytes()
    with serving(context, pem) as server:
        with pytest.raises(ssl.SSLError) as caught:
            handshake(server.address(), only_tls_1_1(client_context(pem)))
        assert "no version of TLS in common" in explained(caught.value, server.address())


@pytest.mark.parametrize(
    ("offered", "status", "said"),
    [
        (b"no such page", 404, "status 404"),
        (b"", 302, "status 302"),
        (b"x" * 20_000, 200, "offers no authority's certificate"),
        (b"<html>Please log in to this network.</html>", 200, "is none"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", 200, "is none"),
    ],
)
def test_a_server_of_something_else_is_named(offered: bytes, status: int, said: str, tmp_path: Path) -> None:
    ours = Authority.new(NOW_S)
    with serving(context_of(tmp_path, ours, NAMES, NOW_S), offered, status) as server:
        assert said in refusal(server.address(), ours.pin)


def test_a_port_where_nobody_listens_is_named() -> None:
    with serving(None, b"") as server:
        address = server.address()
    assert "nothing listens there" in refusal(address, "A" * 43)


def test_a_certificate_that_is_none_is_refused_before_anything_is_trusted() -> None:
    for wrong in (b"", b"\xff", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"):
        with pytest.raises(IdentityError, match="expected a certificate in PEM"):
            client_context(wrong)
    assert not ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ca_certs()
    assert len(client_context(Authority.new(NOW_S).pem).get_ca_certs()) == 1, "and nobody that the system trusts"
