"""What a front answers to those who may ask, over real sockets and a real journal."""

import asyncio
import time
from collections.abc import Callable

import pytest
from fronts import DAY_S, MODEL, RUN, Device, Place, Said, joining, part_of, place, waits, within
from journals import sha256

from roundelay.deployment import protocol as p
from roundelay.deployment.board import Phase
from roundelay.deployment.front.desk import Desk
from roundelay.deployment.front.polls import Polls
from roundelay.deployment.front.problems import STATUS
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import TaskState, Verdict
from roundelay.deployment.journal.uploads import Uploads
from roundelay.deployment.trust.identity import DeviceKey

ANSWER = bytes(range(256)) * 40
ACCEPTED = p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)


def test_a_small_model_comes_with_its_offer_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def offered(device: Device, having: list[str] | None) -> tuple[p.Offer, bytes]:
        said = await device.ask("POST", p.WORK, p.Poll(having=having))
        head, _, model = said.body.partition(b"\n")
        return p.Offer.model_validate_json(head), model

    async def go() -> None:
        async with Device.of(here) as device:
            digest = here.open_round()
            offer, model = await offered(device, [])
            assert offer.enclosed
            assert model == MODEL
            for having in ([digest], None):
                offer, model = await offered(device, having)
                assert (offer.enclosed, offer.sent, model) == (False, digest, b"")
            monkeypatch.setattr(p, "ENCLOSED_BYTES", len(MODEL) - 1)
            assert not (await offered(device, []))[0].enclosed, "that would be long to wait for"

    with place() as here:
        within(go())


def test_an_answer_in_one_part_need_not_be_announced_and_one_in_several_must_be() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            here.open_round()
            said = await device.part(1, ANSWER, 0, 4_000)
            assert "announce it first" in said.json()["message"]
            assert (await device.part(1, ANSWER, 0, len(ANSWER))).receipt().settled == ACCEPTED
            again = (await device.part(1, ANSWER, 0, len(ANSWER))).receipt().settled
            assert again is not None
            assert (again.verdict, again.duplicate) == (Verdict.ACCEPTED, True)

    with place() as here:
        within(go())


def test_an_answer_in_one_part_is_held_to_what_answers_may_be() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            here.open_round()
            said = await device.part(1, ANSWER, 0, len(ANSWER))
            assert (said.status, said.json()["error"]) == (413, "too_large")

    with place(max_answer_bytes=len(ANSWER) - 1) as here:
        within(go())


def test_a_task_goes_its_way() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            said = await device.ask("GET", p.RUN)
            assert p.Briefing.model_validate_json(said.body).client == "a"
            assert (await device.poll()).status == 204
            digest = here.open_round()
            offer = p.Offer.model_validate_json((await device.poll(wait_s=5)).body)
            assert (offer.id, offer.round, offer.kind, offer.sent, offer.size) == (1, 1, "train", digest, len(MODEL))
            assert (await device.poll(1)).status == 204, "it has it already"
            assert (await device.ask("GET", f"{p.BLOBS}/{digest}")).body == MODEL
            assert (await device.deliver(1, ANSWER)).settled == ACCEPTED
            with here.journal.blobs.open(sha256(ANSWER)) as file:
                assert file.read() == ANSWER
            assert here.news == [None, 1]
            kept = here.journal.tasks.get(1)
            assert kept is not None
            assert kept.state is TaskState.RECEIVED
            assert (await device.poll()).status == 204

    with place() as here:
        within(go())


def test_a_device_joins_with_a_token_and_is_one_of_the_run() -> None:
    async def go() -> None:
        token = here.roster.open_door(["d", "e"], 2, DAY_S, time.time()).reveal()
        async with Device(here.url) as device:
            hello = p.Hello.model_validate_json((await device.send("GET", p.HELLO)).body)
            assert (hello.run, hello.protocol, hello.joining) == (RUN, p.PROTOCOL, True)
            for _ in range(2):  # the answer may be lost on the way
                said = await device.send("POST", p.JOIN, joining(token, device.key).model_dump_json().encode())
                assert p.Joined.model_validate_json(said.body) == p.Joined(client="d", run=RUN)
            device.client = "d"
            assert (await device.poll()).status == 204
            assert here.news == [None]
            assert here.board.is_present("d")
            for wrong, message in (
                (joining(token, DeviceKey.new(), "d"), "the name is taken"),
                (joining(token, DeviceKey.new(), "x"), "none of the 5 clients"),
                (joining("x" * 43, DeviceKey.new()), "not one that the server"),
                (joining("", DeviceKey.new(), "e"), "a token is needed"),
            ):
                said = await device.send("POST", p.JOIN, wrong.model_dump_json().encode())
                assert (said.status, said.error) == (403, "token")
                assert message in said.json()["message"]
                assert "x" * 43 not in said.json()["message"]
            said = await device.send("POST", p.JOIN, b'{"token": "", "public_key": "AA"}')
            assert (said.status, said.error) == (400, "message")
            other = DeviceKey.new()
            await device.send("POST", p.JOIN, joining(token, other, "e").model_dump_json().encode())
            hello = p.Hello.model_validate_json((await device.send("GET", p.HELLO)).body)
            assert not hello.joining

    with place(clients="abcde") as here:
        within(go())


