"""The reference tasks of the field: a job file each, and on its card what it is, and what is known to come of it.

A file ``NAME.toml`` here is an ordinary job file with one table more, ``[card]``. To add a task is to add a file.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from roundelay.components import checked, unknown_message
from roundelay.errors import ConfigError

PREFIX = "task:"
CARD = "card"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """``data`` says what the data is, ``put`` what to put where; ``metric`` is the column that counts. ``reference`` is
    what others have published and where, ``ours`` what was measured here and on what; both also as values, where there
    is one. ``page`` is the task's page in the documentation.
    """

    title: str
    data: str
    put: str
    clients: str
    model: str
    metric: str
    reference: str
    ours: str
    page: str
    reference_value: float | None = None
    ours_value: float | None = None


def names() -> list[str]:
    """Return the tasks that there are, by name."""
    return sorted(
        Path(entry.name).stem for entry in resources.files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def is_task(job: str | Path) -> bool:
    return str(job).startswith(PREFIX)


def document(task: str) -> dict[str, Any]:  # Any: what TOML holds
    """Return the job file of a task, "task:NAME" or "NAME", without its card.

    Raises:
        ConfigError: there is no such task.
    """
    read = _read(task)
    read.pop(CARD)
    return {"name": task.removeprefix(PREFIX), **read}


def card(task: str) -> Card:
    """Return the card of a task, "task:NAME" or "NAME".

    Raises:
        ConfigError: there is no such task.
    """
    return Card(**checked(Card, _read(task)[CARD], {}, f"[{CARD}] of {task}"))


def cards() -> Mapping[str, Card]:
    return {name: card(name) for name in names()}


def told(task: Card) -> Sequence[tuple[str, str]]:
    """Return what stands on a card, as (what, text)."""
    return [(field.name.replace("_", " "), str(value)) for field in fields(task)
            if (value := getattr(task, field.name)) is not None]  # fmt: skip


def _read(task: str) -> dict[str, Any]:  # Any: what TOML holds
    name = task.removeprefix(PREFIX)
    if name not in names():
        raise ConfigError(unknown_message(f"task {name!r}", name, names()))
    return tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text())
