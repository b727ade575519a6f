"""Cross-site evaluation: after training, every client's model on every client's data."""

from dataclasses import dataclass

from roundelay.algorithms.protocol import Algorithm, Personalised
from roundelay.errors import ConfigError
from roundelay.federation import Federation, Plan, Version, Workflow
from roundelay.messages import Lost, Payload
from roundelay.workflows.own import OwnFunction, OwnObject, as_workflow
from roundelay.workflows.rounds import Rounds

GLOBAL = "global model"


@dataclass(frozen=True, slots=True)
class CrossSite:
    """Run the workflow ``then`` to its end; then let every client train once more on the final model, and measure the
    model that each comes to, and the global one, on every client's own data.

    The matrix lies in the run folder as ``cross_site.json``: per metric one row for each model, one column a client.
    Its memory is that of all clients' models together. Tensors under ``keep_local`` are those of whoever measures.
    """

    then: Workflow | OwnObject | OwnFunction = Rounds()

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        """Refuse an algorithm whose clients do not send their models."""
        as_workflow(self.then).check(plan, num_clients, algorithm)
        if isinstance(algorithm, Personalised):
            raise ConfigError(f"{type(algorithm).__name__} measures every client's own model on its data already: set "
                              "evaluation.clients_every")  # fmt: skip
        if "params" not in algorithm.uplink:
            raise ConfigError(f"{type(algorithm).__name__} sends {', '.join(sorted(algorithm.uplink))} and no client's "
                              "model, which cross-site evaluation measures")  # fmt: skip

    async def run(self, fed: Federation, algorithm: Algorithm) -> Version:
        version = await as_workflow(self.then).run(fed, algorithm)
        left = set(fed.clients) - {flight.task.client for flight in fed.flying}  # a buffered workflow leaves some
        fed.dispatch(algorithm, version, sorted(left), attempt=-1, kind="submit")
        models = {GLOBAL: Payload({"params": version.state["params"]}, version.buffers, version.integers)}
        for _ in range(len(fed.flying)):
            arrived = await fed.arrival()
            if not isinstance(arrived.answer, Lost) and arrived.refusal is None:
                came = arrived.answer.update.payload
                model = Payload({"params": came.vectors["params"]}, came.buffers, came.integers)
                models[arrived.flight.task.client] = model.copy()
        table: dict[str, list[list[float | None]]] = {}
        names = [GLOBAL, *sorted(models.keys() - {GLOBAL})]
        for name in names:
            measured = await fed.measure(models[name], version.number, fed.clients)
            for metric in sorted({metric for report in measured for metric in report.metrics}):
                by_client = {report.client: report.metrics.get(metric) for report in measured}
                table.setdefault(metric, []).append([by_client.get(client) for client in fed.clients])
        fed.record("cross_site", {"models": names, "clients": list(fed.clients), **table})
        return version
