"""A workflow of a user's own: an async function of a ``Server``, which offers a round's steps one by one.

async def fedavg(fed: rd.Server) -> None:
    model = fed.load_model()
    while fed.running:
        results = await fed.train(model, fed.sample())
        model = fed.update(model, fed.aggregate(results))
        await fed.save(model)
"""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from roundelay.algorithms.protocol import Algorithm
from roundelay.errors import ConfigError
from roundelay.federation import Federation, Plan, Version, Workflow
from roundelay.workflows.server import Server

OwnFunction = Callable[[Server], Awaitable[object]]
"""``async def workflow(fed)``: runs the job from its first round, or from where it stood, to its end."""


@runtime_checkable
class OwnObject(Protocol):
    """An object with such a function as a method: a frozen dataclass has its settings in the job file."""

    async def run(self, fed: Server, /) -> object: ...


@dataclass(frozen=True, slots=True)
class FunctionWorkflow:
    """Makes a ``Workflow`` of a user's function."""

    function: OwnFunction

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        plan.cohort_size(num_clients)

    async def run(self, fed: Federation, algorithm: Algorithm) -> Version:
        server = Server(fed, algorithm)
        await self.function(server)
        return server._ended()


def as_workflow(given: Workflow | OwnObject | OwnFunction) -> Workflow:
    """Return a ``Workflow`` as it is, and one made of a user's function or object.

    Raises:
        ConfigError: it is not async, or does not take the server as its one argument; names it.
    """
    if isinstance(given, Workflow):
        return given
    run = given.run if isinstance(given, OwnObject) else given
    name = getattr(run, "__qualname__", type(given).__name__)
    if not callable(run):
        raise ConfigError(f"workflow is a {type(given).__name__}; expected a workflow such as Rounds(), your own async "
                          "function(fed), or an object with async run(fed)")  # fmt: skip
    if not inspect.iscoroutinefunction(run):
        raise ConfigError(f"workflow {name} is not async: it waits for clients; write async def {name}(fed)")
    try:
        inspect.signature(run).bind(None)
    except TypeError as error:
        raise ConfigError(f"workflow {name}{inspect.signature(run)} must take one argument, the server: write async "
                          f"def {name}(fed) ({error})") from error  # fmt: skip
    return FunctionWorkflow(run)
