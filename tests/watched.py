"""Decoders at work in a process of their own, where nothing may be run, imported or opened, and memory is short.

``watched`` forks, so that everything is imported already. An audit hook, which nothing can take out again, refuses
what no decoder needs and notes it; each input is timed in CPU seconds and its memory is traced. What was decoded when
something was wrong comes back, so that a failure can be looked at.
"""

import json
import os
import random
import resource
import select
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch
from pydantic import ValidationError

MOST_S, SLACK_BYTES, TIMES = 0.05, 2**20, 4
"""What an input may cost: 50 ms of CPU time; four times its own bytes and 1 MiB."""

SPARE_BYTES = 2**30
"""What the process may map beyond what it had when it began: an allocation that is larger fails."""

MOST_RSS = 64 * 2**20
"""By how much the process may grow over all inputs: what torch allocates is not traced."""

FORBIDDEN = (
    "exec", "compile", "import", "code.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
    "subprocess.", "pickle.find_class", "marshal.", "ctypes.", "socket.", "webbrowser.", "cpython.run",
)  # fmt: skip
OF_FILES = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
            "os.chmod", "os.chown", "os.listdir", "os.scandir", "shutil.", "tempfile.")  # fmt: skip

Failure = tuple[str, str]
"""What was wrong, and the beginning of the input in hex."""


@dataclass(frozen=True)
class Decoder:
    """``seeds`` are inputs that it takes; ``errors`` is what it may answer with. ``first`` is done to an input before
    anybody watches: a file is written. ``extra_bytes`` is what it has besides an input, a vector of a known length;
    with a ``bound_bytes`` its memory has that bound, whatever the input. A slow one gets a smaller ``share`` of inputs.
    """

    name: str
    seeds: tuple[bytes, ...]
    decode: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    first: Callable[[bytes], object] = lambda raw: None
    tokens: tuple[bytes, ...] = ()
    extra_bytes: int = 0
    bound_bytes: int = 0
    share: float = 1.0


@dataclass
class Report:
    num_inputs: int = 0
    num_refused: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    grown_bytes: int = 0
    events: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def check(self) -> None:
        assert not self.events, f"audit events: {self.events[:5]}"
        assert not self.failures, f"{len(self.failures)} failures: {self.failures[:8]}"
        assert self.grown_bytes <= MOST_RSS, f"the process grew by {self.grown_bytes >> 20} MiB"


class Watch:
    """An audit hook: armed, it refuses and notes. One a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.armed, self.events = str(folder.resolve()) + os.sep, False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if not self.armed:
            return
        if event.startswith(FORBIDDEN) or (
            event.startswith(OF_FILES) and self._outside(args[:1] if event == "open" else args[:2])
        ):
            self.armed = False
            self.events.append(f"{event} {str(args)[:120]}")
            raise PermissionError(f"{event} is forbidden here")

    def _outside(self, args: tuple[object, ...]) -> bool:
        named = [os.fspath(one) for one in args if isinstance(one, str | bytes | os.PathLike)]  # not descriptors
        return any(not (os.path.realpath(os.fsdecode(name)) + os.sep).startswith(self.folder) for name in named)


def run(decoders: Iterable[tuple[Decoder, Iterable[bytes]]], folder: Path) -> Report:
    """Give each decoder its inputs; the caller's process gets the hook for good."""
    report, watch = Report(), Watch(folder)
    process = psutil.Process()
    given = list(decoders)
    for decoder, _ in given:  # what is imported or cached at first use is there then
        for seed in decoder.seeds:
            decoder.first(seed)
            decoder.decode(seed)
    resource.setrlimit(resource.RLIMIT_AS, (process.memory_info().vms + SPARE_BYTES, resource.RLIM_INFINITY))
    tracemalloc.start()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: tests that ran before may have left it high
    before = process.memory_info()
    for decoder, inputs in given:
        already = len(report.failures)
        for raw in inputs:
            _one(decoder, raw, watch, report)
            if len(report.failures) > already + 2:
                break
    report.events = watch.events
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    libraries = process.memory_info().shared - before.shared  # pages of files that a forked process touches anew
    report.grown_bytes = max(0, peak - before.rss - libraries)
    return report


