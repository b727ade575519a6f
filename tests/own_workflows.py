"""Workflows as a user would write them, and what a job comes to under one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from networks import small_job

import roundelay as rd
from roundelay.intake import ClientReport

OwnRun = Callable[[rd.Server], object]


async def fedavg(fed: rd.Server) -> None:
    model = fed.load_model()
    while fed.running:
        clients = fed.sample()
        results = await fed.train(model, clients)
        aggregate = fed.aggregate(results)
        model = fed.update(model, aggregate)
        await fed.evaluate(model)
        await fed.save(model)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The same as an object, with a setting."""

    count: int = 4

    async def run(self, fed: rd.Server) -> None:
        while fed.running:
            model = fed.load_model()
            await fed.save(fed.update(model, fed.aggregate(await fed.train(model, fed.sample(self.count)))))


async def with_setting(fed: rd.Server, count: int) -> None:
    await Sampled(count).run(fed)


def own(body: OwnRun, **changes: object) -> rd.History:
    return small_job(workflow=body, **{"num_rounds": 1, **changes}).run()


def timeless(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def came_to(**changes: object) -> tuple[str, list[dict[str, object]], list[list[ClientReport]]]:
    """Return a job's hash, its rows, and what became of each client in each round."""
    run = small_job(**changes).start()
    rounds = list(run)
    return run.history().sha256, timeless(run.history().rows), [list(finished.clients) for finished in rounds]
