"""Bad updates under every aggregation rule, and good ones in every order: what is refused changes no bit of a round,
nor does who came first.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from bad_updates import RULES, TAMPERINGS, Scene, check_harmless
from figures import Figures
from networks import Awkward, Plain
from torch import Tensor, nn

from roundelay.aggregators import Guaranteed
from roundelay.errors import RoundelayError
from roundelay.guard import Expected, Guard, Reason, Refusal
from roundelay.intake import InMemory, Intake
from roundelay.layout import Kind
from roundelay.messages import Lost, Payload, Task, Update
from roundelay.stages.decoding import Decoded
from roundelay.trainer import Answer

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_CLIENTS = 7
SLOTS = (0, 3, 6)
"""Where among the arrivals a bad update comes: first, in the middle, last."""


class Halved(nn.Module):
    """A network of half parameters, between inputs and logits that are not."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = Plain().to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.to(self.dtype)).float()
        return logits


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "float32": Awkward,
    "float16": lambda: Halved(torch.float16),
    "bfloat16": lambda: Halved(torch.bfloat16),
}


@cache
def scene(model: str = "float32") -> Scene:
    return Scene(NUM_CLIENTS, model=MODELS[model])


# ---- what is refused ------------------------------------------------------------------------------------------------


def check_bad_updates(slots: Callable[[int], tuple[int, ...]]) -> int:
    """The contract: ``check_harmless`` for every tampering under every rule; ``slots(i)`` are those of case i. Return
    how many cases there were.
    """
    here, num_cases = scene(), 0
    without = {name: here.without(rule) for name, rule in RULES.items()}
    for at, (tampering, (name, rule)) in enumerate(product(TAMPERINGS.values(), RULES.items())):
        for slot in slots(at):
            check_harmless(here, tampering, Guard(), slot, rule, without[name])
            num_cases += 1
    return num_cases


def note_cases(figures: Figures, num_cases: int) -> None:
    figures("tamperings", len(TAMPERINGS))
    figures("aggregation rules", len(RULES))
    figures("cases that changed no bit", num_cases)


def test_a_bad_update_changes_no_bit_under_any_rule(figures: Figures) -> None:
    note_cases(figures, check_bad_updates(lambda at: (SLOTS[at % 3],)))


@pytest.mark.chaos
def test_a_bad_update_changes_no_bit_whenever_it_comes(figures: Figures) -> None:
    note_cases(figures, check_bad_updates(lambda at: SLOTS))


SLACK = 0.05
"""How far beyond the honest clients' values, which lie up to 0.3 apart, one other may take a value of the model."""


def far(update: Payload) -> Payload:
    vector = update.vectors["params"].clone()
    vector[::2] = 1e38
    return replace(update, vectors={"params": vector})


def test_a_huge_value_is_admitted_and_rules_against_hostile_clients_hold(figures: Figures) -> None:
    """1e38 is a number that a float32 can hold: no malformation, but a vote. What it does is the rule's affair."""
    here, num_held = scene(), 0
    bad = replace(here.bad, payload=far(here.bad.payload))
    honest = torch.stack([update.payload.vectors["params"] for update in here.honest])
    low, high = honest.min(dim=0).values, honest.max(dim=0).values
    for name, rule in RULES.items():
        outcome = here.outcome([bad, *here.honest], Guard(), rule=rule)
        assert outcome.count("admitted") == NUM_CLIENTS
        params = outcome.fold.totals()[0].mean("params")
        assert torch.isfinite(params).all(), name
        if isinstance(rule, Guaranteed):  # all of them but "no rule" and the plain mean
            assert ((params >= low - SLACK) & (params <= high + SLACK)).all(), name
            num_held += 1
    figures("rules that hold against 1e38", num_held)
    assert num_held == len(RULES) - 2


# ---- who came first -------------------------------------------------------------------------------------------------


def check_orders(num_orders: int, seed: int, spills: bool) -> int:
    """The contract: one result for each rule and dtype, in whatever order the same updates come; a window that has no
    room in memory spills to a file. Return how many rounds there were.
    """
    draw, num_rounds = random.Random(seed), 0
    with pytest.MonkeyPatch.context() as patch:
        if spills:
            patch.setattr("roundelay.intake.WINDOW_BYTES", 0)
        for model, (name, rule) in product(MODELS, RULES.items()):
            here = scene(model)
            expected = here.result(here.outcome(here.updates, Guard(), rule=rule))
            for _ in range(num_orders):
                arriving = draw.sample(here.updates, NUM_CLIENTS)
                came_to = here.result(here.outcome(arriving, Guard(), rule=rule))
                assert came_to == expected, f"{name} in {model}: {[update.task.client for update in arriving]}"
                num_rounds += 1
    return num_rounds


