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
from roundelay.tasks.fetching import Source

PREFIX = "task:"
CARD = "card"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """``data`` says what the data is, ``put`` what to put where; ``metric`` is the column that counts. ``reference`` is
    what others have published and where, ``ours`` what was measured here and on what; both also as values, where there
    is one. ``page`` is the task's page in the documentation, ``sources`` are where its data can be fetched.
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
    sources: Sequence[Source] = ()


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
    where = f"[{CARD}] of {task}"
    told = dict(_read(task)[CARD])
    found = [Source(**checked(Source, source, {}, f"{where}, sources")) for source in told.pop("sources", ())]
    return Card(**checked(Card, told, {}, where), sources=tuple(found))


def cards() -> Mapping[str, Card]:
    return {name: card(name) for name in names()}


def told(task: Card) -> Sequence[tuple[str, str]]:
    """Return what stands on a card, as (what, text)."""
    plain = [(field.name.replace("_", " "), str(value)) for field in fields(task)
             if field.name != "sources" and (value := getattr(task, field.name)) is not None]  # fmt: skip
    return [*plain, *(("source", source.url) for source in task.sources)]


def folder_of(task: str) -> Path | None:
    """Return where a task's job looks for its data; None where it has no folder."""
    folder = document(task).get("data", {}).get("folder")
    return None if folder is None else Path(folder)


def _read(task: str) -> dict[str, Any]:  # Any: what TOML holds
    name = task.removeprefix(PREFIX)
    if name not in names():
        raise ConfigError(unknown_message(f"task {name!r}", name, names()))
    return tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text())
