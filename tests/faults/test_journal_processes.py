"""What only real processes show: ``kill -9`` at any moment, and a limit of the system on the size of files.

One process imports everything once and forks the others, since an import takes longer than a whole run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from journals import quick_folder

import roundelay

DRIVER = """
import json, os, pickle, random, resource, signal, sys, traceback
from pathlib import Path
from journals import accepted, begun, check, opened, result, serve
from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Ack, Verdict
from roundelay.errors import JournalError

# ---- kill -9

def child(folder, pipe, moments):
    # killed by itself after so many calls and returns, of Python or of C; 0: by the other process, whenever that is
    def count(*_):
        nonlocal moments
        moments -= 1
        if moments == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if moments:
        sys.setprofile(count)  # the opening is among the moments
    journal = opened(folder)
    serve(journal, lambda *told: os.write(pipe, pickle.dumps(told)))
    os._exit(0)

def life(folder, draw, told):
    # one process until it is killed; what it has told is added. Returns whether it came to the end
    reading, writing = os.pipe()
    moments, after = (draw.randrange(1, 8000), 10**9) if draw.random() < 0.6 else (0, draw.randrange(1, 25))
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

def kills(root, runs, whole):
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
    return lives - runs

# ---- planted bugs

def rows_are_written_behind():
    accept, late = Journal.accept, []
    def planted(self, *answer):
        for one in late:
            accept(self, *one)
        late[:] = [answer]
        task_id, client, digest, size, fields = answer
        return self.known_answer(task_id, client, digest) or Ack(
            task_id, digest, Verdict.ACCEPTED, len(self.updates()) + 1)
    Journal.accept = planted

def parts_are_dropped_by_opening():
    remove = Blobs.remove_unfinished
    Blobs.remove_unfinished = lambda self, keep: remove(self, set())

def parts_are_counted_before_they_are_written():
    append, late = Blobs.append, []
    def planted(self, *part):
        for one in late:
            append(self, *one)
        late[:] = [part]
    promote = Blobs.promote
    def whole(self, *part):
        for one in late:
            append(self, *one)
        late.clear()
        return promote(self, *part)
    Blobs.append, Blobs.promote = planted, whole

def caught(root, plant, whole):
    # in a process of its own, which the bug does not outlive
    pid = os.fork()
    if pid == 0:
        try:
            plant()
            kills(root, 12, whole)
            os._exit(1)
        except Exception as error:
            os._exit(0 if "in check" in traceback.format_exc() else 2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

# ---- a limit on the size of files

def limited(folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal, said = opened(folder), []
    begun(journal)
    journal.blobs.put(b"x" * 200_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for use in (
        lambda: journal.blobs.put(b"y" * 400_000),
        lambda: [journal.record("x", "x" * 1000) for _ in range(1000)],
        lambda: journal.record("x", "short"),
    ):
        try:
            use()
        except JournalError as error:
            said.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    num_recorded, num_blobs = len(journal.recorded()), len(list(journal.blobs.digests()))
    journal.close()
    with opened(folder) as journal:
        same = [one.number for one in journal.recorded()] == list(range(1, num_recorded + 1))
        number = accepted(journal, 1, "a", b"y" * 400_000).number
    return [said, num_recorded, num_blobs, same, number]

def main(root, runs):
    with opened(root / "undisturbed") as journal:
        serve(journal, lambda *_: None)
        whole = result(journal)
    plants = rows_are_written_behind, parts_are_dropped_by_opening, parts_are_counted_before_they_are_written
    print(json.dumps({
        "kills": kills(root, runs, whole),
        "caught": {plant.__name__: caught(root / plant.__name__, plant, whole) for plant in plants},
        "limited": limited(root / "limited"),
    }))

for plant in ("rows_are_written_behind", "parts_are_dropped_by_opening", "parts_are_counted_before_they_are_written"):
    (Path(sys.argv[1]) / plant).mkdir()
main(Path(sys.argv[1]), int(sys.argv[2]))
"""


def driven(root: Path, runs: int) -> Any:
    run = [sys.executable, "-c", DRIVER, str(root), str(runs)]
    path = os.pathsep.join([str(Path(roundelay.__file__).parents[1]), str(Path(__file__).parents[1])])
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seen() -> Any:
    with quick_folder() as root:
        return driven(Path(root), runs=4)


def test_no_kill_loses_or_doubles_what_was_acknowledged(seen: Any) -> None:
    assert seen["kills"] >= 20, "it was hardly killed at all"


def test_the_check_of_kills_catches_planted_bugs(seen: Any) -> None:
    assert set(seen["caught"].values()) == {0}, seen["caught"]


def test_a_real_limit_on_the_size_of_files_is_met_with_an_error(seen: Any) -> None:
    (blob, row, after), num_recorded, num_blobs, same, number = seen["limited"]
    assert "writing a blob failed" in blob
    assert "recording an answer (x) failed" in row
    assert "takes no more writes" in after
    assert num_recorded > 10
    assert (num_blobs, same, number) == (1, True, 1)


@pytest.mark.slow
def test_no_kill_of_many_on_a_real_disk_loses_or_doubles_what_was_acknowledged(tmp_path: Path) -> None:
    assert driven(tmp_path, runs=100)["kills"] >= 300
