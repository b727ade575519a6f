"""Commands of roundelay as real processes that are killed at drawn moments and started again at once.

One process imports everything once and forks the commands, since an import takes longer than a whole run. A life ends
by SIGKILL: before or after the n-th call of a named method, or after so many calls and returns of any code at all. Or
it stops there by SIGSTOP, until this process lets it go on.
"""

import ctypes
import functools
import inspect
import math
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from roundelay import cli

with suppress(ImportError):  # what draws a run's pictures, before the first fork
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

DEADLINE_S = 60.0
PR_SET_PDEATHSIG = 1
STOPS = re.compile(r"stops for (\S+) s\n")


class Ending(Protocol):
    """How a life comes to its end."""

    def arm(self) -> None:
        """Prepare it, in the process that will end."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Stop:
    """Stops the process for so long; how its life comes to its end is armed when it goes on."""

    seconds: float
    then: "Moment | None" = None

    def __call__(self) -> None:
        os.write(1, f"\nstops for {self.seconds} s\n".encode())
        os.kill(os.getpid(), signal.SIGSTOP)
        if self.then is not None:
            self.then.arm()


@dataclass(frozen=True)
class Moment:
    """Of a kill, or of what else is to be done. ``where`` is a class and its method, or None: any code. ``count`` calls
    come before.
    """

    where: tuple[type, str] | None
    count: int
    after: bool = False
    act: Callable[[], None] = die

    def __str__(self) -> str:
        if self.where is None:
            return f"after {self.count} calls and returns"
        owner, method = self.where
        return f"{'after' if self.after else 'before'} call {self.count} of {owner.__name__}.{method}"

    def arm(self) -> None:
        if self.where is None:
            self._arm_anywhere()
            return
        owner, name = self.where
        method = getattr(owner, name)
        left = self.count

        def reached(after: bool) -> None:
            nonlocal left
            if after is self.after:
                left -= 1
                if left == 0:
                    self.act()

        if inspect.iscoroutinefunction(method):

            @functools.wraps(method)
            async def watched(*args: Any, **named: Any) -> Any:
                reached(False)
                result = await method(*args, **named)
                reached(True)
                return result
        else:

            @functools.wraps(method)
            def watched(*args: Any, **named: Any) -> Any:
                reached(False)
                result = method(*args, **named)
                reached(True)
                return result

        setattr(owner, name, watched)

    def _arm_anywhere(self) -> None:
        left = self.count

        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self.act()

        threading.setprofile(count)
        sys.setprofile(count)


class Life:
    """One process of a command. ``output`` is what it has said so far; one that stopped goes on at ``goes_on_s``."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, prepare: Callable[[], None]) -> None:
        self.name, self.output, self.begun_s = name, "", time.monotonic()
        self.num_stops, self.goes_on_s = 0, math.inf
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(arguments, folder, writing, prepare)
        os.close(writing)
        self.status: int | None = None
        self.moment: Ending | None = None

    def wait(self, until: Callable[["Life"], bool]) -> None:
        """Wait until something holds, or the process is over."""
        while self.status is None and not until(self):
            together([self])

    def signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def collect(self, ready: Iterable[int]) -> None:
        if self._reading in ready:
            piece = os.read(self._reading, 65_536).decode()
            self.output += piece
            stops = STOPS.findall(self.output)
            if len(stops) > self.num_stops:
                self.num_stops, self.goes_on_s = len(stops), time.monotonic() + float(stops[-1])
            if not piece:  # nobody writes any more: it ends, or has ended
                self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                os.close(self._reading)

    def fileno(self) -> int:
        return self._reading


def together(lives: Sequence[Life]) -> list[Life]:
    """Wait until one of them says something, or ends, or is to go on; return those that have ended."""
    next_s = min(life.goes_on_s for life in lives)
    ready, _, _ = select.select(lives, [], [], max(0.0, min(DEADLINE_S, next_s - time.monotonic())))
    assert ready or next_s < math.inf, time.asctime() + "\n".join(
        f"{life.name} says nothing more; the last was:\n{life.output[-2000:]}" for life in lives
    )
    for life in ready:
        life.collect([life.fileno()])
    for life in lives:
        if time.monotonic() >= life.goes_on_s:
            life.goes_on_s = math.inf
            life.signal(signal.SIGCONT)
    return [life for life in ready if life.status is not None]


def _live(arguments: Sequence[str], folder: Path, writing: int, prepare: Callable[[], None]) -> None:
    code: object = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody outlives the process that looks after it
        os.chdir(folder)
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        os.close(writing)
        sys.argv = ["roundelay", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs beside itself ignore it
        prepare()
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