def _one(decoder: Decoder, raw: bytes, watch: Watch, report: Report) -> None:
    report.num_inputs += 1
    decoder.first(raw)
    tracemalloc.reset_peak()
    had = tracemalloc.get_traced_memory()[0]
    refused, wrong, took_s = _tried(decoder, raw, watch)
    used = tracemalloc.get_traced_memory()[1] - had
    for _ in range(5):  # tracing takes time itself, and slow once may be somebody else's doing
        if took_s <= MOST_S:
            break
        tracemalloc.stop()
        decoder.first(raw)
        took_s = min(took_s, _tried(decoder, raw, watch)[2])
        tracemalloc.start()
    report.num_refused += refused
    report.slowest_s, report.most_bytes = max(report.slowest_s, took_s), max(report.most_bytes, used)
    if took_s > MOST_S:
        wrong = wrong or f"took {took_s * 1000:.0f} ms"
    if used > (decoder.bound_bytes or TIMES * (len(raw) + decoder.extra_bytes) + SLACK_BYTES):
        wrong = wrong or f"took {used} bytes for {len(raw)}"
    if wrong:
        report.failures.append((f"{decoder.name}: {wrong}", raw[:200].hex()))


def _tried(decoder: Decoder, raw: bytes, watch: Watch) -> tuple[bool, str, float]:
    """Return whether it was refused, what was wrong with that, and how long it took."""
    raised: BaseException | None = None
    watch.armed, begun = True, time.thread_time()
    try:
        decoder.decode(raw)
    except BaseException as error:  # whatever it is, it is told
        raised = error
    took_s, watch.armed = time.thread_time() - begun, False
    if raised is None:
        return False, "", took_s
    if not isinstance(raised, decoder.errors):
        return True, f"{type(raised).__name__}: {str(raised)[:200]}", took_s
    if isinstance(raised, ValidationError):  # whoever catches it tells some of its faults; all take long to write
        return True, "", took_s
    length = len(str(raised))
    return True, "" if 0 < length <= 4_000 + 4 * len(raw) else f"its message has {length} characters", took_s


def watched(work: Callable[[], Report], timeout_s: float = 300.0) -> Report:
    """Do ``work`` in a forked process, and return what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _live(work, writer)
    os.close(writer)
    said, end = bytearray(), time.monotonic() + timeout_s
    try:
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(reader, 2**16)
            if not piece:
                break
            said += piece
        else:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"no end after {timeout_s} s")
    finally:
        os.close(reader)
        status = os.waitpid(child, 0)[1]
    assert said, f"it ended with status {status}, and said nothing"
    content = json.loads(said)
    assert "raised" not in content, content["raised"]
    return Report(**content)


def _live(work: Callable[[], Report], writer: int) -> None:
    try:
        torch.set_num_threads(1)
        told = asdict(work())
    except BaseException as error:
        told = {"raised": f"{type(error).__name__}: {error}"}
    os.write(writer, json.dumps(told).encode()[: 2**16])
    os._exit(0)


# ---- inputs ---------------------------------------------------------------------------------------------------------

TOKENS = (
    b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"{}", b"[]", b"null", b"true", b"NaN", b"-Infinity",
    b"1e999", b"-1", b"0", b"9" * 30, b'""', b'"\\ud800"', b"__class__", b"builtins", b"eval", b"os.system", b"../../x",
    b"/etc/passwd", b"\n", b"\r\n", b" ", b'"', b"{", b"[", b",", b":",
    "é\u202e\uff0e".encode(), b"\x80\x04cos\nsystem\n(S'id'\ntR.",
)  # fmt: skip


def mutated(
    seeds: tuple[bytes, ...], count: int, draw: random.Random, tokens: tuple[bytes, ...] = ()
) -> Iterator[bytes]:
    """Yield inputs that were good, with one to five changes each."""
    words = TOKENS + tokens
    for _ in range(count):
        raw = bytearray(draw.choice(seeds))
        for _ in range(draw.choice((1, 1, 1, 2, 3, 5))):
            at = draw.randrange(len(raw) + 1)
            end = min(len(raw), at + draw.choice((0, 1, 1, 2, 4, 8, 64)))
            match draw.randrange(7):
                case 0 if at < len(raw):
                    raw[at] ^= 1 << draw.randrange(8)
                case 1 if at < len(raw):
                    raw[at] = draw.randrange(256)
                case 2:
                    raw[at:end] = draw.choice(words)
                case 3:
                    del raw[at:end]
                case 4:
                    raw[at:at] = raw[at:end] * draw.choice((1, 2, 50))
                case 5:
                    other = draw.choice(seeds)
                    raw[at:end] = other[at:end] if draw.random() < 0.5 else other[draw.randrange(len(other) + 1) :][:64]
                case _ if draw.random() < 0.2:
                    del raw[at:]
        yield bytes(raw)
