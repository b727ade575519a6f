"""A large model over connections that are cut, and over which bytes come changed: what arrives is what was sent, and of
what had arrived before hardly anything is sent again.

A real front and a real agent, over a proxy on loopback, with TLS and without. Under TLS a changed byte ends the
connection. Without it the signature of a part finds it, and of a model its digest.
"""

import hashlib
import random
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import Harm, Party, Proxy, answered, beside, is_doubled, model, over
from aiohttp import web
from figures import Figures
from fronts import place, within
from journals import quick_folder

from roundelay.deployment.device import delivery, link
from roundelay.deployment.device.download import Download
from roundelay.deployment.device.link import Link
from roundelay.deployment.front import desk
from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.uploads import Uploads
from roundelay.deployment.trust.certificates import Authority, server_context
from roundelay.deployment.trust.pinning import client_context
from roundelay.errors import WireError


@dataclass(frozen=True)
class Size:
    """``num_values`` of float32, in chunks of so many bytes, over so many cuts, and so many changed bytes each way."""

    num_values: int
    chunk_bytes: int
    num_cuts: int
    num_flips: int


SMALL, LARGE = Size(1_000_000, 256 * 1024, 4, 4), Size(64 * 2**20, 8 * 2**20, 20, 20)


@dataclass
class Carried:
    """What a transfer took: the parts of the answer that the device began to send, those that the journal has written,
    and how many bytes of the model the front has sent and the device has taken.
    """

    size: int
    size_of_answer: int = 0
    num_begun: int = 0
    num_written: int = 0
    bytes_written: int = 0
    bytes_sent: int = 0
    bytes_came: int = 0
    num_cut: int = 0
    num_flipped: int = 0
    num_connections: int = 0
    seconds: float = 0.0


@contextmanager
def counting(carried: Carried) -> Iterator[None]:
    """Count what passes the device, the front and the journal."""
    put, write, prepare, came = Link.put_part, Uploads.write, web.StreamResponse.prepare, Download.write

    async def begun(self: Link, *part: Any) -> Any:
        carried.num_begun += 1
        return await put(self, *part)

    def written(self: Uploads, client: str, digest: str, offset: int, data: Sequence[bytes]) -> int:
        end = write(self, client, digest, offset, data)
        carried.num_written += 1
        carried.bytes_written += end - offset
        return end

    async def prepared(self: web.StreamResponse, request: web.BaseRequest) -> Any:
        writer = await prepare(self, request)
        assert writer is not None
        send = writer.write

        async def sent(data: bytes) -> None:
            carried.bytes_sent += len(data)
            await send(data)

        writer.write = sent  # type: ignore[method-assign,assignment]
        return writer

    def arrived(self: Download, data: bytes) -> None:
        carried.bytes_came += len(data)
        came(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "put_part", begun)
        patch.setattr(Uploads, "write", written)
        patch.setattr(web.StreamResponse, "prepare", prepared)
        patch.setattr(Download, "write", arrived)
        yield


def carry(
    size: Size, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None, up: Sequence[Harm], down: Sequence[Harm]
) -> Carried:
    """Bring a model to a device and its answer back, over these harms; return what it took. Both are right."""
    server, client = tls or (None, None)
    data = model(size.num_values)
    carried = Carried(len(data))
    with (
        quick_folder() as root,
        quick_folder() as folder,
        pytest.MonkeyPatch.context() as patch,
        place(root=Path(root), members="a", tls=server, max_answer_bytes=2 * len(data)) as here,
        counting(carried),
    ):
        for module in (delivery, link):
            patch.setattr(module, "PART_BYTES", size.chunk_bytes)
        digest = here.open_round(1, "a", 1, data)
        del data

        async def play() -> None:
            async with Proxy(here.port, up=up, down=down) as proxy:
                party = Party.of(here, Path(folder), port=proxy.port, tls=client)

                async def script() -> None:
                    await answered(here, 1)
                    over(here)

                begun_s = time.process_time()
                await beside(party.take_part(), script, timeout_s=400)
                carried.seconds = time.process_time() - begun_s
                carried.num_cut, carried.num_flipped = proxy.num_cut, proxy.num_flipped
                carried.num_connections = proxy.num_connections

        within(play(), 400)
        with (Path(folder) / "models" / digest).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest, "the device has another model"
        assert is_doubled(here, 1, size.num_values), "another answer came"
        carried.size_of_answer = sum(update.size for update in here.journal.updates())
    assert (carried.num_cut, carried.num_flipped) == (
        sum(harm.is_cut for harm in [*up, *down]), sum(not harm.is_cut for harm in [*up, *down])
    ), "not all harm was done"  # fmt: skip
    return carried