def test_who_is_enrolled_since_a_former_run_comes_in_by_its_signature_where_it_is_a_client() -> None:
    async def go() -> None:
        for name in "xyz":
            here.roster.admit(name, (keys := here.keys).setdefault(name, DeviceKey.new()).public)
            assert keys
        async with Device.of(here, "x") as x, Device.of(here, "y") as y:
            assert (await x.poll()).status == 204
            said = await y.poll()
            assert (said.status, said.error) == (403, "token")
            assert "'y' is none of the 4 clients" in said.json()["message"]
            assert (await x.poll()).status == 204
        assert here.news == [None]

    with place(clients="abcx") as here:
        within(go())


# ---- waiting for work -----------------------------------------------------------------------------------------------


def poll_and(here: Place, meanwhile: Callable[[], object], *doing: int) -> Said:
    """Poll, do something once the poll waits, and return what was said."""

    async def go() -> Said:
        async with Device.of(here) as device:
            polling = asyncio.create_task(device.poll(*doing, wait_s=30))
            while not waits(here, "a"):
                await asyncio.sleep(0.001)
            meanwhile()
            return await polling

    said: Said = within(go(), 10.0)
    return said


def test_a_poll_waits_until_there_is_something() -> None:
    with place() as here:
        said = poll_and(here, lambda: here.open_round())
        assert p.Offer.model_validate_json(said.body).id == 1
        here.open_round(2, "b", first=20)
        said = poll_and(here, lambda: (here.board.post("b"), here.open_round(3, "a", first=30)), 1)
        assert p.Offer.model_validate_json(said.body).id == 30


def test_a_poll_ends_with_its_time_and_never_takes_so_long_that_its_client_is_lost() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            assert (await device.poll(wait_s=0.02)).status == 204
            assert (await device.poll(wait_s=60)).status == 204

    with place() as here:
        here.board.heartbeat_s = 0.005
        within(go(), 5.0)


def test_a_poll_is_told_that_the_run_is_over_or_about_to_stop() -> None:
    with place() as here:
        said = poll_and(here, lambda: here.board.turn(Phase.DRAINING, "Ctrl+C"))
        assert (said.status, said.error, said.headers["Retry-After"]) == (503, "draining", "5")
        assert here.front.told_over() == frozenset()
        here.board.turn(Phase.RUNNING)
        said = poll_and(here, lambda: here.board.turn(Phase.ENDED, "all 3 rounds are done"))
        assert (said.status, said.error) == (410, "over")
        assert "all 3 rounds are done" in said.json()["message"]
        assert here.front.told_over() == {"a"}


def test_a_client_that_hangs_up_waits_no_more() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            polling = asyncio.create_task(device.poll(wait_s=30))
            while not waits(here, "a"):
                await asyncio.sleep(0.001)
            polling.cancel()
        while here.front._polls._waiting:
            await asyncio.sleep(0.001)

    with place() as here:
        within(go(), 10.0)


