"""The ``roundelay`` command as people type it: simulations, servers with sites that join, workers that listen."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from forked import TESTS, Forked

from roundelay import config

WAIT_S = 100


class Command:
    """The ``roundelay`` command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] = {}) -> None:
        self.output = ""
        self._process = Forked(folder, ["roundelay", *arguments], path=[TESTS], environment=environment)

    def line(self, words: str) -> str:
        """Return the first line that holds ``words``, as soon as it is there."""
        for line in self._process.stdout:
            self.output += line
            if words in line:
                return line.strip()
        raise AssertionError(f"it ended without a word of {words!r}:\n{self.output}")

    def end(self) -> str:
        """Wait for the end, which must be a good one; return what was said."""
        self.output += self._process.communicate(timeout=WAIT_S)[0]
        assert self._process.returncode == 0, self.output
        return self.output

    def stop(self) -> None:
        with self._process:
            self._process.kill()


@contextmanager
def commands(folder: Path, *lines: Sequence[str], environment: Mapping[str, str] = {}) -> Iterator[list[Command]]:
    """Commands that begin side by side, and are ended whatever happens."""
    with ExitStack() as stack:
        begun = []
        for line in lines:
            begun.append(Command(folder, *line, environment=environment))
            stack.callback(begun[-1].stop)
        yield begun


Outcome = tuple[str, list[dict[str, object]], list[dict[str, object]]]


def outcome(folder: Path) -> Outcome:
    """Return what a run came to, real time left out."""
    sha256 = json.loads((folder / "state.json").read_text())["sha256"]
    return sha256, rows(folder / "metrics.jsonl"), rows(folder / "clients.jsonl")


def rows(table: Path) -> list[dict[str, object]]:
    lines: list[Mapping[str, object]] = [json.loads(line) for line in table.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "virtual_s")} for row in lines]


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def simulated(folder: Path, job: str, name: str, *overrides: str) -> Outcome:
    """Run a job file in this process."""
    config.load(folder / job, [f"tracking.root={folder / name}", *overrides]).run()
    return outcome(only(folder / name))


def serve(job: str, name: str, *overrides: str) -> list[str]:
    more = [word for override in overrides for word in ("--set", override)]
    return ["serve", job, "--host", "127.0.0.1", "--port", "0", "--set", f"tracking.root={name}", *more,
            "--folder", f"{name}-server"]  # fmt: skip


def join_line(server: Command) -> list[str]:
    return server.line("roundelay join ").split()[2:]


def served(folder: Path, server: Sequence[str], name: str, sites: Sequence[Sequence[str]]) -> Outcome:
    """Serve a job, have sites join it; return what it came to."""
    with commands(folder, server) as (front,):
        line = join_line(front)
        with commands(folder, *(["join", *line, *site, "--folder", f"{name}-{site[1]}"] for site in sites)) as there:
            for site in there:  # first: one that fails leaves the server waiting for it
                assert "over: " in site.end()
            printed = front.end()
    found = outcome(only(folder / name))
    assert f"sha256: {found[0]}" in printed
    return found


def on_workers(folder: Path, job: str, name: str, sites: Sequence[Sequence[str]], *overrides: str) -> Outcome:
    """Run a job on workers that listen, which go on listening when it is over."""
    with commands(
        folder, *(["worker", "--port", "0", *site, "--folder", f"{name}-{site[1]}"] for site in sites)
    ) as workers:
        addresses = []
        for worker in workers:
            found = re.search(r"worker '(\S+)' waits on (\S+)", worker.line("waits on "))
            assert found is not None
            addresses.append(f"{found[1]}@{found[2]}")
        more = [word for override in overrides for word in ("--set", override)]
        run = ["run", job, "--workers", ",".join(addresses), "--set", f"tracking.root={name}", *more,
               "--folder", f"{name}-server"]  # fmt: skip
        with commands(folder, run) as (front,):
            front.end()
        for worker in workers:
            worker.line("is over: ")
    return outcome(only(folder / name))
