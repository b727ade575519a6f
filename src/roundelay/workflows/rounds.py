"""Synchronous rounds: ask a cohort, wait until the round closes, make the server's step, evaluate."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from roundelay.algorithms.protocol import Algorithm, State
from roundelay.errors import ConfigError
from roundelay.federation import Federation, Plan, Version
from roundelay.fold import Fold
from roundelay.intake import ClientReport, Outcome
from roundelay.workflows.readiness import Readiness

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rounds:
    """When a round closes, and what happens when too few answered.

    ``over_selection`` asks that share of clients beyond ``clients_per_round`` and closes at the first
    ``clients_per_round`` admitted updates; ``goal`` sets that number directly. ``deadline_s`` closes a round after so
    many seconds. With fewer than ``quorum`` updates the round is drawn again, ``attempts`` times in all; then the
    model stays in a simulation, and a run on real devices pauses until enough of them are back. With a ``readiness``, a
    round begins when enough of its clients are not busy, and may leave out those that are.
    """

    goal: int | None = None
    deadline_s: float | None = None
    over_selection: float = 0.0
    quorum: int = 1
    attempts: int = 1
    readiness: Readiness | None = None

    def __post_init__(self) -> None:
        for name in ("goal", "quorum", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"workflow {name} must be at least 1, got {value!r}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"workflow deadline_s must be positive, got {self.deadline_s!r}")
        if not 0 <= self.over_selection < float("inf"):
            raise ConfigError(f"workflow over_selection must be a share of at least 0, got {self.over_selection!r}")
        if self.goal is not None and self.over_selection:
            raise ConfigError("give goal or over_selection, not both: over_selection means a goal of clients_per_round")

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        """Refuse what can never come true with this plan.

        Raises:
            ConfigError: goal or quorum ask for more updates than there are clients in a round.
        """
        asked = self._asked(plan, num_clients)
        for name, value in (("goal", self.goal), ("quorum", self.quorum)):
            if value is not None and value > asked:
                raise ConfigError(
                    f"workflow {name} = {value}, but a round asks only {asked} clients; raise clients_per_round, or "
                    f"lower {name}"
                )

    async def run(self, fed: Federation, algorithm: Algorithm) -> Version:
        plan = fed.plan
        version = fed.restore() or fed.begin(algorithm)
        while version.number < plan.num_rounds and plan.stopping.reason(fed.history) is None:
            outcome, notes = await self._closed_round(fed, algorithm, version)
            short = self.shortfall(outcome)
            if short is None and outcome.is_quiet:
                version = replace(version, number=version.number + 1, heard={**version.heard, **outcome.heard})
                fed.commit(outcome)
                log.info("round %d: nobody had anything to send, the model stays as it was", version.number)
            elif short is None:
                version = next_version(algorithm, version, outcome)
                fed.commit(outcome)
            else:
                version = replace(version, number=version.number + 1)
                log.warning("round %d: the model stays as it was: %s", version.number, short)
            version = _in_its_epoch(version, () if short else outcome.reports, fed.clients)
            await conclude(fed, version, outcome, notes=notes)
        return version

    def round_size(self, plan: Plan, num_clients: int) -> int:
        """Return how many updates a round folds at most."""
        wanted = plan.cohort_size(num_clients)
        if self.over_selection:
            return wanted
        return self.goal or self._asked(plan, num_clients)

    def _asked(self, plan: Plan, num_clients: int) -> int:
        # rounded first: in floats, 100 clients and 10 % beyond are a hair more than 110
        return min(num_clients, ceil(round(plan.cohort_size(num_clients) * (1 + self.over_selection), 9)))

    async def _closed_round(
        self, fed: Federation, algorithm: Algorithm, version: Version
    ) -> tuple[Outcome, Mapping[str, float]]:
        """Return the last attempt at a round, and numbers for its row."""
        number, wanted = version.number + 1, fed.plan.cohort_size(len(fed.clients))
        asked = self._asked(fed.plan, len(fed.clients))
        goal = wanted if self.over_selection else self.goal
        left = None if version.epoch is None else version.epoch.left(fed.clients)
        notes: dict[str, float] = {}
        for attempt in itertools.count():
            cohort = fed.sample(number, attempt, asked if left is None else min(asked, len(left)), among=left)
            if self.readiness is not None:
                begun = await self.readiness.gathered(fed, number, attempt, cohort, self.quorum)
                cohort = begun.cohort
                notes = {"ready": begun.num_ready, "waits": notes.get("waits", 0) + begun.num_waits}
                if begun.left_out:
                    fed.account(Outcome(number, attempt, Fold({}), begun.left_out, {}, 0, 0))
            outcome = await fed.train(
                algorithm, version, cohort, attempt=attempt, goal=goal, deadline_s=self.deadline_s
            )
            short = self.shortfall(outcome)
            if short is None:
                break
            log.warning("round %d, attempt %d: %s", number, attempt, short)
            if attempt + 1 < self.attempts:
                continue
            if left is not None or not await fed.stalled(number, short, self.quorum):
                break  # where somebody waits for the others to end their epoch, it ends
        return outcome, notes

    def shortfall(self, outcome: Outcome) -> str | None:
        """Return why a closed round leads to no new model, or None where it does."""
        answers = outcome.fold.count + outcome.count("silent")
        if answers < self.quorum and self.quorum > 1:
            return f"{answers} of {len(outcome.reports)} updates admitted, quorum is {self.quorum}"
        return None if outcome.is_quiet else outcome.fold.shortfall()


def _in_its_epoch(version: Version, counted: Sequence[ClientReport], clients: Sequence[str]) -> Version:
    """Return the version with the epoch that its next round is of, where clients end their epochs together."""
    if version.epoch is None:
        return version
    epoch = version.epoch.after(counted, clients)
    if epoch.number != version.epoch.number:
        log.info("round %d: the last of epoch %d", version.number, version.epoch.number)
    return replace(version, epoch=epoch)


def next_version(algorithm: Algorithm, version: Version, outcome: Outcome) -> Version:
    """Return the version that follows from a closed round's fold."""
    fold = outcome.fold
    buffers, integers = fold.buffers()
    state = algorithm.apply(version.state, fold.totals())
    heard = {**version.heard, **outcome.heard} if outcome.heard else version.heard
    told = version.told if outcome.told is None else outcome.told
    return Version(
        version.number + 1, state, buffers, integers, fold.step(), fold.clip_norm, version.epoch, heard, told,
        _last_steps(version, state, outcome.depth),
    )  # fmt: skip


def _last_steps(version: Version, state: State, depth: int) -> tuple[float, ...]:
    """Return the squared lengths of the model's last steps, the newest first."""
    if not depth:
        return ()
    step = state["params"] - version.state["params"]
    return (float(torch.linalg.vector_norm(step, dtype=torch.float64)) ** 2, *version.steps)[:depth]


async def conclude(
    fed: Federation,
    version: Version,
    outcome: Outcome,
    measured: Mapping[str, float] | None = None,
    notes: Mapping[str, float] | None = None,
) -> None:
    """Evaluate the version that a round led to, where the plan says so, and record the round. ``measured`` is what the
    server has measured of it already; ``notes`` are further numbers for the round's row.
    """
    plan, metrics = fed.plan, dict(measured or {})
    if plan.evaluates(version.number, plan.eval_every) and measured is None:
        metrics |= await fed.evaluate(version)
    if plan.evaluates(version.number, plan.client_eval_every):
        metrics |= await fed.evaluate_clients(version, fed.clients)
    await fed.finish_round(version, outcome, {**metrics, **(notes or {})})
