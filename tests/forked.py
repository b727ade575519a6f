"""Commands and scripts as processes that are forked, where what they do is tested and not how an interpreter starts.

They come from the server that also forks a simulation's workers, which has imported torch and its optimisers once: to
do so anew takes longer than most of what is run. Each has its own folder, words, path and output, as if it were typed.
"""

import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO

from roundelay.hosting.forkserver import context, main_hidden
from roundelay.simulation.executors.processes import PRELOAD

SERVER = {"_forkserver_address", "_forkserver_authkey"}
"""Where the server is: a process that it forked would start one of its own."""

TESTS = Path(__file__).parent


class Forked:
    """``roundelay ...``, or ``python FILE.py ...``, in ``folder``. Stands in for a ``Popen`` whose output is text;
    what it says on stderr goes to ``errors``, or among the rest.
    """

    def __init__(
        self, folder: Path, words: Sequence[str], *, path: Sequence[Path] = (), errors: Path | None = None,
        environment: Mapping[str, str] = {},
    ) -> None:  # fmt: skip
        forking = context(PRELOAD)
        reader, writer = forking.Pipe(duplex=False)
        forkserver.ensure_running()
        server = {name: value for name, value in vars(forkserver._forkserver).items() if name in SERVER}  # type: ignore[attr-defined]
        own = [str(one) for one in sys.path if not Path(one).is_relative_to(TESTS)]
        self._process = forking.Process(
            target=_live, args=(server, folder, list(words), [*map(str, path), *own], writer, errors, dict(environment))
        )
        with main_hidden():
            self._process.start()
        writer.close()
        self.stdout: IO[str] = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float) -> int | None:
        """Return how it ended, None where it did not."""
        self._process.join(timeout)
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, None]:
        said = self.stdout.read()
        self.wait(timeout)
        return said, None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._process.join()
        self.stdout.close()


def ran(folder: Path, *words: str, environment: Mapping[str, str] = {}) -> str:
    """Run something to its end, which must be a good one; return what it said on stdout."""
    with (
        tempfile.NamedTemporaryFile() as errors,
        Forked(folder, words, errors=Path(errors.name), environment=environment) as process,
    ):
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said + Path(errors.name).read_text()
        return said


def _live(
    server: Mapping[str, object], folder: Path, words: Sequence[str], path: Sequence[str], output: Connection,
    errors: Path | None, environment: Mapping[str, str],
) -> None:  # fmt: skip
    vars(forkserver._forkserver).update(server, ensure_running=lambda: None)  # type: ignore[attr-defined]
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno() if errors is None else os.open(errors, os.O_WRONLY), 2)
    output.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    program, *arguments = words
    sys.argv = [program, *arguments]
    sys.path = ["" if program == "roundelay" else str((folder / program).parent), *path]
    if program != "roundelay":
        runpy.run_path(program, run_name="__main__")
        return
    from roundelay.cli import main

    main()
