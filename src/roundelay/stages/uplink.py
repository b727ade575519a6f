"""What becomes of an update before it goes on the air: difference, trigger, feedback, codec; on the client's side.

Error feedback: F. Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; S. P. Karimireddy et al., "Error
Feedback Fixes SignSGD", ICML 2019. EF21: P. Richtarik, I. Sokolov, I. Fatkhullin, "EF21: A New, Simpler, Theoretically
Better, and Practically Faster Error Feedback", NeurIPS 2021, Algorithm 2.

    x    what a client would send of a vector: with ``difference``, what training added to the parameters that it
         received; otherwise the vector itself
    C    the codec, there and back
    e    "error": the residual. C(x + e) is sent, and e becomes x + e - C(x + e)
    g    "ef21": what the server holds of this client. C(x - g) is sent, and both ends add it to g

What a client keeps here is part of its memory, and pending like all of it: who is refused, late or lost has sent
nothing, and its residual stands where it stood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.errors import ConfigError, DataError
from roundelay.messages import Config, Memory, Payload, Task
from roundelay.stages.codecs import FP32
from roundelay.stages.codecs.protocol import Codec
from roundelay.stages.triggers import Always, Lag, MaxSilence, Moment, Trigger, verdict

UPLINK = "uplink "
"""Before the names of what a client remembers for its uplink: residuals by vector, and what the trigger keeps."""

FEEDBACKS = ("none", "error", "ef21")
SILENCES = ("exclude", "zero", "reuse")
STEPS = "model steps"
"""Under this name a task tells the squared lengths of the model's last steps, the newest first, for ``Lag``."""

