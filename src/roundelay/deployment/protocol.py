"""What a device and a server say to each other over HTTPS: paths, and messages in JSON. Tensors travel as frames.

    device                                     server                       meaning
    GET  /authority.crt                        PEM                          whose pin is this (pinning.py)
    GET  /v1/hello                             Hello                        which run, which protocol
    POST /v1/join            Join              Joined                       a token for a key, once
  signed, from here on (signing.py):
    GET  /v1/run                               Briefing                     what the run is about, for this client
    POST /v1/work            Poll              Offer (+ a frame), or 204    something to do; waits a while for it
    GET  /v1/blobs/{digest}                    a frame                      the model of an offered task; Range, ETag
    POST /v1/beat            Beat              Beaten                       I am here; which of these are still wanted?
    POST /v1/updates/{task}  Announce          Receipt                      I have this answer; where do I go on?
    PUT  /v1/updates/{task}?digest&offset&size Receipt                      a part of it, raw bytes; or all, unannounced
    POST /v1/failures/{task} Failure           Noted                        I cannot do this task
    POST /v1/data            Holding           Noted                        so much data is here, as far as I tell
    POST /v1/scalars         Scalars           Noted                        numbers that a script logged

What is refused has a status of 4xx or 5xx and a ``Problem``; 503 says ``Retry-After``. A server that has nothing more
to do answers 410.

A request is about a run, and a signature says which. Whoever meets another run than the one it knows asks ``hello``.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from roundelay.deployment.journal.records import Verdict

PROTOCOL = 3
"""Counts changes after which a device and a server of before do not understand each other."""

HELLO, JOIN, RUN, WORK, BEAT, DATA, SCALARS = (
    "/v1/hello", "/v1/join", "/v1/run", "/v1/work", "/v1/beat", "/v1/data", "/v1/scalars",
)  # fmt: skip
BLOBS, UPDATES, FAILURES = "/v1/blobs", "/v1/updates", "/v1/failures"
HEALTH, READY, STATS, OPENAPI = "/healthz", "/readyz", "/stats", "/openapi.json"

MAX_MESSAGE_BYTES, MAX_JOIN_BYTES = 2**20, 4 * 2**10
"""Of a message in JSON to the server. A ``Briefing`` may be longer: it names every tensor of the model."""

MAX_BRIEFING_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20
"""Of an answer's frame beside its tensors: its metrics have names of their senders' choice."""

PART_BYTES = 8 * 2**20
"""How much of an answer is sent, synced and acknowledged at a time: what a cut costs at most."""

ENCLOSED_BYTES = 2**20
"""A model of up to so many bytes comes with its offer, where that is asked for: a request less."""

MAX_WAIT_S = 30.0
"""How long a poll for work is kept waiting at most; below what proxies and NATs take for dead."""

MAX_ROUNDS, MAX_CURVES = 1_000, 200
"""How many rounds and names the curves have at most, that whoever asks for them costs no more than this."""

GONE_AFTER = 20
"""So many heartbeats of silence, and a client counts as lost in the rounds that wait for it."""

Name = Annotated[str, Field(min_length=1, max_length=64)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaskId = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class Message(BaseModel):
    """Frozen, and nothing in it that is not named here; of the types that are named, not of similar ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")


class Hello(Message):
    """``joining`` tells whether somebody new may still join."""

    protocol: int
    version: str
    run: str
    joining: bool


class Join(Message):
    """``public_key`` as base64url. ``client`` is the name that the site chose, None to be given one."""

    token: Annotated[str, Field(max_length=128)]
    public_key: Annotated[str, Field(max_length=64)]
    client: Name | None = None


class Joined(Message):
    client: Name
    run: str


class Briefing(Message):
    """What one client needs to know of a run. ``site`` is the welcome that scripts get too (client/exchange.py);
    ``settings`` are the parts of the job that a device may use, as TOML: names of roundelay's own components only.
    """

    run: str
    client: Name
    heartbeat_s: Seconds
    site: dict[str, Any]  # Any: JSON's types nest
    settings: str


