"""Fetching a task's data: from a server of this machine, whole or not at all, and nothing outside its folder."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from roundelay import tasks
from roundelay.cli import app
from roundelay.errors import ConfigError, DataError
from roundelay.tasks.fetching import Source, fetch

PLAIN = bytes(range(256)) * 20_000  # 5 MB: several pieces
SHA256 = hashlib.sha256(PLAIN).hexdigest()


def tar(members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return packed.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


class Server:
    """Serves ``pages`` and counts who asked for what; one that is cut says it has more than it sends."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.pages.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if self.path in outer.cut else content)

            def log_message(self, *given: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def quiet(source: Source, so_far: int, total: int | None) -> None: ...


def there(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# ---- what comes -----------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    server.pages["/deep/a.bin"] = PLAIN
    source = Source(url=f"{server.url}/deep/a.bin", file="raw/a.bin", sha256=SHA256)
    seen: list[tuple[int, int | None]] = []
    came = fetch([source], tmp_path / "new", "", lambda source, so_far, total: seen.append((so_far, total)))
    assert came == [tmp_path / "new" / "raw" / "a.bin"]
    assert there(tmp_path / "new") == {"raw/a.bin": PLAIN}
    assert seen[-1] == (len(PLAIN), len(PLAIN))
    assert len(seen) > 2
    assert fetch([source], tmp_path / "new", "", quiet) == []
    assert server.asked == ["/deep/a.bin"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_unpacked_and_what_its_folder_holds_lies_in_the_tasks(
    kind: str, server: Server, tmp_path: Path
) -> None:
    members = {"top/a.bin": b"a", "top/deep/b.bin": b"b" * 9, "other.txt": b"left out"}
    server.pages["/all"] = tar(members) if kind == "tar" else zipped(members)
    source = Source(url=f"{server.url}/all", file="a.bin", unpack=kind, inside="top")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "half.bin").write_bytes(b"of a fetch that was interrupted")
    assert fetch([source], tmp_path, "", quiet) == [tmp_path / "a.bin"]
    assert there(tmp_path) == {"a.bin": b"a", "deep/b.bin": b"b" * 9}
    assert fetch([source], tmp_path, "", quiet) == []
    whole = Source(url=f"{server.url}/all", file="top/deep/b.bin", unpack=kind)
    fetch([whole], tmp_path / "whole", "", quiet)
    assert there(tmp_path / "whole") == members


def test_what_is_looked_for_comes_last_so_that_half_of_an_archive_is_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/all"] = tar({f"{letter}.bin": letter.encode() for letter in "abc"})
    source = Source(url=f"{server.url}/all", file="b.bin", unpack="tar")
    left = [2]

    def fails(entry: Path, place: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the disk is full")
        entry.replace(place)

    monkeypatch.setattr("roundelay.tasks.fetching._put", fails)
    with pytest.raises(DataError, match="the disk is full"):
        fetch([source], tmp_path, "", quiet)
    assert set(there(tmp_path)) == {"a.bin", "c.bin"}
    monkeypatch.undo()
    fetch([source], tmp_path, "", quiet)
    assert set(there(tmp_path)) == {"a.bin", "b.bin", "c.bin"}


# ---- what does not --------------------------------------------------------------------------------------------------


def refused(source: Source, folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch([source], folder, "put a.bin into data/a", quiet)
    assert there(folder) == {}, "nothing stays of what was refused"
    assert list(folder.iterdir()) == []


def test_a_download_that_breaks_off_is_not_taken_for_a_file(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"], server.cut = PLAIN, {"/a.bin"}
    refused(
        Source(url=f"{server.url}/a.bin", file="a.bin"), tmp_path, r"/a\.bin: it broke off after \d+ of 5120000 bytes"
    )


def test_a_file_of_another_digest_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.pages["/a.bin"] = PLAIN[:-1] + b"!"
    source = Source(url=f"{server.url}/a.bin", file="a.bin", sha256=SHA256)
    refused(source, tmp_path, rf"/a\.bin: expected a file of SHA-256 {SHA256}, got [0-9a-f]+; it was changed")


def test_without_a_network_or_a_page_the_url_is_named_and_what_to_put_by_hand(server: Server, tmp_path: Path) -> None:
    gone = r"cannot fetch http://127\.0\.0\.1:\d+/gone: .*404.*by hand: put a\.bin into data/a"
    refused(Source(url=f"{server.url}/gone", file="a.bin"), tmp_path, gone)
    nobody = r"cannot fetch http://127\.0\.0\.1:9/a: .*by hand: put a\.bin into data/a"
    refused(Source(url="http://127.0.0.1:9/a", file="a.bin"), tmp_path, nobody)


def link_out(info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.SYMTYPE, "/etc"


def device(info: tarfile.TarInfo) -> None:
    info.type = tarfile.CHRTYPE


def with_a_bad_one(name: str, change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> bytes:
    """Return an archive that has what is wanted, and then something else."""
    return tar({"a.bin": b"a", name: b"x"}, lambda info: change(info) if info.name == name else None)


ESCAPES = {
    "up": with_a_bad_one("../../../escaped.bin"),
    "up from within": with_a_bad_one("x/../../../../escaped.bin"),
    "a link out": with_a_bad_one("link", link_out),
    "a device": with_a_bad_one("device", device),
}


@pytest.mark.parametrize("content", ESCAPES.values(), ids=ESCAPES)
def test_a_tar_archive_does_not_leave_its_folder(content: bytes, server: Server, tmp_path: Path) -> None:
    server.pages["/all"] = content
    refused(Source(url=f"{server.url}/all", file="a.bin", unpack="tar"), tmp_path / "in", r"/all: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["../../../escaped.bin", "/tmp/a.bin", "x/../../a.bin", "..\\a.bin"])
def test_a_zip_archive_does_not_leave_its_folder(name: str, server: Server, tmp_path: Path) -> None:
    server.pages["/all"] = zipped({"a.bin": b"a", name: b"x"})
    refused(Source(url=f"{server.url}/all", file="a.bin", unpack="zip"), tmp_path / "in", "would leave its folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_unpacks_to_more_than_a_disk_or_is_none_is_refused(
    kind: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tar if kind == "tar" else zipped
    source = Source(url=f"{server.url}/all", file="a.bin", unpack=kind)
    server.pages["/all"] = pack({"a.bin": b"\0" * 100_000})
    monkeypatch.setattr("roundelay.tasks.fetching.MOST_UNPACKED", 99_999)
    refused(source, tmp_path, r"/all: it holds more than 99,999 bytes")
    monkeypatch.setattr("roundelay.tasks.fetching.MOST_BYTES", 50)
    refused(source, tmp_path, r"/all: it holds more than 50 bytes")
    monkeypatch.undo()
    server.pages["/all"] = pack({f"{number}": b"" for number in range(5)})
    monkeypatch.setattr("roundelay.tasks.fetching.MOST_FILES", 4)
    refused(source, tmp_path, r"/all: it holds more than 4 files")
    server.pages["/all"] = b"<html>moved</html>"
    refused(source, tmp_path, r"cannot fetch .*/all: ")
    server.pages["/all"] = pack({"b.bin": b"x"})
    refused(source, tmp_path, r"/all: the archive has no a\.bin; has it changed\?")


def test_sources_that_mean_nothing_are_refused() -> None:
    for given, message in (
        ({"url": "file:///etc/passwd"}, "source url: expected one of http or https"),
        ({"unpack": "rar"}, 'source unpack: expected "tar" or "zip"'),
        ({"file": "../a"}, "expected a path inside the task's folder, got '../a'"),
        ({"inside": "/a"}, "expected a path inside the task's folder, got '/a'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Source(**{"url": "https://example.org/a", "file": "a", **given})


# ---- the command ----------------------------------------------------------------------------------------------------

TASK = """
num_rounds = 1
[data]
use = "mnist"
folder = "data/x"
[card]
title = "x"
data = "x"
put = "a.bin of x into data/x"
clients = "x"
model = "x"
metric = "accuracy"
reference = "x"
ours = "x"
page = "docs/tasks/x.md"
{sources}
"""


def test_the_command_fetches_into_the_tasks_folder_and_says_how_to_go_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/a.bin"] = PLAIN
    (tmp_path / "x.toml").write_text(
        TASK.format(sources=f'[[card.sources]]\nurl = "{server.url}/a.bin"\nfile = "a.bin"\nsha256 = "{SHA256}"')
    )
    (tmp_path / "y.toml").write_text(TASK.format(sources=""))
    monkeypatch.setattr("roundelay.tasks.resources.files", lambda package: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert ("source", f"{server.url}/a.bin") in tasks.told(tasks.card("x"))
    for arguments, folder in ((["x"], Path("data/x")), (["task:x", "--to", "elsewhere"], Path("elsewhere"))):
        shown = CliRunner().invoke(app, ["tasks", "fetch", *arguments])
        assert shown.exit_code == 0, shown.output
        assert there(folder) == {"a.bin": PLAIN}
        assert f"roundelay run task:x --data {folder}" in shown.output
    assert "all of it is there already: data/x" in CliRunner().invoke(app, ["tasks", "fetch", "x"]).output
    with pytest.raises(ConfigError, match="task 'y' has no source to fetch from; what to put where: "):
        CliRunner().invoke(app, ["tasks", "fetch", "y"], catch_exceptions=False)