def test_what_ends_says_so_everywhere() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            here.board.turn(Phase.ENDED, "done")
            for said in (
                await device.ask("GET", p.RUN), await device.poll(), await device.announce(1, ANSWER),
                await device.part(1, ANSWER, 0, 10),
                await device.send("POST", p.JOIN, joining("", device.key).model_dump_json().encode()),
            ):  # fmt: skip
                assert (said.status, said.error) == (410, "over")
            beaten = await device.ask("POST", p.BEAT, p.Beat(doing=[1]))
            assert p.Beaten.model_validate_json(beaten.body).over == [1]
            said = await device.send("GET", p.READY)
            assert (said.status, said.json()["phase"]) == (503, "ended")
            assert (await device.send("GET", p.HEALTH)).status == 200

    with place() as here:
        here.open_round()
        within(go())


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "first", "end"),
    [
        ([], 200, 0, None),
        ([("Range", "bytes=10-")], 206, 10, None),
        ([("Range", "bytes=10-19")], 206, 10, 20),
        ([("Range", "bytes=10-999999")], 206, 10, None),
        ([("Range", "bytes=-5")], 206, len(MODEL) - 5, None),
        ([("Range", "bytes=0-1,5-6")], 200, 0, None),
        ([("Range", "bytes=9-3")], 200, 0, None),
        ([("Range", "bytes=-")], 200, 0, None),
        ([("Range", "lines=1-2")], 200, 0, None),
        ([("Range", "bytes=10-19"), ("If-Range", f'"{sha256(MODEL)}"')], 206, 10, 20),
        ([("Range", "bytes=10-19"), ("If-Range", f'"{sha256(b"another")}"')], 200, 0, None),
        ([("If-None-Match", f'"{sha256(b"another")}"')], 200, 0, None),
    ],
)
def test_a_model_is_sent_from_where_it_was_cut(
    fields: list[tuple[str, str]], status: int, first: int, end: int | None
) -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            said = await device.ask("GET", f"{p.BLOBS}/{sha256(MODEL)}", fields=fields)
            assert (said.status, said.body) == (status, MODEL[first:end])
            assert said.headers["ETag"] == f'"{sha256(MODEL)}"'
            if status == 206:
                last = (end or len(MODEL)) - 1
                assert said.headers["Content-Range"] == f"bytes {first}-{last}/{len(MODEL)}"

    with place() as here:
        here.open_round()
        within(go())


def test_a_model_that_is_there_is_not_sent_again_and_none_beyond_its_end() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            path = f"{p.BLOBS}/{sha256(MODEL)}"
            for tag in (f'"{sha256(MODEL)}"', f'"x", W/"{sha256(MODEL)}"', "*"):
                said = await device.ask("GET", path, fields=[("If-None-Match", tag)])
                assert (said.status, said.body) == (304, b"")
            for wrong in (f"bytes={len(MODEL)}-", "bytes=-0"):
                said = await device.ask("GET", path, fields=[("Range", wrong)])
                assert (said.status, said.headers["Content-Range"]) == (416, f"bytes */{len(MODEL)}")

    with place() as here:
        here.open_round()
        within(go())


# ---- answers --------------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_was_cut_also_after_a_restart() -> None:
    async def begin() -> None:
        async with Device.of(here) as device:
            assert (await device.announce(1, ANSWER)).receipt().received == 0
            assert (await device.part(1, ANSWER, 0, 4_000)).receipt() == p.Receipt(received=4_000)
            assert (await device.part(1, ANSWER, 4_000, 100)).receipt() == p.Receipt(received=4_100)

    async def end() -> None:
        async with Device.of(here) as device:
            assert (await device.announce(1, ANSWER)).receipt().received == 4_100
            assert (await device.deliver(1, ANSWER, length=9_000)).settled == ACCEPTED

    with place() as first:
        here = first
        here.open_round()
        within(begin())
        here.server.stop(1.0)
        here.journal.close()
        with place(root=here.root, keys=here.keys) as again:
            here = again
            within(end())


def test_an_answer_counts_once() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            assert (await device.deliver(1, ANSWER)).settled == ACCEPTED
            again = p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=True)
            assert (await device.announce(1, ANSWER)).receipt() == p.Receipt(received=len(ANSWER), settled=again)
            assert (await device.part(1, ANSWER, 9_000, 5_000)).receipt().settled == again
            conflict = (await device.announce(1, b"other")).receipt().settled
            assert conflict == p.Settled(verdict=Verdict.CONFLICT, number=0, duplicate=False)
            assert (await device.part(1, b"other", 0, 5)).receipt().settled == conflict
        assert here.news == [None, 1]
        assert len(here.journal.updates()) == 1

    with place() as here:
        here.open_round()
        within(go())


def test_an_answer_that_nobody_waits_for_is_not_taken() -> None:
    async def go() -> None:
        async with Device.of(here) as a, Device.of(here, "b") as b:
            assert (await b.announce(2, ANSWER)).receipt().settled is None
            here.journal.rounds.close(1, 0, [])
            late = p.Settled(verdict=Verdict.LATE, number=0, duplicate=False)
            assert (await a.announce(1, ANSWER)).receipt().settled == late
            assert (await b.part(2, ANSWER, 0, 10)).receipt().settled == late
            beaten = await a.ask("POST", p.BEAT, p.Beat(doing=[1]))
            assert p.Beaten.model_validate_json(beaten.body).over == [1]
        assert not here.journal.updates()

    with place() as here:
        here.open_round()
        within(go())