class Poll(Message):
    """``doing`` are the tasks that the device has already, in whatever stage; ``wait_s`` is how long it would wait;
    ``having`` are models that need not be enclosed, None: do not enclose any.
    """

    doing: Annotated[list[TaskId], Field(max_length=1_000)] = []
    wait_s: Seconds = 0.0
    having: Annotated[list[Digest], Field(max_length=16)] | None = None


class Offer(Message):
    """A task, the blob of the model that it begins from, and the task whose memory it begins from (None: none yet).

    A task of kind "load" asks how busy the device is, whatever model comes with it; its answer's metrics are readings.
    What the device remembers of earlier tasks than that one it may forget. Where the model is ``enclosed``, its bytes
    follow in the same body, after a line break.
    """

    id: TaskId
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=-1)]
    kind: Literal["train", "evaluate", "submit", "load"]
    config: dict[str, Any]  # Any: settings of a learner
    sent: Digest
    size: Annotated[int, Field(ge=0)]
    memory: TaskId | None
    enclosed: bool = False


class Beat(Message):
    doing: Annotated[list[TaskId], Field(max_length=1_000)] = []


class Beaten(Message):
    """``over`` are those of the tasks that nobody waits for any more."""

    over: list[TaskId]


class Announce(Message):
    digest: Digest
    size: Annotated[int, Field(gt=0)]


class Settled(Message):
    """What became of an answer: only "accepted" says that it is on disk, once and for all."""

    verdict: Verdict
    number: int
    duplicate: bool


class Receipt(Message):
    """``received`` bytes of the answer are on disk; ``settled`` is None until all of it is there."""

    received: int
    settled: Settled | None = None


class Failure(Message):
    reason: Annotated[str, Field(max_length=4_000)]
    traceback: Annotated[str, Field(max_length=60_000)] = ""


class Holding(Message):
    """How many examples a client has, and of each class, where whoever started it allows that to be told."""

    num_examples: Annotated[int, Field(ge=0)]
    label_counts: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=100_000)] | None = None


class LoggedScalar(Message):
    name: Annotated[str, Field(max_length=512)]
    value: float
    step: int


class Scalars(Message):
    """Numbers that a script logged in a round, as it counts them."""

    round: Annotated[int, Field(ge=0)]
    scalars: Annotated[list[LoggedScalar], Field(max_length=1_000)]


class Noted(Message):
    """It was taken note of."""


class Curves(Message):
    """The numbers of the last rounds, one list for each name, with a value for each round: None where it has none that
    is finite. ``left_out`` rounds came before, and are in the run folder.
    """

    left_out: Annotated[int, Field(ge=0)]
    rounds: dict[str, list[float | int | None]]


class Stats(Message):
    """``silent_s`` is how long ago each client was heard of; bytes and requests are counted from the server's start."""

    run: str
    phase: str
    reason: str
    uptime_s: float
    silent_s: dict[str, float]
    gone_after_s: float
    requests: int
    in_flight: int
    bytes_in: int
    bytes_out: int
    open_tasks: int
    progress: Curves


class Problem(Message):
    """Why a request was refused: ``error`` for programs, one of ``ERRORS``; ``message`` for people. ``received`` says
    where an upload goes on, where that is what was wrong.
    """

    error: str
    message: str
    received: int | None = None


ERRORS = {
    "signature": "401: the request is not signed by this client, was changed, or was made before",
    "another_run": "409: the signature is for another run; ask hello, and sign anew",
    "token": "403: the token is unknown, spent or too old, the name is taken, or the run has no seat for this client",
    "message": "400: the message has not the form that is described here",
    "too_large": "413: more bytes than this request may have",
    "not_found": "404: there is no such thing for this client",
    "upload": "409: the part does not fit what was announced; received says where to go on",
    "digest": "422: the bytes have another digest; they were removed, send them again",
    "busy": "503: too much is under way; come again after Retry-After seconds",
    "disk": "503: the server's disk failed or is full; nothing was acknowledged",
    "draining": "503: the server is about to stop, and starts again perhaps",
    "over": "410: the run has ended; message says how",
}


def printable(text: str, max_chars: int = 500) -> str:
    """Return what may be shown in a terminal of a text that came from elsewhere."""
    return "".join(char if char.isprintable() else "?" for char in text[:max_chars])
