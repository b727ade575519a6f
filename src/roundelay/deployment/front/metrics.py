"""What Prometheus reads of a server, on an address of its own: counts and times, no names of clients, no secrets.

The numbers of requests are those since the server's start (meters.py), those of rounds and answers are the journal's,
and so of the whole run. They are put together when somebody asks. docs/operations.md says what each is good for.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from aiohttp import web

from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.meters import Durations, Meters
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import optional

with optional("prometheus_client", "metrics"):
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
        StateSetMetricFamily,
    )
    from prometheus_client.registry import Collector

PATH = "/metrics"

Took = Mapping[tuple[str, ...], Durations]
"""By the values of the labels."""


class Server(Collector):
    """What is known of one server and the run that it serves, as it is when it is asked. For threads: it blocks."""

    def __init__(
        self,
        meters: Meters,
        board: Board,
        roster: Roster,
        syncs: Durations,
        *,
        rounds: Callable[[], tuple[int, int]],
        num_clients: int,
        num_connections: Callable[[], int],
    ) -> None:
        """``rounds`` returns how many rounds are finished, and how many there will be; ``syncs`` are the journal's."""
        self._meters, self._board, self._roster, self._syncs = meters, board, roster, syncs
        self._rounds, self._num_clients, self._num_connections = rounds, num_clients, num_connections

    def collect(self) -> Iterable[Metric]:
        yield from self._of_the_run(self._board.journal)
        yield from self._of_requests()
        yield _durations(
            "roundelay_journal_sync_seconds", "What the journal waits for the disk.", (), {(): self._syncs}
        )
        failed = self._meters.disk_failed
        yield GaugeMetricFamily("roundelay_disk_failed", "1 if the journal's last write failed.", value=int(failed))
        yield GaugeMetricFamily(
            "roundelay_connections_open", "Connections of devices.", value=self._num_connections()
        )  # fmt: skip

    def _of_the_run(self, journal: Journal) -> Iterable[Metric]:
        done, planned = self._rounds()
        yield CounterMetricFamily("roundelay_rounds", "Rounds that are finished, of the whole run.", value=done)
        yield GaugeMetricFamily("roundelay_rounds_planned", "Rounds that the run will have.", value=planned)
        phase = self._board.phase
        yield StateSetMetricFamily(
            "roundelay_phase", "What the run is at.", {one.name.lower(): one is phase for one in Phase}
        )
        present = sum(self._board.is_present(client) for client in self._board.presence())
        clients = GaugeMetricFamily(
            "roundelay_clients", "Clients: of the run, with a key, in it, there.", labels=("is",)
        )
        clients.add_metric(["expected"], self._num_clients)
        clients.add_metric(["enrolled"], sum(bool(one.public_key) for one in self._roster.members()))
        clients.add_metric(["joined"], len({one.client for one in journal.clients.all()}))
        clients.add_metric(["present"], present)
        yield clients
        yield GaugeMetricFamily("roundelay_tasks_open", "Tasks without an answer.", value=journal.tasks.num_open())
        updates = GaugeMetricFamily(
            "roundelay_updates", "Answers to training tasks that are on disk.", labels=("fate", "reason")
        )
        for (fate, reason), count in journal.fates().items():
            updates.add_metric([fate, reason], count)
        yield updates

    def _of_requests(self) -> Iterable[Metric]:
        meters = self._meters
        yield GaugeMetricFamily("roundelay_requests_in_flight", "Requests under way.", value=meters.in_flight)
        served = CounterMetricFamily("roundelay_requests", "Requests that have ended.", labels=("route", "status"))
        for (route, status), count in meters.served.copy().items():
            served.add_metric([route, status], count)
        yield served
        yield _counted("roundelay_requests_refused", "Requests that were refused.", "error", meters.refused.copy())
        yield _counted("roundelay_answers", "Answers of clients, by what they were told.", "verdict",
                       meters.answers.copy())  # fmt: skip
        told = {"in": meters.bytes_in, "out": meters.bytes_out}
        yield _counted("roundelay_bytes", "Bytes of bodies, in each direction.", "direction", told)
        took: Took = {(route,): times for route, times in meters.took.copy().items()}
        yield _durations("roundelay_request_seconds", "What requests took; work waits for work.", ("route",), took)


def metrics_app(server: Server) -> web.Application:
    """Return what answers ``PATH``, and nothing else, beside the numbers of the process itself."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(server)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get(PATH, metrics)
    return app


def _counted(name: str, meaning: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, meaning, labels=(label,))
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _durations(name: str, meaning: str, labels: tuple[str, ...], took: Took) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, meaning, labels=labels)
    for values, durations in took.items():
        pairs, sum_s = durations.cumulative()
        buckets = [("+Inf" if math.isinf(bound_s) else str(bound_s), float(count)) for bound_s, count in pairs]
        family.add_metric(values, buckets, sum_s)
    return family
