"""What a journal holds, as frozen values, and the typed answers that it gives to clients."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from roundelay.errors import RoundelayError
from roundelay.messages import Task

Fields = Mapping[str, object]
"""What JSON can say: strings, numbers, booleans, None, lists and tables of them."""


@dataclass(frozen=True, slots=True)
class Run:
    """Whose journal it is: an id, and the resolved job as TOML. Whoever lets a run go on with other settings, a longer
    one say, leaves out of ``job`` what may differ.
    """

    id: str
    job: str

    def difference(self, other: "Run") -> str:
        """Name what another run differs in from this one, up to five keys of the job."""
        if self.job == other.job:
            return f"this one has the id {other.id!r}"
        ours, theirs = (dict(_flat(tomllib.loads(run.job))) for run in (self, other))
        keys = [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]
        shown = [
            f"{key} is {ours.get(key, 'not set')!r} there and {theirs.get(key, 'not set')!r} here" for key in keys[:5]
        ]
        more = f", and {len(keys) - 5} more" if len(keys) > 5 else ""
        return "; ".join(shown) + more if shown else "the jobs differ in how they are written only"


@dataclass(frozen=True, slots=True)
class Participant:
    """A client that takes part, with one of its keys. ``sequence`` is the highest number of a request that was signed
    with it, -1 before the first.
    """

    client: str
    key_digest: str
    sequence: int


class RoundState(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Opening:
    """A round as it is opened: who is asked, and when it closes. There is no clock in it: a deadline is a length of
    time, and how much of it has passed is told by ``Journal.tick``.

    ``group`` tells rounds of one number and attempt apart, which different clients go through side by side, or one
    after the other, as the edges of a hierarchy do.
    """

    number: int
    attempt: int
    cohort: tuple[str, ...]
    goal: int | None = None
    deadline_s: float | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """A round as it stands. ``members`` are task ids in the order of folding, once it is closed."""

    opening: Opening
    state: RoundState
    elapsed_s: float
    members: tuple[int, ...] = ()


class TaskState(StrEnum):
    OPEN = "open"
    RECEIVED = "received"
    CLOSED = "closed"
    """It got no answer in time, and takes none any more."""
    LOST = "lost"
    """Its client said that it cannot, or was silent. It takes no answer any more."""


@dataclass(frozen=True, slots=True)
class KeptTask:
    """A task, the digest of the blob that its client was sent (None: nothing large), and how it stands.

    ``memory`` is the id of the task that made the memory from which the client starts: it is kept on the device, under
    that id (None: the first). ``reason`` and ``traceback`` are of a lost task. ``group`` is that of its round.
    """

    task: Task
    sent: str | None
    state: TaskState
    memory: int | None = None
    reason: str = ""
    traceback: str = ""
    group: str = ""


class Verdict(StrEnum):
    """What became of an answer."""

    ACCEPTED = "accepted"
    """It is on disk; it counts at most once, whatever happens."""
    CONFLICT = "conflict"
    """The task has another answer already, which stands."""
    LATE = "late"
    """The task was closed, with its round or before, or was lost."""
    STALE = "stale"
    """The same, and the round was drawn again since: a later attempt took the place of the one that is closed."""
    UNKNOWN = "unknown"
    """This client has no such task; nor is it told whether another has."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to an answer. ``number`` is the update's place in the order of arrival, from 1; 0 where it was not
    accepted. A repeated answer gets the same ``Ack``, with ``duplicate`` set.
    """

    task_id: int
    digest: str
    verdict: Verdict
    number: int = 0
    duplicate: bool = False


class Fate(StrEnum):
    ADMITTED = "admitted"
    REFUSED = "refused"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Received:
    """An accepted update: its blob, what its client said beside it, and its fate once that is known."""

    number: int
    task_id: int
    client: str
    digest: str
    size: int
    fields: Fields
    fate: Fate | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Something that a workflow was told, in order; the same answers lead it the same way again."""

    number: int
    kind: str
    content: object


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the model after ``round`` is kept."""

    round: int
    digest: str


class Denial(StrEnum):
    """Why a client's request was refused."""

    BAD_DIGEST = "bad digest"
    WRONG_SIZE = "wrong size"
    NO_UPLOAD = "no upload"
    WRONG_OFFSET = "wrong offset"
    INCOMPLETE = "incomplete"
    WRONG_DIGEST = "wrong digest"
    BUSY = "busy"


class RequestDenied(RoundelayError, ValueError):
    """A client asked for what it may not have; nothing changed, except that bytes of a wrong digest are dropped."""

    def __init__(self, denial: Denial, message: str) -> None:
        super().__init__(message)
        self.denial = denial


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:  # Any: what TOML holds
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
