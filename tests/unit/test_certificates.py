"""The server's certificates: for its names, renewed in time, under one authority that stays; and its addresses."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from roundelay.deployment.trust.address import Address, join_line
from roundelay.deployment.trust.certificates import (
    AUTHORITY_PUBLIC,
    AUTHORITY_SECRET,
    RENEW_DAYS,
    SERVER_DAYS,
    SERVER_SECRET,
    Authority,
    checked_names,
    server_certificate,
    server_context,
)
from roundelay.deployment.trust.identity import write_secret
from roundelay.errors import IdentityError

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


def leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_server_is_known_under_its_names_and_addresses(tmp_path: Path) -> None:
    path = server_certificate(tmp_path, ["FL.example.org.", "192.0.2.7", "2001:DB8::0:7", "fl.example.org"], NOW_S)
    certificate, authority = leaf(path), Authority.open(tmp_path, NOW_S)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "2001:db8::7"]
    certificate.verify_directly_issued_by(authority.certificate)
    now = datetime.fromtimestamp(NOW_S, UTC)
    assert certificate.not_valid_before_utc == now - timedelta(days=7)
    assert certificate.not_valid_after_utc == now + timedelta(days=SERVER_DAYS)
    assert authority.pem == (tmp_path / AUTHORITY_PUBLIC).read_bytes()


def test_a_certificate_is_renewed_in_time_and_for_new_names_while_the_pin_stays(tmp_path: Path) -> None:
    def serial(names: list[str], days: float) -> int:
        return leaf(server_certificate(tmp_path, names, NOW_S + days * DAY_S)).serial_number

    pin = Authority.open(tmp_path, NOW_S).pin
    first = serial(["a.org", "b.org"], 0)
    assert serial(["b.org", "a.org"], SERVER_DAYS - RENEW_DAYS) == first
    second = serial(["a.org", "b.org"], SERVER_DAYS - RENEW_DAYS + 1)
    assert second != first
    third = serial(["a.org"], SERVER_DAYS - RENEW_DAYS + 1)
    assert third not in (first, second)
    Authority.new(NOW_S)._save(tmp_path)
    assert serial(["a.org"], SERVER_DAYS - RENEW_DAYS + 1) != third, "it was another authority's"
    assert Authority.open(tmp_path, NOW_S).pin != pin


def test_an_authority_that_ran_out_says_what_to_do(tmp_path: Path) -> None:
    authority = Authority.new(NOW_S, days=30)
    authority._save(tmp_path)
    certificate = leaf(server_certificate(tmp_path, ["a.org"], NOW_S))
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(IdentityError, match=r"ran out on .* new join lines"):
        server_context(tmp_path, ["a.org"], NOW_S + 31 * DAY_S)


def test_certificates_that_are_damaged_or_do_not_belong_together_are_named(tmp_path: Path) -> None:
    server_certificate(tmp_path, ["a.org"], NOW_S)
    right = (tmp_path / AUTHORITY_SECRET).read_bytes()
    key, certificate = right.split(b"-----BEGIN CERTIFICATE-----")
    other = Authority.new(NOW_S)
    for wrong in (key, certificate, b"", key + other.pem, right[:200]):
        write_secret(tmp_path / AUTHORITY_SECRET, wrong)
        with pytest.raises(IdentityError, match="restore it from a copy"):
            server_certificate(tmp_path, ["a.org"], NOW_S)
    write_secret(tmp_path / AUTHORITY_SECRET, right)
    (tmp_path / SERVER_SECRET).chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        server_certificate(tmp_path, ["a.org"], NOW_S)


@pytest.mark.parametrize(
    "names",
    [[], "a.org", ["https://a.org"], ["a.org:8443"], ["a b"], ["*.org"], ["1.2.3.400"], ["é.org"], ["a..b"], [""]],
)
def test_names_that_no_server_has_are_refused(names: list[str]) -> None:
    with pytest.raises(IdentityError, match=r"names|neither a host name"):
        checked_names(names)


def test_addresses_of_servers() -> None:
    assert Address.of("https://fl.example.org:8443/") == Address("fl.example.org", 8443)
    assert Address.of("https://[2001:db8::7]") == Address("2001:db8::7", 443)
    assert str(Address.of("https://[2001:db8::7]:1")) == "https://[2001:db8::7]:1"
    assert join_line(Address("h", 1), "P", "T") == "roundelay join https://h:1 --token T --pin P"
    assert join_line(Address("h", 1, secured=False), None) == "roundelay join http://h:1 --insecure"
    for wrong in ("http://h:1", "h:1", "https://", "https://h:0", "https://h:99999", "https://u:p@h", "https://h/x",
                  "https://h?x", "https://[h", "https://h:x"):  # fmt: skip
        with pytest.raises(IdentityError, match="expected an address as"):
            Address.of(wrong)
