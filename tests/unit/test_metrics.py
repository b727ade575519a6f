"""What Prometheus reads of a server, by its own parser, held against what was done there."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from fronts import DAY_S, Device, Place, joining, place, within

from roundelay.deployment import protocol as p
from roundelay.deployment.front.meters import REQUEST_BOUNDS_S, SYNC_BOUNDS_S, Durations, Meters
from roundelay.deployment.front.server import Server
from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.records import Fate
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.place import Listening
from roundelay.errors import IdentityError, MissingExtra

metrics = pytest.importorskip("roundelay.deployment.front.metrics", reason="its package comes with the extra 'metrics'")
ANSWER = b"an answer of a client. " * 10


@dataclass
class Measured:
    here: Place
    port: int
    syncs: Durations

    async def read(self, path: str = metrics.PATH, accept: str = "text/plain") -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url, headers={"Accept": accept}) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()

    async def told(self) -> Callable[..., float]:
        """Return what gives a sample's value by name and labels, 0 where there is none."""
        from prometheus_client.parser import text_string_to_metric_families as parsed

        status, _, text = await self.read()
        assert status == 200
        samples = {(one.name, *sorted(one.labels.items())): one.value for family in parsed(text)
                   for one in family.samples}  # fmt: skip
        return lambda name, **labels: samples.get((f"roundelay_{name}", *sorted(labels.items())), 0.0)


@contextmanager
def measured() -> Iterator[Measured]:
    syncs = Durations(SYNC_BOUNDS_S)
    with place(members="ab", clients="abc", disk=Disk(syncs.add)) as here:
        told = metrics.Server(
            here.front.meters, here.board, here.roster, syncs, rounds=lambda: (4, 9), num_clients=3,
            num_connections=lambda: here.server.num_connections,
        )  # fmt: skip
        beside = Server(metrics.metrics_app(told), "127.0.0.1", 0)
        try:
            yield Measured(here, beside.start(), syncs)
        finally:
            beside.stop(1.0)


def check_counts(it: Measured) -> None:
    """The contract: each number is that of what was done."""

    async def go() -> None:
        quiet = await it.told()
        async with Device.of(here) as a, Device(here.url, "x") as stranger:
            assert (await a.poll()).status == 200
            assert (await stranger.poll()).error == "signature"
            assert (await a.ask("GET", "/nowhere")).status == 404
            for _ in range(2):
                await a.deliver(1, ANSWER)
            await a.deliver(99, ANSWER)
            here.journal.settle(1, Fate.REFUSED, "not finite: client 'a' sent NaN: 3 of 5")
            told = await it.told()
            assert told("requests_total", route="work", status="200") == 1
            assert told("requests_total", route="work", status="401") == 1
            assert told("requests_total", route="none", status="404") == 1
            assert told("requests_refused_total", error="signature") == 1
            assert told("requests_refused_total", error="not_found") == 1
            assert told("answers_total", verdict="accepted") == 1
            assert told("answers_total", verdict="duplicate") == 1
            assert told("answers_total", verdict="unknown") == 1
            assert told("updates", fate="refused", reason="not finite") == 1
            assert told("bytes_total", direction="in") >= len(ANSWER)
            assert told("bytes_total", direction="out") > 0
            assert told("request_seconds_count", route="work") == 2
            assert told("request_seconds_bucket", route="work", le="+Inf") == 2
            assert 0 < told("request_seconds_sum", route="work") < 30
            assert told("journal_sync_seconds_count") > quiet("journal_sync_seconds_count") > 0
            assert told("connections_open") == 2
            assert told("tasks_open") == 2
            assert (told("rounds_total"), told("rounds_planned")) == (4, 9)
            assert told("phase", roundelay_phase="running") == 1
            assert told("phase", roundelay_phase="paused") == 0
            clients = [told("clients", **{"is": state}) for state in ("expected", "enrolled", "joined", "present")]
            assert clients == [3, 2, 2, 1]

    here = it.here
    here.open_round()
    within(go())


def test_the_numbers_are_those_of_what_was_done() -> None:
    with measured() as it:
        check_counts(it)


@pytest.mark.parametrize("planted", ["a route that is not counted", "a verdict that is forgotten", "syncs not timed"])
def test_the_check_catches(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted == "a route that is not counted":
        end = Meters.end
        monkeypatch.setattr(
            Meters, "end", lambda self, route, *rest: None if route == "work" else end(self, route, *rest)
        )
    elif planted == "a verdict that is forgotten":
        monkeypatch.setattr("roundelay.deployment.front.front.Receipt", p.Offer)
    else:
        monkeypatch.setattr(Disk, "__init__", lambda self, on_sync: setattr(self, "_on_sync", lambda seconds: None))
    with measured() as it, pytest.raises(AssertionError):
        check_counts(it)


def test_nothing_else_is_served_there_and_the_port_of_devices_has_no_metrics() -> None:
    async def go() -> None:
        for path in ("/", "/stats", "/v1/hello", "/metrics/x"):
            assert (await it.read(path))[0] == 404
        status, kind, text = await it.read(accept="application/openmetrics-text; version=1.0.0")
        assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
        assert text.endswith("# EOF\n")
        assert "process_resident_memory_bytes" in text
        async with Device.of(it.here) as device:
            assert (await device.send("GET", metrics.PATH)).status == 404

    with measured() as it:
        within(go())


def test_no_client_and_no_secret_is_named() -> None:
    """Labels are of a bounded number: of whatever stands in requests, names and paths too, none becomes one."""

    async def go() -> str:
        token = here.roster.invite("c", DAY_S, 1e12).reveal()
        async with Device.of(here) as a:
            await a.send("POST", p.JOIN, joining(token, DeviceKey.new(), "c").model_dump_json().encode())
            await a.send("POST", p.JOIN, joining("hunter2", DeviceKey.new(), "c").model_dump_json().encode())
            await a.ask("GET", f"/v1/{token}")
            await a.send("BREW", "/v1/hello")
            await a.ask("POST", f"{p.FAILURES}/1", p.Failure(reason="hunter2"), round=1)
        text = (await it.read())[2]
        assert token not in text
        assert "hunter2" not in text
        return text

    with measured() as it:
        here = it.here
        here.open_round(clients=["a"])
        text = within(go())
    for line in (line for line in text.splitlines() if line.startswith("roundelay_")):
        for name in ('"a"', '"b"', '"c"', "BREW"):
            assert name not in line


def test_durations_are_counted_by_the_bound_that_they_do_not_pass() -> None:
    durations = Durations((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 2.0, 3.0):
        durations.add(seconds)
    pairs, sum_s = durations.cumulative()
    assert pairs == [(0.1, 2), (1.0, 3), (float("inf"), 5)]
    assert sum_s == pytest.approx(5.65)
    assert list(REQUEST_BOUNDS_S) == sorted(set(REQUEST_BOUNDS_S))
    assert list(SYNC_BOUNDS_S) == sorted(set(SYNC_BOUNDS_S))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:1", ("::1", 1)),
        ("0", ("127.0.0.1", 0)),
    ],
)
def test_a_port_alone_is_for_this_machine_only(text: str, where: tuple[str, int]) -> None:
    listening = Listening.of(text)
    assert (listening.host, listening.port) == where


@pytest.mark.parametrize("text", ["", "x", "host:", "host:99999", ":1", "a@b:1", "h:1/metrics", "-1", "1?x"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(IdentityError, match="as 9464"):
        Listening.of(text)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, metrics.__name__)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=r"'prometheus_client' is not installed.*roundelay\[metrics\]"):
        importlib.import_module(metrics.__name__)
