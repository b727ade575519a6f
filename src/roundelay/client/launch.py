"""Runs a file as a script is run: as ``__main__``, with its arguments, its folder first on the import path."""

import os
import shlex
import sys
import traceback
import types
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from roundelay.algorithms.protocol import NUMBERS, Fit
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError, RoundelayError
from roundelay.layout import Bound
from roundelay.learner import Context


@dataclass(frozen=True, slots=True)
class Script:
    """A script and its arguments; ``folder`` is its working directory."""

    path: Path
    args: Sequence[str]
    folder: Path


def arguments_of(line: str) -> tuple[str, ...]:
    """Split a script's command line as a shell does.

    Raises:
        ConfigError: a quotation has no end.
    """
    try:
        return tuple(shlex.split(line))
    except ValueError as error:
        raise ConfigError(
            f"the script's arguments {line!r} are no command line ({error}); close what is quoted"
        ) from None


class Surroundings:
    """What a script finds around it, put in place for as long as it runs: ``sys.argv``, the import path, the working
    directory and ``__main__``. All four belong to the process, so that of several scripts in one process only one may
    run at a time.
    """

    def __init__(self, script: Script) -> None:
        self._folder = script.folder
        self._argv = [str(script.path), *script.args]
        self._path = [str(script.path.parent), *(p for p in sys.path if p != str(script.path.parent))]
        self.main = types.ModuleType("__main__")
        self.main.__file__ = str(script.path)

    @contextmanager
    def entered(self) -> Iterator[None]:
        before = sys.argv, sys.path, sys.modules["__main__"], os.getcwd()
        sys.argv, sys.path, sys.modules["__main__"] = self._argv, self._path, self.main
        os.chdir(self._folder)
        try:
            yield
        finally:
            self._folder = Path(os.getcwd())  # a script that changed it finds it changed
            sys.argv, sys.path, sys.modules["__main__"], folder = before
            os.chdir(folder)


def run(script: Script, surroundings: Surroundings) -> str:
    """Run the script; return the traceback of what it raised, without our own frames, or "" where it came to its end.

    A script's ``sys.exit(0)`` is an end; another status is a failure. This is the border to code that we do not know:
    any exception becomes a value.
    """
    try:
        code = compile(script.path.read_bytes(), str(script.path), "exec")
        exec(code, surroundings.main.__dict__)
    except SystemExit as end:
        if end.code in (None, 0):
            return ""
        return f"SystemExit: the script ended itself with status {end.code!r}; why is in what it printed (output.log)"
    except BaseException as error:
        ours = error.__traceback__
        inner = ours.tb_next if ours is not None and ours.tb_next is not None else ours
        return "".join(traceback.format_exception(type(error), error, inner))
    return ""


@dataclass(frozen=True, slots=True)
class ScriptLearner:
    """Says that a script of the user's trains. It corrects and reports whatever ``fl.patch`` is called for, which shows
    when it answers.
    """

    path: Path
    args: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ConfigError(f"script: there is no file {self.path}")

    @property
    def corrects(self) -> bool:
        return True

    @property
    def reports(self) -> Set[str]:
        return set(NUMBERS)

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> NoReturn:
        raise RoundelayError("a script trains in a process or thread of its own, not in a trainer")