def test_parts_come_in_order() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            said = await device.part(1, ANSWER, 0, 100)
            assert (said.status, said.error) == (409, "upload")
            assert "announce it first" in said.json()["message"]
            await device.announce(1, ANSWER)
            await device.part(1, ANSWER, 0, 100)
            for wrong in (0, 50, 200, len(ANSWER) - 100):
                said = await device.part(1, ANSWER, wrong, 100)
                assert (said.status, said.error, said.json()["received"]) == (409, "upload", 100)
            assert (await device.deliver(1, ANSWER)).settled == ACCEPTED

    with place() as here:
        here.open_round()
        within(go())


def test_an_answer_that_is_not_what_was_announced_is_removed() -> None:
    async def go() -> None:
        path, fields = part_of(1, ANSWER, 0, len(ANSWER))
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            said = await device.ask("PUT", path, ANSWER[::-1], round=1, fields=fields)
            assert (said.status, said.error) == (422, "digest")
            assert (await device.announce(1, ANSWER)).receipt().received == 0
            assert (await device.deliver(1, ANSWER)).settled == ACCEPTED

    with place() as here:
        here.open_round()
        within(go())


def test_sizes_that_lie() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            said = await device.announce(1, ANSWER, size=20_001)
            assert (said.status, said.error) == (413, "too_large")
            assert "20000" in said.json()["message"]
            assert not list((here.journal.folder / "incoming").iterdir())
            await device.announce(1, ANSWER, size=100)  # it has more
            said = await device.part(1, ANSWER, 0, 100)
            assert (said.status, said.error) == (409, "upload"), "its query names the true size"
            path = f"{p.UPDATES}/1?digest={sha256(ANSWER)}&offset=0&size=100"
            said = await device.ask("PUT", path, ANSWER, round=1, fields=[("Content-Range", "bytes 0-10239/100")])
            assert (said.status, said.error) == (400, "message")
            said = await device.ask("PUT", path, ANSWER[:100], round=1, fields=[("Content-Range", "bytes 0-99/100")])
            assert (said.status, said.error) == (422, "digest")
            await device.announce(1, ANSWER, size=20_000)  # it has less: it never comes to an end
            path = f"{p.UPDATES}/1?digest={sha256(ANSWER)}&offset=0&size=20000"
            said = await device.ask("PUT", path, ANSWER, round=1, fields=[("Content-Range", "bytes 0-10239/20000")])
            assert said.receipt() == p.Receipt(received=len(ANSWER))
            assert (await device.deliver(1, ANSWER)).settled == ACCEPTED

    with place(max_answer_bytes=20_000) as here:
        here.open_round()
        within(go())


@pytest.mark.parametrize(
    ("query", "fields", "error"),
    [
        ("", [], "message"),
        ("digest={d}&offset=0&size=10240&more=1", [], "message"),
        ("offset=0&digest={d}&size=10240", [], "message"),
        ("digest={d}&offset=0&offset=0&size=10240", [], "message"),
        ("digest={d}&offset=-1&size=10240", [], "message"),
        ("digest={d}&offset=0&size=10240", [], "message"),
        ("digest={d}&offset=0&size=10240", [("Content-Range", "bytes 1-100/10240")], "message"),
        ("digest={d}&offset=0&size=10240", [("Content-Range", "bytes 0-99/*")], "message"),
        ("digest={d}&offset=0&size=10240", [("Content-Range", "bytes 0-99/10240"), ("Content-Encoding", "gzip")],
         "message"),
    ],
)  # fmt: skip
def test_a_part_says_where_it_belongs_in_one_way(query: str, fields: list[tuple[str, str]], error: str) -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            path = f"{p.UPDATES}/1?{query.format(d=sha256(ANSWER))}"
            said = await device.ask("PUT", path.removesuffix("?"), ANSWER[:100], round=1, fields=fields)
            assert (said.status, said.error) == (STATUS[error], error)
            assert here.journal.uploads.received("a", sha256(ANSWER), len(ANSWER)) == 0

    with place() as here:
        here.open_round()
        within(go())


def test_a_task_that_cannot_be_done_is_lost_with_its_reason() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            for reason in ("no data", "other words"):
                said = await device.ask("POST", f"{p.FAILURES}/1", p.Failure(reason=reason, traceback="..."), round=1)
                assert said.status == 200
            kept = here.journal.tasks.get(1)
            assert kept is not None
            assert (kept.state, kept.reason, kept.traceback) == (TaskState.LOST, "no data", "...")
            assert 1 in here.news
            settled = (await device.announce(1, ANSWER)).receipt().settled
            assert settled is not None
            assert settled.verdict is Verdict.LATE

    with place() as here:
        here.open_round()
        within(go())


