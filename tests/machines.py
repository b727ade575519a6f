"""Two machines in one: network namespaces with a link between them that can be cut. For root on Linux only."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

AS_A_COMMAND = (sys.executable, "-c", "from roundelay.cli import main; main()")
SERVER_NAME = "fl.example.org"
RATE = "60mbit"


def need_namespaces() -> None:
    """Skip the test where this machine cannot be two."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the `ip` command")
    name = f"rl{os.getpid()}p"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"network namespaces cannot be made here: {tried.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", name], check=True)


class Process:
    """A command on one of the machines. Its lines are read from a file, so that nobody has to drain a pipe."""

    def __init__(self, command: Sequence[str], folder: Path, output: Path) -> None:
        self.output = output
        env = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        with open(output, "wb") as file:
            self.popen = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def is_over(self) -> bool:
        return self.popen.poll() is not None

    def has_said(self, text: str) -> bool:
        return text in self.said

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> "re.Match[str]":
        found: list[re.Match[str]] = []

        def there() -> bool:
            match = re.search(pattern, self.said)
            found.extend([match] if match else [])
            return bool(match) or self.is_over

        until(there, f"{pattern!r} in {self.output.name}", timeout_s)
        assert found, f"it ended with {self.popen.returncode}:\n{self.said}"
        return found[0]

    def ended(self, timeout_s: float = 120.0) -> int:
        return self.popen.wait(timeout_s)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(30)


class Machine:
    """``name`` is its namespace, ``device`` its end of the link."""

    def __init__(self, name: str, device: str, folder: Path) -> None:
        self.name, self.device, self.folder = name, device, folder
        self.processes: list[Process] = []
        folder.mkdir(parents=True)

    def ip(self, *words: str) -> str:
        done = subprocess.run(["ip", "-n", self.name, *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout

    def begin(self, words: str, folder: Path | None = None, name: str = "") -> Process:
        """Start ``roundelay WORDS`` here."""
        output = self.folder / f"{name or words.split()[0]}{len(self.processes)}.out"
        command = ["ip", "netns", "exec", self.name, *AS_A_COMMAND, *words.split()]
        process = Process(command, folder or self.folder, output)
        self.processes.append(process)
        return process

    def sent_bytes(self) -> int:
        (told,) = json.loads(self.ip("-s", "-j", "link", "show", "dev", self.device))
        return int(told["stats64"]["tx"]["bytes"])

    def typed(self, command: str) -> str:
        """Run any command here, and return what it printed."""
        words = ["ip", "netns", "exec", self.name, *command.split()]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout


class Pair:
    def __init__(self, server: Machine, site: Machine, is_slow: bool) -> None:
        self.server, self.site, self.is_slow = server, site, is_slow

    def cut(self) -> None:
        self.server.ip("link", "set", "dev", self.server.device, "down")

    def mend(self) -> None:
        self.server.ip("link", "set", "dev", self.server.device, "up")


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[Pair]:
    """Yield two machines that reach each other; all that runs on them, and they themselves, are gone afterwards."""
    need_namespaces()
    names = [f"rl{os.getpid()}{end}" for end in "sc"]
    machines: list[Machine] = []
    try:
        for number, name in enumerate(names):
            _run("ip", "netns", "add", name)
            hosts = Path("/etc/netns") / name / "hosts"  # what `ip netns exec` shows as /etc/hosts
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n10.214.0.1 {SERVER_NAME}\n")
            machines.append(Machine(name, f"v{name}", folder / ("server", "site")[number]))
        server, site = machines
        server.ip("link", "add", server.device, "type", "veth", "peer", "name", site.device, "netns", site.name)
        for number, machine in enumerate(machines, start=1):
            machine.ip("address", "add", f"10.214.0.{number}/24", "dev", machine.device)
            machine.ip("link", "set", "dev", "lo", "up")
            machine.ip("link", "set", "dev", machine.device, "up")
        slow = f"tc -n {site.name} qdisc add dev {site.device} root tbf rate {RATE} burst 64kb latency 300ms".split()
        is_slow = (
            shutil.which("tc") is not None and subprocess.run(slow, capture_output=True, check=False).returncode == 0
        )
        yield Pair(server, site, is_slow)
    finally:
        for machine in machines:
            for process in machine.processes:
                process.kill()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, timeout=30)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()  # only if nobody else has something there


def until(holds: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Look again and again for what other processes do."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, f"{what} did not come about in {timeout_s:g} s"
        time.sleep(0.02)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True, timeout=30)