def harms(size: Size, cuts: int, flips: int, draw: random.Random) -> list[Harm]:
    """Draw where a transfer of a model is harmed: once in each of as many stretches, and not at its very end."""
    kinds = [True] * cuts + [False] * flips
    draw.shuffle(kinds)
    stretch = 4 * size.num_values / len(kinds)
    return [Harm(int((number + draw.uniform(0.1, 0.9)) * stretch), is_cut) for number, is_cut in enumerate(kinds)]


def secured(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    now_s = time.time()
    server = server_context(folder / "server", ["127.0.0.1"], now_s)
    return server, client_context(Authority.open(folder / "server", now_s).pem)


def check_breaks(folder: Path, size: Size, seed: int) -> Carried:
    """Over TLS, where cuts and changed bytes alike end a connection."""
    draw = random.Random(seed)
    up, down = (harms(size, size.num_cuts, size.num_flips, draw) for _ in range(2))
    carried = carry(size, secured(folder), up, down)
    again = carried.num_begun - carried.num_written
    assert again <= 2 * len(up), f"{again} parts were sent again for {len(up)} broken connections"
    assert carried.bytes_written == carried.size_of_answer, "parts were written twice"
    again = carried.bytes_sent - carried.size
    assert 0 <= again <= 2 * len(down) * size.chunk_bytes, f"{again} bytes of the model were sent again"
    assert carried.bytes_came == carried.size, "the device took bytes twice"
    return carried


def check_changed(size: Size, seed: int) -> Carried:
    """Without TLS: a part that came changed is sent again, and a model that did is fetched anew, once for all that was
    changed on the way.
    """
    draw = random.Random(seed)
    up, down = (harms(size, 0, size.num_flips, draw) for _ in range(2))
    carried = carry(size, None, up, down)
    again = carried.num_begun - carried.num_written
    assert again <= 2 * len(up), f"{again} parts were sent again for {len(up)} changed bytes"
    assert carried.bytes_written == carried.size_of_answer, "parts were written twice"
    assert carried.bytes_came <= 2 * carried.size, "the model was fetched more than once anew"
    return carried


def note(figures: Figures, size: Size, carried: Carried) -> None:
    figures("model and answer, each", carried.size / 2**20, "MiB")
    figures("cut connections", carried.num_cut)
    figures("changed bytes", carried.num_flipped)
    figures("connections", carried.num_connections)
    figures("parts of the answer sent again", carried.num_begun - carried.num_written)
    figures("bytes of the model sent again, in chunks", (carried.bytes_sent - carried.size) / size.chunk_bytes)
    figures("CPU time of both sides and the proxy", carried.seconds, "s")


def test_a_model_comes_over_broken_connections_and_so_does_its_answer(tmp_path: Path, figures: Figures) -> None:
    note(figures, SMALL, check_breaks(tmp_path, SMALL, 0))


def test_changed_bytes_are_found_without_tls(figures: Figures) -> None:
    note(figures, SMALL, check_changed(SMALL, 0))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_256_mib_come_over_broken_connections(tmp_path: Path, figures: Figures, chaos_seed: int) -> None:
    note(figures, LARGE, check_breaks(tmp_path, LARGE, chaos_seed))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_changed_bytes_of_256_mib_are_found_without_tls(figures: Figures, chaos_seed: int) -> None:
    note(figures, LARGE, check_changed(LARGE, chaos_seed))


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def test_an_upload_that_begins_anew_after_each_break_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Uploads.begin

    def forgetful(self: Uploads, client: str, digest: str, size: int) -> int:
        self.drop(client)
        return begin(self, client, digest, size)

    monkeypatch.setattr(Uploads, "begin", forgetful)
    with pytest.raises(AssertionError, match="parts were written twice"):
        check_breaks(tmp_path, SMALL, 0)


def test_a_download_that_begins_anew_after_each_break_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Download, "_take_up", Download._begin_anew)
    with pytest.raises(AssertionError, match=r"sent again|took bytes twice"):
        check_breaks(tmp_path, SMALL, 0)


def test_parts_whose_own_digest_nobody_checks_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "check_body", lambda claim, digest: None)
    with pytest.raises(AssertionError, match=r"written twice|sent again"):
        check_changed(SMALL, 0)


def test_a_model_whose_digest_the_device_does_not_check_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Download, "check", lambda self: None)
    with pytest.raises(AssertionError, match="another model"):
        check_changed(SMALL, 0)


def test_an_answer_whose_digest_nobody_checks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    promote = Blobs.promote
    monkeypatch.setattr(desk, "check_body", lambda claim, digest: None)
    monkeypatch.setattr(Blobs, "promote", lambda self, part, digest, written=None: promote(self, part, digest, digest))
    with pytest.raises(WireError, match="damaged"):
        check_changed(SMALL, 0)