def test_scalars_reach_the_run() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            logged = [p.LoggedScalar(name="loss", value=0.5, step=3), p.LoggedScalar(name="loss", value=0.25, step=4)]
            assert (await device.ask("POST", p.SCALARS, p.Scalars(round=2, scalars=logged), round=2)).status == 200
        assert here.scalars == [("a", 2, "loss", 0.5, 3), ("a", 2, "loss", 0.25, 4)]

    with place() as here:
        within(go())


# ---- what is wrong --------------------------------------------------------------------------------------------------


def test_what_is_no_message_is_refused_and_never_a_bug() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            for body in (
                b"", b"{", b"[]", b"null", b"\xff", b'{"doing": [-1]}', b'{"doing": "1"}', b'{"wait_s": NaN}',
                b'{"doing": [' + b"9" * 9_000 + b"]}", b'{"doing": [99999999999999999999999]}', b'{"more": 1}',
                b'{"wait_s": 1e999}', b"[" * 100_000,
            ):  # fmt: skip
                said = await device.ask("POST", p.WORK, body)
                assert (said.status, said.error) == (400, "message"), body[:50]
                assert len(said.body) < 4_000
            said = await device.ask("POST", p.WORK, b" " * (p.MAX_MESSAGE_BYTES + 1))
            assert (said.status, said.error) == (413, "too_large")
            for path in ("/", "/v1/nothing", f"{p.UPDATES}/x", f"{p.UPDATES}/-1", f"{p.BLOBS}/..%2f..%2froster.json"):
                said = await device.ask("POST", path)
                assert (said.status, said.error) == (404, "not_found"), path
            said = await device.announce(10**18 * 9 + 10**18, ANSWER)
            assert (said.status, said.error) == (404, "not_found")
            said = await device.ask("DELETE", p.WORK)
            assert (said.status, said.error) == (405, "message")
            said = await device.ask("GET", p.RUN, b"a body")
            assert (said.status, said.error) == (400, "message")

    with place() as here:
        here.open_round()
        within(go())


def test_a_bug_of_the_server_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def broken(client: str) -> p.Briefing:
        raise RuntimeError("a secret of the server")

    async def go() -> None:
        async with Device.of(here) as device:
            said = await device.ask("GET", p.RUN)
            assert (said.status, said.json()) == (500, {"error": "internal"})

    with place(briefing=broken) as here:
        within(go())
    assert "a secret of the server" in caplog.text
    assert "Traceback" in caplog.text


def test_what_anybody_may_ask() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            await device.poll()
            said = await device.send("GET", "/authority.crt")
            assert (said.body, said.headers["Server"]) == (b"PEM", "roundelay")
            assert (await device.send("GET", p.READY)).json()["ready"] is True
            told = (await device.send("GET", p.STATS)).json()
            assert (told["run"], told["phase"], told["open_tasks"]) == (RUN, "running", 3)
            assert told["progress"] == {"left_out": 0, "rounds": {"loss": [0.5, None], "round": [1, 2]}}
            assert told["silent_s"].keys() == {"a"}
            assert told["requests"] == 4
            assert (await device.send("GET", p.OPENAPI)).json()["openapi"] == "3.1.0"

    with place() as here:
        here.open_round()
        within(go())


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def test_the_check_of_polls_catches_a_wake_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Polls, "_wake", lambda self, clients: None)
    with place() as here:
        here.board.heartbeat_s = 0.1  # so that it ends soon
        assert poll_and(here, lambda: here.open_round()).status == 204, "what the test above would have met"


def test_the_check_of_answers_catches_one_that_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "known_answer", lambda *_: None)
    with pytest.raises(AssertionError):
        test_an_answer_counts_once()


def test_the_check_of_orders_catches_a_part_that_is_taken_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    standing, write = Desk._standing, Uploads.write

    def planted(self: Desk, client: str, task_id: int, digest: str, size: int) -> p.Receipt | None:
        known = standing(self, client, task_id, digest, size)
        return known and known.model_copy(update={"received": AnyNumber()})

    monkeypatch.setattr(Desk, "_standing", planted)
    monkeypatch.setattr(Uploads, "write", lambda self, client, digest, at, data: write(
        self, client, digest, self.received(client, digest, len(ANSWER)) or 0, data))  # fmt: skip
    with pytest.raises(AssertionError):
        test_parts_come_in_order()


class AnyNumber(int):
    def __ne__(self, other: object) -> bool:
        return False
