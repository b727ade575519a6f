"""What strikes a client at its work: poisoned examples, crashes, slowness. What it sends is changed on the way to the
server, in ``simulation/intercepted.py``.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

from roundelay import seeds
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.attacks.faults import Crash, Slow, strikes
from roundelay.attacks.poisoning import LabelFlip
from roundelay.attacks.protocol import Poisons
from roundelay.attacks.roles import Roles
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError
from roundelay.layout import Bound
from roundelay.learner import Context, Learner
from roundelay.messages import Task
from roundelay.trainer import Work


def armed(work: Work, roles: Roles) -> Work:
    """Return the work as the struck clients do it: on poisoned examples, and crashing.

    Raises:
        ConfigError: nothing tells how many classes there are to flip.
    """
    poisons: dict[str, Sequence[Poisons]] = {}
    for client, played in roles.items():
        if own := [_resolved(role, work) for role in played if isinstance(role, Poisons)]:
            poisons[client] = own
    crashes = {client: [role for role in played if isinstance(role, Crash)] for client, played in roles.items()}
    if poisons:
        work = replace(work, data=work.data.seen_through(partial(_poisoned, poisons, work.seed)))
    if any(crashes.values()):
        work = replace(work, learner=Crashing(work.learner, crashes))
    return work


def _resolved(role: Poisons, work: Work) -> Poisons:
    if not isinstance(role, LabelFlip) or role.num_classes is not None:
        return role
    if work.data.held_out is None:
        raise ConfigError("attack LabelFlip needs num_classes: the server holds no data that would tell it")
    return replace(role, num_classes=int(work.data.held_out.labels().max()) + 1)


def _poisoned(poisons: Mapping[str, Sequence[Poisons]], seed: int, client: str, examples: Examples) -> Examples:
    for number, role in enumerate(poisons.get(client, ())):
        examples = role.poison(examples, seeds.generator(seed, 0, 0, client, f"poison-{number}"))
    return examples


@dataclass(frozen=True, slots=True)
class Crashing:
    """A learner that fails after the work is done, where the draw for the task says so."""

    inner: Learner
    crashes: Mapping[str, Sequence[Crash]]

    @property
    def corrects(self) -> bool:
        return self.inner.corrects

    @property
    def reports(self) -> Set[str]:
        return self.inner.reports

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        fitted, task = self.inner.fit(bound, examples, ask, context), context.task
        if any(strikes(crash, context.seed, task) for crash in self.crashes.get(task.client, ())):
            raise RuntimeError(f"client {task.client!r} crashes in training, as attacks.Crash says")
        return fitted


def slowed(duration: Callable[[str, Task], float] | None, roles: Roles) -> Callable[[str, Task], float] | None:
    """Return the durations that the struck clients' slowness makes; the same ones where nobody is slow.

    Raises:
        ConfigError: a factor has no duration to multiply.
    """
    slow = [role for played in roles.values() for role in played if isinstance(role, Slow)]
    if duration is None and any(role.factor != 1 and not role.seconds for role in slow):
        raise ConfigError(
            "attack Slow: factor multiplies a task's duration, and this job models none: give seconds, or "
            "simulation.duration"
        )
    return Slowed(duration, roles) if slow else duration


@dataclass(frozen=True, slots=True)
class Slowed:
    """``duration(client, task)`` with what slows the client added."""

    inner: Callable[[str, Task], float] | None
    roles: Roles

    def __call__(self, client: str, task: Task) -> float:
        seconds = 0.0 if self.inner is None else self.inner(client, task)
        for role in self.roles.get(client, ()):
            if isinstance(role, Slow):
                seconds = seconds * role.factor + role.seconds
        return seconds