POINT = "params"
"""The one vector that is a point; all others are increments as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """How the vectors of an update travel.

    With ``difference`` the codec sees what training added to the parameters that were received, else the parameters.
    ``feedback`` is "none", "error" (what the codec lost is added next time) or "ef21" (the codec sees what changed
    since the client's last update). Where a ``trigger`` does not fire, the client says in ``skip_bits`` that it sends
    nothing, and ``on_silence`` says what that means, for which there is no default: "exclude" folds the others only,
    "zero" folds the client as one that has not moved, "reuse" adds what it last sent to the model of now.

    Vectors of one value, float buffers and integers travel as they are.
    """

    codec: Codec = field(default_factory=FP32)
    difference: bool = True
    feedback: str = "none"
    trigger: Trigger = field(default_factory=Always)
    on_silence: str | None = None
    skip_bits: int = 8

    def __post_init__(self) -> None:
        for name, kind in (("codec", "QSGD(...)"), ("trigger", "SendOnDelta(...)")):
            value = getattr(self, name)
            verb = "encode" if name == "codec" else "fires"
            if isinstance(value, type) or not hasattr(value, verb):
                raise ConfigError(f"uplink {name} must be one such as {kind}, got {value!r}")
        _choose(self, "feedback", FEEDBACKS)
        if self.triggered or self.on_silence is not None:
            _choose(self, "on_silence", SILENCES)
        if self.feedback == "error" and self.triggered and (self.on_silence == "reuse" or not self.difference):
            raise ConfigError(
                "uplink feedback 'error' keeps all of a step that is not sent for the next one: on_silence = 'reuse' "
                "would fold an old step in its place, and without difference there is no step; use feedback = 'ef21', "
                "or on_silence = 'zero' with difference"
            )
        if isinstance(self.skip_bits, bool) or not isinstance(self.skip_bits, int) or self.skip_bits < 0:
            raise ConfigError(f"uplink skip_bits must be a whole number of at least 0, got {self.skip_bits!r}")
        if self.depth and self.on_silence != "reuse":
            raise ConfigError("uplink trigger Lag leaves the last step of who is silent in place: it needs "
                              f"on_silence = 'reuse', got {self.on_silence!r}")  # fmt: skip

    @property
    def depth(self) -> int:
        """How many of the model's last steps clients are told the lengths of."""
        inner = self.trigger
        while isinstance(inner, MaxSilence):
            inner = inner.then
        return inner.depth if isinstance(inner, Lag) else 0

    @property
    def triggered(self) -> bool:
        """Whether a client may stay silent."""
        return not isinstance(self.trigger, Always)

    @property
    def is_heard(self) -> bool:
        """Whether the server must keep what it last reconstructed of every client."""
        return self.feedback == "ef21" or (self.triggered and self.on_silence == "reuse")

    @property
    def skip_bytes(self) -> int:
        """The bytes of a notice that nothing is sent: whole ones, as everything that is counted."""
        return -(-self.skip_bits // 8)


@dataclass(frozen=True, slots=True)
class Coded:
    """An update as it travels; ``memory`` is what the client comes to remember for its uplink. It is ``fresh`` where
    the client holds nothing that it had sent before: one that has lost its memory says so, or both ends would go on
    from different vectors.
    """

    payload: Payload
    memory: Memory
    silent: bool = False
    fresh: bool = False


def with_steps(steps: Sequence[float]) -> Config:
    """Return what a task is told of the model's last steps."""
    return {STEPS: " ".join(map(repr, steps))} if steps else {}


def steps_of(config: Config) -> list[float]:
    return [float(step) for step in str(config.get(STEPS, "")).split()]


def for_training(task: Task) -> Task:
    """Return a task as who trains on it knows it: without what it tells for the uplink alone."""
    if STEPS not in task.config:
        return task
    return replace(task, config={name: value for name, value in task.config.items() if name != STEPS})


def apart(memory: Memory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a client remembers for its work, and what for its uplink, the latter without its prefix."""
    work = {name: value for name, value in memory.items() if not name.startswith(UPLINK)}
    return work, {name[len(UPLINK) :]: value for name, value in memory.items() if name.startswith(UPLINK)}


def kept(memory: Memory) -> dict[str, Tensor]:
    """Return what a client remembers for its uplink, under the names that its memory has for it."""
    return {UPLINK + name: value for name, value in memory.items()}


def coded(uplink: Uplink, seed: int, task: Task, received: Payload, payload: Payload, memory: Memory) -> Coded:
    """Return what a client sends in place of ``payload``, all on the CPU. ``memory`` is what it remembers for its
    uplink.
    """
    increments = {name: _increment(uplink, name, vector, received) for name, vector in payload.vectors.items()}
    came, remembered = dict(memory), dict[str, Tensor]()
    if uplink.triggered:
        start = received.vectors[POINT]
        step = payload.vectors[POINT] - start
        if uplink.feedback == "error" and POINT in came:
            step = step + came[POINT]
        says = verdict(uplink.trigger, step, start, Moment(task.round, came, steps_of(task.config)))
        remembered = dict(says.memory)
        if not says.fires:
            return _unsent(uplink, increments, came, remembered)
    vectors = dict[str, Tensor]()
    for name, x in increments.items():
        if x.numel() == 1:
            vectors[name] = payload.vectors[name]
            continue
        generator = seeds.generator(seed, task.round, task.attempt, task.client, f"codec {name}")
        sent = _sent(uplink, x, came.get(name), generator)
        if sent is None:  # it cannot be told in this codec: the server is to hear what it is, and refuse it
            return Coded(payload, kept({**came, **remembered}))
        vectors[name] = sent[0]
        if sent[1] is not None:
            remembered[name] = sent[1]
    fresh = uplink.feedback == "ef21" and not any(name in came for name in vectors)
    return Coded(Payload(vectors, payload.buffers, payload.integers), kept({**came, **remembered}), fresh=fresh)


def _increment(uplink: Uplink, name: str, vector: Tensor, received: Payload) -> Tensor:
    if name == POINT and uplink.difference and vector.numel() > 1:
        return vector - received.vectors[POINT]
    return vector


def _sent(
    uplink: Uplink, x: Tensor, before: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None] | None:
    """Return the bytes of a vector, and what is remembered of it: the residual, or what the server holds now; None
    where the codec has no bytes for it.
    """
    if uplink.feedback == "none":
        before = None
    elif before is not None:
        x = x + before if uplink.feedback == "error" else x - before
    try:
        data = uplink.codec.encode(x, generator)
    except DataError:
        return None
    if uplink.feedback == "none":
        return data, None
    there = uplink.codec.decode(data, x.numel()).to(x.dtype)
    if uplink.feedback == "error":
        return data, x - there
    return data, there if before is None else before + there


def _unsent(uplink: Uplink, increments: Mapping[str, Tensor], came: Memory, remembered: Memory) -> Coded:
    """Return a notice that nothing is sent. Where there is feedback, what is not sent is not lost."""
    held = dict[str, Tensor]()
    if uplink.feedback == "error":
        held = {name: x + came[name] if name in came else x.clone() for name, x in increments.items()}
    empty = next(iter(increments.values())).new_empty(0)
    nothing = Payload({}, empty, torch.empty(0, dtype=torch.int64))
    return Coded(nothing, kept({**came, **remembered, **held}), silent=True)


def _choose(uplink: Uplink, name: str, known: tuple[str, ...]) -> None:
    if getattr(uplink, name) not in known:
        raise ConfigError(f"uplink {name} must be one of {', '.join(map(repr, known))}, got {getattr(uplink, name)!r}")
