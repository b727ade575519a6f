"""Names from elsewhere that would become paths: none leaves its folder, and what lies around it stays as it was."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from figures import Figures

from roundelay.deployment.device import device
from roundelay.deployment.device.device import Device
from roundelay.deployment.trust import identity, kits
from roundelay.deployment.trust.identity import checked_name
from roundelay.deployment.trust.kits import provision
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import ConfigError, DataError, IdentityError
from roundelay.hosting.tasks import folder_of
from roundelay.simulation.memory import Disk
from roundelay.tasks import fetching
from roundelay.tasks.fetching import Source

NAMES = (
    "", ".", "..", "../x", "../../x", "a/../../x", "/x", "//x", "/etc/passwd", "~", "~/x", "~root/x", "./x", "x/",
    "x/.", "x/..", "..\\x", "a\\..\\..\\x", "C:\\x", "C:x", "c:/x", "\\\\server\\share\\x", "\\\\?\\C:\\x",
    "file:///x", "x\0", "\0", "x\0/../y", "x\n", "\n../x", "x\r", "x\t", " x", "x ", "-rf", "--help", ".hidden",
    "...", "....", ". .", "..;/x", "%2e%2e/x", "..%2fx", "%2e%2e%2fx", "..%c0%afx", "\uff0e\uff0e/x",
    "\uff0e\uff0e\uff0fx", "\u2025/x", "\u2024\u2024/x", "\u2215x", "\u202e/x", "é", "e\u0301", "\u212a", "ﬁ",
    "$(touch x)", "`touch x`", "|x", "x;y", "*", "?", "NUL:", "con.txt ", "x" * 65, "x" * 5_000, "a/b", "link/x",
    "\ud800",
)  # fmt: skip
"""Of another folder, of another system, of another spelling, too long, or no names at all."""

Taker = Callable[[Path, str], object]
REFUSED = (IdentityError, ConfigError, DataError)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        for path in folder.rglob("*")
    }


def joins(inside: Path, name: str) -> None:
    with Device(inside) as own:
        own.join(name, "https://a:1")


def turns(inside: Path, name: str) -> None:
    """A device hears the name of a run; this is what its agent does with it."""
    with Device(inside) as own:
        own.memories.turn_to(checked_name(name, "run"))


def provisions(inside: Path, name: str) -> None:
    provision(inside / "kits", ["a.org"], [name], now_s=0.0)


def invites(inside: Path, name: str) -> None:
    Roster(inside / "roster.json").invite(name, 10.0, 0.0)


def unpacks(inside: Path, name: str, kind: str) -> None:
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as packed:
            packed.writestr(name.partition("\0")[0] or "Q", b"in an archive")
    else:
        with tarfile.open(fileobj=content, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.type = {"tar": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
                          "device": tarfile.CHRTYPE}[kind]  # fmt: skip
            entry.linkname = "../../outside" if kind in ("symlink", "hardlink") else ""
            tar.addfile(entry)
    archive, into = inside / "archive", inside / "into"
    raw = content.getvalue()
    archive.write_bytes(raw if name.partition("\0")[0] else raw.replace(b"Q", b"\0"))  # zipfile writes no empty name
    into.mkdir(exist_ok=True)
    (fetching._unzip if kind == "zip" else fetching._untar)(archive, into, "http://x")


def fetches(inside: Path, name: str) -> None:
    Source(url="http://a/b", file=name)


def lives(inside: Path, name: str) -> None:
    """A script's folder: any name makes one of its own, beside the others."""
    assert folder_of(inside, name).resolve().parent == inside.resolve()


def remembers(inside: Path, name: str) -> None:
    Disk(inside / "memory").write(name, {})


TAKERS: dict[str, Taker] = {
    "a device's name": joins, "a run's name": turns, "a kit's site": provisions, "an invited client": invites,
    "a script's folder": lives, "a client's memory": remembers, "a task's file": fetches,
    **{f"an archive's {kind}": lambda inside, name, kind=kind: unpacks(inside, name, kind)
       for kind in ("zip", "tar", "symlink", "hardlink", "device")},
}  # fmt: skip
THERE = (FileExistsError, IsADirectoryError, NotADirectoryError)
UNSENDABLE = ("", "x\0", "\0", "x\0/../y", "\ud800", "x" * 5_000)
"""What no file system takes at all; a script's folder, an archive and a memory need no words of their own for these."""


def escapes(folder: Path, take: Taker, names: Sequence[str] = NAMES) -> tuple[int, list[str]]:
    """Give a taker all names, each in a folder of its own; return how many it refused, and which got out or were
    answered with an error that is not meant.
    """
    num_refused, wrong = 0, []
    outside = folder / "outside"
    outside.write_bytes(b"as it was")
    for number, name in enumerate(names):
        inside = folder / str(number) / "inside"
        inside.mkdir(parents=True)
        (inside / "link").symlink_to(folder, target_is_directory=True)
        before = {path: what for path, what in tree(folder).items() if not path.startswith(f"{number}/inside/")}
        try:
            take(inside, name)
        except (*REFUSED, tarfile.TarError):
            num_refused += 1
        except (OSError, ValueError) as error:
            num_refused += 1
            if name not in UNSENDABLE and not isinstance(
                error, FileExistsError | IsADirectoryError | NotADirectoryError
            ):
                wrong.append(f"{name[:40]!r}: {error!r}")
        after = {path: what for path, what in tree(folder).items() if not path.startswith(f"{number}/inside/")}
        if before != after:
            wrong.append(f"{name[:40]!r} got out: {sorted(set(after) ^ set(before)) or 'changed'}")
    return num_refused, wrong


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_no_name_gets_out(take: Taker, tmp_path: Path, figures: Figures) -> None:
    num_refused, wrong = escapes(tmp_path, take)
    figures("names", len(NAMES))
    figures("refused, the others stayed inside", num_refused)
    assert len(NAMES) >= 60
    assert not wrong, wrong[:5]


def names_as_they_come(patch: pytest.MonkeyPatch) -> None:
    for module in (identity, kits, device):
        patch.setattr(module, "checked_name", lambda name, what="client": name)


def links_followed(patch: pytest.MonkeyPatch) -> None:
    extract = tarfile.TarFile.extract
    patch.setattr(tarfile.TarFile, "extract", lambda self, member, into, filter: extract(self, member, into))


@pytest.mark.parametrize(
    ("plant", "name"), [(names_as_they_come, "a kit's site"), (links_followed, "an archive's tar")]
)
def test_the_names_catch(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert escapes(tmp_path, TAKERS[name], ["../../x", "../../../../x"])[1]  # none that would get further than that
