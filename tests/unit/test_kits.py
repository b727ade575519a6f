"""Kits: what a site gets lets it join, and nothing else; all of them are written, or none."""

import stat
from pathlib import Path

import pytest

from roundelay.deployment.trust import kits
from roundelay.deployment.trust.certificates import Authority
from roundelay.deployment.trust.identity import DeviceKey, encode
from roundelay.deployment.trust.kits import provision
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import IdentityError

NOW_S = 1_800_000_000.0
NAMES, SITES = ["fl.example.org", "192.0.2.7"], ["north", "south"]


def modes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*")}


def test_a_kit_lets_its_site_join(tmp_path: Path) -> None:
    folder = tmp_path / "kits"
    provision(folder, NAMES, SITES, now_s=NOW_S)
    roster = Roster(folder / "server" / "roster.json")
    authority = Authority.open(folder / "server", NOW_S)
    for site in SITES:
        kit = folder / "sites" / site
        token = (kit / "token").read_text().strip()
        assert (kit / "join.txt").read_text() == (
            f"roundelay join https://fl.example.org:8443 --token {token} --pin {authority.pin}\n"
        )
        assert (kit / "authority.crt").read_bytes() == authority.pem
        assert roster.enrol(token, DeviceKey.new().public, NOW_S + 29 * 86_400) == site
        readme = (kit / "README.md").read_text()
        assert authority.pin in readme
        assert "port 8443" in readme
        assert token not in readme
    assert "fl.example.org" in (folder / "server" / "README.md").read_text()


def test_a_kit_can_bring_its_key(tmp_path: Path) -> None:
    provision(tmp_path / "kits", NAMES, SITES, now_s=NOW_S, port=443, with_keys=True)
    kit = tmp_path / "kits" / "sites" / "south"
    roster = Roster(tmp_path / "kits" / "server" / "roster.json")
    assert roster.public_key("south") == DeviceKey.load(kit / "device.key").public != roster.public_key("north")
    assert not (kit / "token").exists()
    assert not (kit / "join.txt").exists()
    assert "one-time token" not in (kit / "README.md").read_text()


@pytest.mark.parametrize("with_keys", [False, True])
def test_secrets_are_for_their_owner_and_for_their_own_site(with_keys: bool, tmp_path: Path) -> None:
    folder = tmp_path / "kits"
    provision(folder, NAMES, SITES, now_s=NOW_S, with_keys=with_keys)
    of_site = "device.key" if with_keys else "token"
    secret = {"server/authority.key", "server/server.key", "server/roster.json", "server/.roster.json.lock"}
    secret |= {
        f"sites/{site}/{name}" for site in SITES for name in ((of_site,) if with_keys else (of_site, "join.txt"))
    }
    found = modes(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {name for name, mode in found.items() if not mode & 0o077 and (folder / name).is_file()} == secret
    said = [path.read_text() for path in folder.rglob("README.md")]
    for site in SITES:
        other = "north" if site == "south" else "south"
        # A line of a PEM, or the token, stands in this site's secrets only.
        text = (folder / "sites" / site / of_site).read_text().splitlines()[1 if with_keys else 0]
        assert len(text) > 40
        elsewhere = [p for part in ("server", f"sites/{other}") for p in (folder / part).iterdir()]
        assert not [p for p in elsewhere if text in p.read_text()]
        assert not [one for one in said if text in one]


@pytest.mark.parametrize("inside", ["notes.txt", "server", ".hidden"])
def test_nothing_is_overwritten(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / "kits"
    folder.mkdir()
    (folder / inside).write_text("mine")
    with pytest.raises(IdentityError, match="never overwritten"):
        provision(folder, NAMES, SITES, now_s=NOW_S)
    assert [path.name for path in tmp_path.rglob("*")] == ["kits", inside]
    (folder / inside).unlink()
    provision(folder, NAMES, SITES, now_s=NOW_S)
    with pytest.raises(IdentityError, match="never overwritten"):
        provision(folder, NAMES, SITES, now_s=NOW_S)
    with pytest.raises(IdentityError, match="never overwritten"):
        provision(folder / "server" / "server.key", NAMES, SITES, now_s=NOW_S)


def test_the_line_says_the_name_as_the_certificate_does(tmp_path: Path) -> None:
    provision(tmp_path / "a", ["FL.Example.org."], ["north"], now_s=NOW_S)
    assert "https://fl.example.org:8443 " in (tmp_path / "a" / "sites" / "north" / "join.txt").read_text()
    provision(tmp_path / "b", ["2001:DB8::7"], ["north"], now_s=NOW_S, port=443)
    assert "https://[2001:db8::7]:443 " in (tmp_path / "b" / "sites" / "north" / "join.txt").read_text()


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kits, "_server_readme", full)
    with pytest.raises(IdentityError, match="No space left"):
        provision(tmp_path / "kits", NAMES, SITES, now_s=NOW_S)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "sites", "port"),
    [
        ([], SITES, 1), (["https://x"], SITES, 1), (NAMES, [], 1), (NAMES, ["a", "a"], 1), (NAMES, ["../a"], 1),
        (NAMES, ["a/b"], 1), (NAMES, [encode(b"x" * 60)], 1), (NAMES, SITES, 0), (NAMES, SITES, 70_000),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    names: list[str], sites: list[str], port: int, tmp_path: Path
) -> None:
    with pytest.raises(IdentityError):
        provision(tmp_path / "kits", names, sites, now_s=NOW_S, port=port)
    with pytest.raises(IdentityError, match="valid for some seconds"):
        provision(tmp_path / "kits", NAMES, SITES, now_s=NOW_S, token_days=0)
    assert not list(tmp_path.iterdir())
