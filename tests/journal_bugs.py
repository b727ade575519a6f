"""Bugs to be planted in a journal, which more than one test must catch."""

from collections.abc import Callable, Sequence

import pytest

from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Ack, Verdict

Planting = Callable[[pytest.MonkeyPatch], None]


def told_otherwise(change: Callable[[Journal, Ack], Ack | None]) -> Planting:
    """The journal says something else of an answer that it need not look at."""
    known = Journal.known_answer

    def planted(self: Journal, task_id: int, client: str, digest: str) -> Ack | None:
        ack = known(self, task_id, client, digest)
        return None if ack is None else change(self, ack)

    return lambda patch: patch.setattr(Journal, "known_answer", planted)


def take_a_late_answer(_: Journal, ack: Ack) -> Ack | None:
    return None if ack.verdict is Verdict.LATE else ack


def forget_whose_task_it_is(patch: pytest.MonkeyPatch) -> None:
    known = Journal.known_answer

    def planted(self: Journal, task_id: int, client: str, digest: str) -> Ack | None:
        task = self.tasks.get(task_id)
        return known(self, task_id, client if task is None else task.task.client, digest)

    patch.setattr(Journal, "known_answer", planted)


def keep_numbers_in_memory(patch: pytest.MonkeyPatch) -> None:
    """Those of signed requests."""

    def planted(self: Clients, requests: Sequence[tuple[str, str, int]]) -> list[bool]:
        highest, counts = self.__dict__.setdefault("highest", {}), list[bool]()
        for client, key, number in requests:
            counts.append(self.get(client, key) is not None and number > highest.get((client, key), -1))
            if counts[-1]:
                highest[client, key] = number
        return counts

    patch.setattr(Clients, "advance", planted)
