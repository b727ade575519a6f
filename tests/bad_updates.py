"""Updates that are no updates, each with the reason for which it is refused; and rounds into which they are mixed."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from networks import federated, small_job
from torch import Tensor

import roundelay as rd
from roundelay.aggregators import Rule
from roundelay.algorithms.protocol import rehearse
from roundelay.fold import Fold, Folding
from roundelay.gather import Gathered
from roundelay.guard import Expected, Guard, Reason
from roundelay.intake import Intake, Outcome
from roundelay.layout.travel import opened, packed
from roundelay.messages import Lost, Payload, Task, Update
from roundelay.trainer import Answer, Trainer

BAD = "c1"
Tampering = Callable[[Update], Update]
RULES: dict[str, Rule | None] = {
    "no rule": None,
    **{repr(rule): rule for rule in (
        rd.Mean(), rd.CoordinateMedian(f=1), rd.TrimmedMean(f=1), rd.Krum(f=1), rd.MultiKrum(f=1),
        rd.GeometricMedian(f=1), rd.CentredClipping(tau=0.5, iterations=2), rd.NormBounding(), rd.FLTrust(root="c0"),
        rd.NearestNeighbourMixing(f=1, then=rd.TrimmedMean(f=1)), rd.Bucketing(size=2, then=rd.CoordinateMedian()),
        rd.Robust(f=1),
    )},
}  # fmt: skip


def vectors(change: Callable[[Tensor], Tensor]) -> Callable[[Update], Update]:
    def tampered(update: Update) -> Update:
        payload = update.payload
        changed = {"params": change(payload.vectors["params"].clone())}
        return replace(update, payload=Payload(changed, payload.buffers, payload.integers))

    return tampered


def at(value: float) -> Callable[[Update], Update]:
    def put(vector: Tensor) -> Tensor:
        vector[3] = value
        return vector

    return vectors(put)


def payload(**changes: object) -> Callable[[Update], Update]:
    return lambda update: replace(update, payload=replace(update.payload, **changes))


def task(**changes: object) -> Callable[[Update], Update]:
    return lambda update: replace(update, task=replace(update.task, **changes))


def weight(value: object) -> Callable[[Update], Update]:
    return lambda update: replace(update, num_examples=value)


def group(value: object) -> Callable[[Update], Update]:
    return lambda update: replace(update, group=value)


TAMPERINGS: dict[str, tuple[Tampering, Reason]] = {
    "nan": (at(math.nan), Reason.NOT_FINITE),
    "inf": (at(math.inf), Reason.NOT_FINITE),
    "minus inf": (at(-math.inf), Reason.NOT_FINITE),
    "nan buffer": (payload(buffers=torch.full((26,), math.nan)), Reason.NOT_FINITE),
    "one value": (vectors(lambda v: v[:1]), Reason.WRONG_LENGTH),
    "too long": (vectors(lambda v: torch.cat([v, v[:1]])), Reason.WRONG_LENGTH),
    "two dimensions": (vectors(lambda v: v.view(1, -1)), Reason.WRONG_LENGTH),
    "inf buffer": (payload(buffers=torch.full((26,), math.inf)), Reason.NOT_FINITE),
    "nothing": (vectors(lambda v: v[:0]), Reason.WRONG_LENGTH),
    "no counters": (payload(integers=torch.empty(0, dtype=torch.int64)), Reason.WRONG_LENGTH),
    "no buffers": (payload(buffers=torch.empty(0)), Reason.WRONG_LENGTH),
    "float64": (vectors(lambda v: v.double()), Reason.WRONG_DTYPE),
    "integers": (vectors(lambda v: v.long()), Reason.WRONG_DTYPE),
    "complex": (vectors(lambda v: v.to(torch.complex64)), Reason.WRONG_DTYPE),
    "half": (vectors(lambda v: v.half()), Reason.WRONG_DTYPE),
    "counters that are no integers": (payload(integers=torch.zeros(1)), Reason.WRONG_DTYPE),
    "missing vector": (payload(vectors={}), Reason.WRONG_VECTORS),
    "extra vector": (
        lambda u: replace(u, payload=replace(u.payload, vectors={**u.payload.vectors, "x": torch.zeros(1)})),
        Reason.WRONG_VECTORS,
    ),
    "weight 0": (weight(0), Reason.BAD_WEIGHT),
    "weight -80": (weight(-80.0), Reason.BAD_WEIGHT),
    "weight inf": (weight(math.inf), Reason.BAD_WEIGHT),
    "no weight": (weight(None), Reason.BAD_WEIGHT),
    "weight nan": (weight(math.nan), Reason.BAD_WEIGHT),
    "weight 1e308": (weight(1e308), Reason.BAD_WEIGHT),
    "weight text": (weight("many"), Reason.BAD_WEIGHT),
    "weight true": (weight(True), Reason.BAD_WEIGHT),
    "another group": (group(1), Reason.UNKNOWN_GROUP),
    "group -1": (group(-1), Reason.UNKNOWN_GROUP),
    "group true": (group(True), Reason.UNKNOWN_GROUP),
    "group 0.0": (group(0.0), Reason.UNKNOWN_GROUP),
    "group text": (group("first"), Reason.UNKNOWN_GROUP),
    "old round": (task(round=0), Reason.WRONG_ROUND),
    "other attempt": (task(attempt=5), Reason.WRONG_ROUND),
    "other client's task": (task(client="c3"), Reason.WRONG_ROUND),
}


class Scene:
    """Real updates of so many clients, to be folded with or without one of them, in any order of arrival."""

    def __init__(self, num_clients: int = 4, **changes: Any) -> None:  # Any: a job's fields
        work = small_job(data=lambda: federated(num_clients), **changes).prepared().work
        trainer = Trainer(work)
        self.layout, self.algorithm = trainer.layout, work.algorithm
        start = trainer.layout.flatten(trainer.bound.module.state_dict())
        self.sent = Payload({"params": start.params}, start.buffers, start.integers)
        self.lengths = rehearse(work.algorithm, start.params, num_clients).lengths
        self.tasks = [Task(i, f"c{i}", 1) for i in range(num_clients)]
        self.updates = [self._trained(trainer, task) for task in self.tasks]
        self.honest = [update for update in self.updates if update.task.client != BAD]
        (self.bad,) = (update for update in self.updates if update.task.client == BAD)

    def _trained(self, trainer: Trainer, task: Task) -> Update:
        update = trainer.train(task, packed(self.layout, self.sent), {}).update
        return replace(update, payload=update.payload.copy())

    def outcome(
        self, updates: Sequence[Update], guard: Guard, lost: tuple[str, ...] = (), rule: Rule | None = None
    ) -> Outcome:
        intake = Intake(
            self.tasks, self.sent, uplink=self.algorithm.uplink, expected=Expected.of(self.layout, self.lengths),
            guard=guard, goal=None, release=lambda task_id: None, fold=self._fold(rule),
            opened=partial(opened, self.layout),
        )  # fmt: skip
        for update in updates:
            intake.arrive(Answer(update))
        for one in self.tasks:
            if one.client in lost:
                intake.arrive(Lost(one, "away"))
        return intake.close()

    def _fold(self, rule: Rule | None) -> Folding:
        uplink, num_tasks = self.algorithm.uplink, len(self.tasks)
        if rule is None:
            return Fold(uplink)
        return Gathered.begin(rule, uplink, self.lengths, self.sent, None, num_tasks, seed=7, round=1, attempt=0)

    def result(self, outcome: Outcome) -> str:
        """Return the digest of all that the round came to: parameters, float and integer buffers."""
        hasher = hashlib.sha256()
        for vector in (outcome.fold.totals()[0].mean("params"), *outcome.fold.buffers()):
            hasher.update(vector.numpy().tobytes())
        return hasher.hexdigest()

    def without(self, rule: Rule | None = None) -> str:
        """Return what the round comes to without the one who is bad."""
        return self.result(self.outcome(self.honest, Guard(), lost=(BAD,), rule=rule))


def check_harmless(
    scene: Scene, tampering: tuple[Tampering, Reason], guard: Guard, slot: int, rule: Rule | None = None,
    expected: str = "",
) -> None:  # fmt: skip
    """The contract: refused with this reason, its sender named, and the round as if it had never come."""
    tamper, reason = tampering
    bad = tamper(scene.bad)
    arriving = [*scene.honest[:slot], bad, *scene.honest[slot:]]
    outcome = scene.outcome(arriving, guard, rule=rule)
    report = next(r for r in outcome.reports if r.client == BAD)
    assert report.status == "refused"
    assert report.reason.startswith(reason.value)
    assert repr(bad.task.client) in report.reason
    assert scene.result(outcome) == (expected or scene.without(rule))
