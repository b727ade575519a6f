"""What a server must say to each request of a device, given those before it, in sixty lines."""

from dataclasses import dataclass, field

from fronts import DAY_S
from journals import sha256

from roundelay.deployment.journal.records import Verdict

NOW_S = 1.7e9
WEEK_S = 7 * DAY_S
Outcome = tuple[object, ...]


@dataclass(frozen=True)
class Sent:
    """A request on its way. ``skew_s`` is how far its device's clock is ahead; ``data`` is the whole answer, of which
    ``length`` bytes from ``offset`` on come with it.
    """

    kind: str
    client: str
    key: int = 0
    sequence: int = 0
    skew_s: float = 0.0
    task: int = 0
    round: int = 0
    data: bytes = b""
    offset: int = 0
    length: int = 0
    raw: bytes = b""


@dataclass
class Asked:
    """A task as the model knows it: ``came`` is the digest of the answer that stands, and its number."""

    client: str
    round: int
    attempt: int
    state: str = "open"
    came: tuple[str, int] = ("", 0)


@dataclass
class Model:
    """What the server must say to each request, given those before it."""

    wall_s: float = NOW_S
    keys: dict[str, int] = field(default_factory=dict)
    highest: dict[tuple[str, int], int] = field(default_factory=dict)
    tasks: dict[int, Asked] = field(default_factory=dict)
    rounds: dict[tuple[int, int], str] = field(default_factory=dict)
    uploads: dict[str, tuple[str, int]] = field(default_factory=dict)
    num_accepted: int = 0

    def answer(self, sent: Sent) -> Outcome:
        if sent.kind == "join":
            bound = self.keys.setdefault(sent.client, sent.key) == sent.key
            return ("joined", sent.client) if bound else ("refused", "token", None)
        off_s, last = abs(NOW_S + sent.skew_s - self.wall_s), self.highest.get((sent.client, sent.key), -1)
        if self.keys.get(sent.client) != sent.key or off_s > WEEK_S or sent.sequence <= last:
            return "refused", "signature", None
        self.highest[sent.client, sent.key] = sent.sequence
        task = self.tasks.get(sent.task)
        own = task if task is not None and task.client == sent.client else None
        if own is not None and sent.round != own.round:
            return "refused", "signature", None
        if sent.kind == "work":
            mine = [i for i, task in self.tasks.items() if (task.client, task.state) == (sent.client, "open")]
            return ("offer", min(mine), self.tasks[min(mine)].round) if mine else ("nothing",)
        if sent.kind == "fail":
            if own is not None and own.state == "open":
                own.state = "lost"
            return ("noted",) if own is not None else ("refused", "not_found", None)
        digest, size = sha256(sent.data), len(sent.data)
        verdict = self.verdict(own, digest)
        if verdict is not None:
            return "receipt", size, verdict
        known, received = self.uploads.get(sent.client, ("", 0))
        if sent.kind == "announce":
            self.uploads[sent.client] = (digest, received if known == digest else 0)
            return "receipt", self.uploads[sent.client][1], None
        whole = sent.length == size
        if known != digest and not whole:
            return "refused", "upload", 0
        if known == digest and sent.offset != received:
            return "refused", "upload", received
        self.uploads[sent.client] = (digest, sent.offset + sent.length)
        if sent.offset + sent.length < size:
            return "receipt", sent.offset + sent.length, None
        assert own is not None
        del self.uploads[sent.client]
        self.num_accepted += 1
        own.state, own.came = "received", (digest, self.num_accepted)
        return "receipt", size, (Verdict.ACCEPTED, self.num_accepted, False)

    def verdict(self, task: Asked | None, digest: str) -> Outcome | None:
        if task is None:
            return Verdict.UNKNOWN, 0, False
        if task.came[0]:
            return (Verdict.ACCEPTED, task.came[1], True) if task.came[0] == digest else (Verdict.CONFLICT, 0, False)
        drawn_again = (
            self.rounds[task.round, task.attempt] == "closed" and (task.round, task.attempt + 1) in self.rounds
        )
        late = Verdict.STALE if drawn_again else Verdict.LATE
        return None if task.state == "open" else (late, 0, False)
