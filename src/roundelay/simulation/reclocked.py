"""Synchronous rounds once more on another clock: who was asked and what they sent is known, and when is modelled anew.

Without deadlines, what a round comes to does not depend on time. So its tasks go through the network again, with the
bits that their messages had, and nothing is trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roundelay.bookkeeping import Traced
from roundelay.errors import ConfigError
from roundelay.messages import Task
from roundelay.simulation.delivery import Delivery, Sent
from roundelay.simulation.loop import VirtualLoop

LedgerRow = Mapping[str, Any]  # Any: a row holds names, numbers and text


@dataclass(slots=True)
class RoundBefore:
    """A round as its ledger tells: who was asked, with a model of so many bits, and what each sent, by task; a task
    that is missing there had nothing to send.
    """

    number: int
    tasks: list[Task] = field(default_factory=list)
    model_bits: int = 0
    sent: dict[int, Sent] = field(default_factory=dict)


def rounds_before(numbers: Iterable[int], ledger: Iterable[LedgerRow], header_bits: int) -> list[RoundBefore]:
    """Read rounds from the ledger of a run whose messages had so many ``header_bits``. Headers and what was sent again
    are left out: they are the network's.

    Raises:
        ConfigError: something was lost, broken off, or went a way of the user's own, on which nothing is known here.
    """
    rounds = {number: RoundBefore(number) for number in numbers}
    for row in ledger:
        here = rounds.get(row["round"])
        if here is None:  # of a round that an interrupted run did not finish
            continue
        if row["row"] == "computation":
            here.tasks.append(Task(row["task"], row["client"], row["round"]))
        elif row["kind"] == "model":
            here.model_bits = max(here.model_bits, row["bits"] - header_bits)
        elif row["kind"] in ("update", "skip"):
            if row["outcome"] != "arrived":
                raise ConfigError(
                    f"round {row['round']}: the {row['kind']} of client {row['client']!r} did not arrive "
                    f"({row['outcome']}), so that time decided who counts: such a run has to be trained anew"
                )
            header = header_bits if row["kind"] == "update" else 0
            bits = row["bits"] - row["retransmitted_bits"] - header
            here.sent[row["task"]] = Sent(bits, kind=row["kind"])
    for here in rounds.values():
        here.tasks.sort(key=lambda task: task.id)
    return list(rounds.values())


@dataclass(frozen=True, slots=True)
class RoundAgain:
    """``traced`` is the new account of a round, ``at_s`` the new moment of its end."""

    traced: Traced
    at_s: float


async def once_more(loop: VirtualLoop, delivery: Delivery, rounds: Sequence[RoundBefore]) -> list[RoundAgain]:
    """Send these rounds through a network, one after another.

    Raises:
        ConfigError: something is lost there.
    """
    delivery.attend(_Known({task_id: sent for one in rounds for task_id, sent in one.sent.items()}))
    again = []
    for one in rounds:
        await _closed(loop, delivery, one)
        traced = delivery.traced(one.number)
        if traced is None:
            raise ConfigError("there is no network whose clock could be another: the job has no [simulation.network]")
        again.append(RoundAgain(traced, loop.time()))
    return again


async def _closed(loop: VirtualLoop, delivery: Delivery, one: RoundBefore) -> None:
    left, closed = {task.id for task in one.tasks}, loop.create_future()

    def landed(together: Sequence[int]) -> None:
        left.difference_update(together)
        if not left:
            closed.set_result(None)

    if not left:
        return
    delivery.dispatch(one.tasks, one.model_bits, landed)
    await closed
    delivery.end([task.id for task in one.tasks])


class _Known:
    """The clients, as far as a delivery asks for them."""

    def __init__(self, sent: Mapping[int, Sent]) -> None:
        self._sent = sent

    def computed(self, task: Task) -> Sent | None:
        return self._sent.get(task.id)

    def lost(self, task: Task, reason: str) -> None:
        raise ConfigError(f"round {task.round}: {reason}. On this clock the round would have had other members: train "
                          "the job anew")  # fmt: skip
