"""kill -9 of a real process that writes a journal: what it had told is there, and the next process goes on."""

import subprocess
import sys
from pathlib import Path

import pytest
from journals import quick_folder

DRIVER = """
import os, pickle, random, signal, sys
from pathlib import Path
from journals import CLIENTS, check, opened, result, serve

def child(folder, pipe, moments):
    # killed by itself after so many calls and returns, of Python or of C; 0: by the other process, whenever that is
    def count(*_):
        nonlocal moments
        moments -= 1
        if moments == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    journal = opened(folder)
    if moments:
        sys.setprofile(count)
    serve(journal, lambda *told: os.write(pipe, pickle.dumps(told)))
    os._exit(0)

def life(folder, draw, told):
    # one process until it is killed; what it has told is added. Returns whether it came to the end
    reading, writing = os.pipe()
    moments, after = (draw.randrange(1, 6000), 10**9) if draw.random() < 0.6 else (0, draw.randrange(1, 25))
    pid = os.fork()
    if pid == 0:
        child(folder, writing, moments)
    os.close(writing)
    with open(reading, "rb") as pipe:
        for heard in range(10**9):
            try:
                told.append(pickle.load(pipe))
            except (EOFError, pickle.UnpicklingError):
                break
            if heard == after:
                os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0

def main(root, runs):
    with opened(root / "undisturbed") as journal:
        serve(journal, lambda *_: None)
        whole = result(journal)
    lives = 0
    for run in range(runs):
        draw, told, folder = random.Random(run), [], root / f"run {run}"
        while True:
            lives += 1
            ended = life(folder, draw, told)
            with opened(folder) as journal:
                check(journal, told)
                if ended:
                    assert result(journal) == whole
                    break
    print(lives - runs)

main(Path(sys.argv[1]), int(sys.argv[2]))
"""


def killed(root: Path, runs: int, plant: str = "") -> subprocess.CompletedProcess[str]:
    """Let so many runs be killed until they have come to their end: one process that imports once, and forks."""
    run = [sys.executable, "-c", plant + DRIVER, str(root), str(runs)]
    return subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_no_kill_loses_or_doubles_what_was_acknowledged() -> None:
    with quick_folder() as root:
        done = killed(Path(root), runs=5)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10, "it was hardly killed at all"


@pytest.mark.slow
def test_no_kill_of_many_on_a_real_disk_loses_or_doubles_what_was_acknowledged(tmp_path: Path) -> None:
    done = killed(tmp_path, runs=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 300


BUGS = {
    "rows are written behind": """
from roundelay.deployment.journal import Journal
real, late = Journal.accept, []
def accept(self, task_id, client, digest, size, fields):
    from roundelay.deployment.records import Ack, Verdict
    for one in late:
        real(self, *one)
    late.clear()
    known = self._known_answer(task_id, client, digest)
    if known is not None:
        return known
    late.append((task_id, client, digest, size, fields))
    return Ack(task_id, digest, Verdict.ACCEPTED, len(self.updates()) + 1)
Journal.accept = accept
""",
    "parts are dropped when a journal is opened": """
from roundelay.deployment.blobs import Blobs
real = Blobs.remove_unfinished
Blobs.remove_unfinished = lambda self, keep: real(self, set())
""",
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_the_check_of_kills_catches(bug: str) -> None:
    with quick_folder() as root:
        done = killed(Path(root), runs=8, plant=bug)
    assert done.returncode != 0
    assert "in check\n" in done.stderr
