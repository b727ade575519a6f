"""A bad update harms only its sender: the result is bit-equal to a round without it, and the sender is named."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from networks import small_job
from torch import Tensor

from roundelay.algorithms.protocol import rehearse
from roundelay.errors import RoundelayError
from roundelay.guard import Expected, Guard, Reason, Refusal, all_finite
from roundelay.intake import Intake, Outcome
from roundelay.layout import Vectors
from roundelay.messages import Lost, Payload, Task, Update
from roundelay.trainer import Answer, Trainer

CLIENTS = ("c0", "c1", "c2", "c3")
BAD = "c1"


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


TAMPERINGS = {
    "nan": (at(math.nan), Reason.NOT_FINITE),
    "inf": (at(math.inf), Reason.NOT_FINITE),
    "minus inf": (at(-math.inf), Reason.NOT_FINITE),
    "nan buffer": (payload(buffers=torch.full((26,), math.nan)), Reason.NOT_FINITE),
    "one value": (vectors(lambda v: v[:1]), Reason.WRONG_LENGTH),
    "too long": (vectors(lambda v: torch.cat([v, v[:1]])), Reason.WRONG_LENGTH),
    "two dimensions": (vectors(lambda v: v.view(1, -1)), Reason.WRONG_LENGTH),
    "no buffers": (payload(buffers=torch.empty(0)), Reason.WRONG_LENGTH),
    "float64": (vectors(lambda v: v.double()), Reason.WRONG_DTYPE),
    "integers": (vectors(lambda v: v.long()), Reason.WRONG_DTYPE),
    "complex": (vectors(lambda v: v.to(torch.complex64)), Reason.WRONG_DTYPE),
    "missing vector": (payload(vectors={}), Reason.WRONG_VECTORS),
    "extra vector": (
        lambda u: replace(u, payload=replace(u.payload, vectors={**u.payload.vectors, "x": torch.zeros(1)})),
        Reason.WRONG_VECTORS,
    ),
    "weight 0": (weight(0), Reason.BAD_WEIGHT),
    "weight -80": (weight(-80.0), Reason.BAD_WEIGHT),
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
    """Four real updates to a model with BatchNorm, to be folded with or without one of them."""

    def __init__(self) -> None:
        work = small_job().prepared().work
        trainer = Trainer(work)
        self.layout, self.algorithm = trainer.layout, work.algorithm
        start = trainer.layout.flatten(trainer.bound.module.state_dict())
        self.sent = Payload({"params": start.params}, start.buffers, start.integers)
        self.lengths = rehearse(work.algorithm, start.params, 6).lengths
        self.tasks = [Task(i, client, 1) for i, client in enumerate(CLIENTS)]
        self.updates = []
        for one in self.tasks:
            answer = trainer.train(one, self.sent, {})
            came = answer.update.payload
            kept = Payload({"params": came.vectors["params"].clone()}, came.buffers.clone(), came.integers.clone())
            self.updates.append(replace(answer.update, payload=kept))

    def outcome(self, updates: list[Update], guard: Guard, lost: tuple[str, ...] = ()) -> Outcome:
        intake = Intake(
            self.tasks, self.sent, uplink=self.algorithm.uplink, expected=Expected.of(self.layout, self.lengths),
            guard=guard, goal=None, release=lambda task_id: None,
        )  # fmt: skip
        for update in updates:
            intake.arrive(Answer(update))
        for one in self.tasks:
            if one.client in lost:
                intake.arrive(Lost(one, "away"))
        return intake.close()

    def result(self, outcome: Outcome) -> str:
        buffers, integers = outcome.fold.buffers()

        return self.layout.sha256(Vectors(outcome.fold.totals()[0].mean("params"), buffers, integers))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def check_harmless(scene: Scene, tamper: Callable[[Update], Update], reason: Reason, guard: Guard, slot: int) -> None:
    """The contract: refused with this reason, its sender named, and the fold as if it had never come."""
    honest = [u for u in scene.updates if u.task.client != BAD]
    bad = tamper(next(u for u in scene.updates if u.task.client == BAD))
    arriving = [*honest[:slot], bad, *honest[slot:]]
    outcome = scene.outcome(arriving, guard)
    report = next(r for r in outcome.reports if r.client == BAD)
    assert report.status == "refused"
    assert reason.value in report.reason
    assert repr(bad.task.client) in report.reason
    assert scene.result(outcome) == scene.result(scene.outcome(honest, guard, lost=(BAD,)))


@pytest.mark.parametrize("slot", [0, 1, 3])
@pytest.mark.parametrize(("tamper", "reason"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_bad_update_harms_only_its_sender(scene: Scene, tamper: Callable, reason: Reason, slot: int) -> None:
    check_harmless(scene, tamper, reason, Guard(), slot)


class Blind:
    """The planted bug: a guard that lacks one rule."""

    def __init__(self, missing: Reason) -> None:
        self.missing = missing

    def check(self, *args: object, **kwargs: object) -> Refusal | None:
        refusal = Guard().check(*args, **kwargs)
        return None if refusal is not None and refusal.reason is self.missing else refusal


@pytest.mark.parametrize(("tamper", "reason"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_the_test_catches_a_guard_without_the_rule(scene: Scene, tamper: Callable, reason: Reason) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError, KeyError, OverflowError, ValueError, RoundelayError)):
        check_harmless(scene, tamper, reason, Blind(reason), slot=1)


def test_a_second_answer_is_refused_and_the_first_one_stays(scene: Scene) -> None:
    again = next(u for u in scene.updates if u.task.client == BAD)
    twice = scene.outcome([*scene.updates, again], Guard())
    assert scene.result(twice) == scene.result(scene.outcome(scene.updates, Guard()))
    assert twice.fold.count == 4
    with pytest.raises((AssertionError, IndexError)):  # the planted bug: a guard that counts it again
        assert scene.outcome([*scene.updates, again], Blind(Reason.DUPLICATE)).fold.count == 4


def test_finite_values_whose_sum_overflows_are_admitted() -> None:
    assert all_finite(torch.full((10,), 3e38))
    assert not all_finite(torch.tensor([math.inf, -math.inf]))


def test_every_arrival_order_gives_the_same_bits(scene: Scene) -> None:

    hashes = {scene.result(scene.outcome(list(p), Guard())) for p in itertools.permutations(scene.updates)}
    assert len(hashes) == 1


def test_a_window_that_spills_to_a_file_gives_the_same_bits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scene.result(scene.outcome(scene.updates, Guard()))
    monkeypatch.setattr("roundelay.intake.WINDOW_BYTES", 0)
    assert scene.result(scene.outcome(scene.updates[::-1], Guard())) == expected