def test_the_order_of_arrival_changes_no_bit_under_any_rule(figures: Figures) -> None:
    figures("orders of arrival", 4)
    figures("rounds of the same bits", check_orders(4, seed=0, spills=True))


@pytest.mark.chaos
def test_five_hundred_orders_of_arrival_change_no_bit(figures: Figures, chaos_seed: int) -> None:
    figures("orders of arrival", 500)
    figures("rounds of the same bits", check_orders(500, chaos_seed, spills=False))


def test_half_models_travel_in_their_own_dtype() -> None:
    """Else the orders above would compare float32 thrice."""
    for model, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        here = scene(model)
        assert here.layout.has_halves
        assert {vector.dtype for vector in here.honest[0].payload.vectors.values()} == {dtype}
    assert scene().layout.length(Kind.FLOAT_BUFFER) > 0


# ---- planted bugs ---------------------------------------------------------------------------------------------------

Planting = Callable[[pytest.MonkeyPatch], None]


def believe_whoever_is_refused(patch: pytest.MonkeyPatch) -> None:
    """A refused update is folded all the same where it can be."""
    refuse = Intake.refuse

    def arrive(self: Intake, answer: Answer | Lost) -> None:
        self._came = answer  # type: ignore[attr-defined]
        arrived(self, answer)

    def planted(self: Intake, task_id: int, reason: str) -> None:
        refuse(self, task_id, reason)
        self._fold.add(self._came.update)  # type: ignore[attr-defined]

    arrived = Intake.arrive
    patch.setattr(Intake, "arrive", arrive)
    patch.setattr(Intake, "refuse", planted)


def lose_whoever_comes_next(patch: pytest.MonkeyPatch) -> None:
    """A refusal takes the answer behind it in the order of folding along."""
    refuse = Intake.refuse

    def planted(self: Intake, task_id: int, reason: str) -> None:
        refuse(self, task_id, reason)
        self._next += 1

    patch.setattr(Intake, "refuse", planted)


def blame_another(patch: pytest.MonkeyPatch) -> None:
    refuse = Intake.refuse
    patch.setattr(Intake, "refuse", lambda self, task_id, reason: refuse(self, (task_id + 1) % NUM_CLIENTS, reason))


def overlook(reason: Reason) -> Planting:
    """The guard does not know this reason."""
    check = Guard.check

    def planted(self: Guard, update: Update, task: Task, expected: Expected, answered: bool) -> Refusal | None:
        refusal = check(self, update, task, expected, answered)
        return None if refusal is not None and refusal.reason is reason else refusal

    return lambda patch: patch.setattr(Guard, "check", planted)


def fold_as_they_come(patch: pytest.MonkeyPatch) -> None:
    def planted(self: Intake, task_id: int, update: Update, decoded: Decoded) -> None:
        self._num_admitted += 1
        self._add(decoded.update)

    patch.setattr(Intake, "_take", planted)


def keep_no_copy_of_what_waits(patch: pytest.MonkeyPatch) -> None:
    """What waits beyond the budget is written, and read from the beginning of the file."""
    take = InMemory.take

    def planted(self: InMemory, task_id: int) -> Update:
        if task_id in self._spilled:
            self._spilled[task_id] = (self._spilled[task_id][0], 0)
        return take(self, task_id)

    patch.setattr(InMemory, "take", planted)


OF_REFUSALS: dict[str, Planting] = {
    "what is refused is folded": believe_whoever_is_refused,
    "who comes behind is lost too": lose_whoever_comes_next,
    "another one is named": blame_another,
    "values may be NaN": overlook(Reason.NOT_FINITE),
    "weights may be anything": overlook(Reason.BAD_WEIGHT),
    "lengths may be anything": overlook(Reason.WRONG_LENGTH),
}
OF_ORDERS: dict[str, Planting] = {
    "answers are folded as they come": fold_as_they_come,
    "the window gives the first it has": keep_no_copy_of_what_waits,
}
NOTICED = (AssertionError, RuntimeError, TypeError, ValueError, RoundelayError)


@pytest.mark.parametrize("plant", OF_REFUSALS.values(), ids=OF_REFUSALS)
def test_the_check_of_bad_updates_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(NOTICED):
        check_bad_updates(lambda at: (SLOTS[at % 3],))


@pytest.mark.parametrize("plant", OF_ORDERS.values(), ids=OF_ORDERS)
def test_the_check_of_orders_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(NOTICED):
        check_orders(8, seed=0, spills=True)
