"""Commands of a served run that are asked to end, and what the same commands do when they are given again.

Run as a program, in a process of its own: ``python ended.py FOLDER``.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lives import Life
from served import CLIENTS, Run, check

from roundelay.deployment.device.hands import TrainerHands
from roundelay.deployment.device.shelves import Answers
from roundelay.deployment.front.polls import Polls
from roundelay.deployment.journal.uploads import Uploads
from roundelay.standing import Standing

SOON_S = 20.0


@dataclass(frozen=True)
class Asked:
    """An end that the process is asked for while it does something."""

    arm: Callable[[], None]


def me(number: int) -> None:
    os.kill(os.getpid(), number)


def in_an_upload() -> None:
    """SIGTERM while a part is written; it goes on being written when the server has begun to let things end."""
    write, close, closing = Uploads.write, Polls.close, threading.Event()

    def writing(self: Any, client: str, digest: str, *rest: Any) -> Any:
        if not closing.is_set():
            Path("in-flight").write_text(json.dumps([client, digest]))
            me(signal.SIGTERM)
            assert closing.wait(SOON_S)
        return write(self, client, digest, *rest)

    def ending(self: Any) -> None:
        close(self)
        closing.set()

    Uploads.write, Polls.close = writing, ending  # type: ignore[method-assign]


def with_an_answer() -> None:
    """SIGTERM as soon as an answer is on the device's disk."""
    keep = Answers.keep

    def keeping(self: Any, *rest: Any) -> Any:
        kept = keep(self, *rest)
        me(signal.SIGTERM)
        return kept

    Answers.keep = keeping  # type: ignore[method-assign]


def in_training() -> None:
    """SIGINT in a task, which is interrupted."""
    do, interrupt, interrupted = TrainerHands.do, TrainerHands.interrupt, threading.Event()

    def doing(self: Any, *rest: Any) -> Any:
        me(signal.SIGINT)
        assert interrupted.wait(SOON_S)
        return do(self, *rest)

    def interrupting(self: Any) -> None:
        interrupt(self)
        interrupted.set()

    TrainerHands.do, TrainerHands.interrupt = doing, interrupting  # type: ignore[method-assign]


def after_a_round() -> None:
    """SIGINT at the end of the second round."""
    finish = Standing.finish_round

    def finishing(self: Any, finished: Any, *rest: Any) -> Any:
        if finished.version.number == 2:
            me(signal.SIGINT)
        return finish(self, finished, *rest)

    Standing.finish_round = finishing  # type: ignore[method-assign]


def ended(folder: Path) -> None:
    run = Run(folder, 4)
    simulated = run.simulated()
    run.of_server, run.of_clients = (
        [Asked(in_an_upload), Asked(after_a_round)], {"c0": [Asked(with_an_answer)], "c1": [Asked(in_training)]}
    )  # fmt: skip
    run.lives["server"] = run.opened()
    over(serve(folder, "--port", "0"), 2, "is going on in another process")
    run.lives |= {client: run.begin(client) for client in CLIENTS}
    run.go_on()
    require(run.lives["server"], 130, "stopped after round 0; the same command goes on with the run in runs/")
    changed = serve(folder, "--port", "0", "--set", "learner.lr=0.2")
    changed.wait(lambda life: " join" in life.output)
    changed.signal(signal.SIGTERM)
    over(changed, 130, "")
    run.lives["server"] = run.begin("server")
    run.go_on()
    require(run.lives["server"], 130, "stopped after round ")
    run.lives["server"] = run.begin("server")
    run.go_on()
    require(run.lives["server"], 0, "sha256: ")
    run.leave()
    (whole,) = run.finished()
    check(run, simulated, whole)
    assert len(list((folder / "runs").iterdir())) == 2, "a changed job has a run of its own"
    client, digest = json.loads((folder / "in-flight").read_text())
    said = [json.loads(line) for line in (folder / f"{client}.told").read_text().splitlines()]
    put = [offset for word, _, *rest in said if word == "puts" for of, offset in [rest] if of == digest]
    assert put.count(min(put)) == 1, "what was in flight was sent again"
    assert {life.name for life in run.stopped} >= {"c0", "c1"}
    for life in run.stopped:
        assert "stopped; the same command goes on" in life.output, life.output
    again(run, whole)
    worker = Life("worker", ["worker", "--id", "w", "--port", "0", "--data", "parts:clients"], folder, lambda: None)
    worker.wait(lambda life: "waits on" in life.output)
    worker.signal(signal.SIGTERM)
    over(worker, 130, "stopped; the same command goes on")


def serve(folder: Path, *more: str) -> Life:
    return Life("another server", ["serve", "job.toml", "--host", "127.0.0.1", *more], folder, lambda: None)


def again(run: Run, before: Path) -> None:
    """The command of a run that is over begins another one, in which those take part who joined before."""
    run.lives["server"] = run.begin("server")
    run.lives["server"].wait(lambda life: " join" in life.output)
    run.line = run.line[:1]
    run.lives |= {client: run.begin(client) for client in CLIENTS}
    run.go_on()
    require(run.lives["server"], 0, "sha256: ")
    run.leave()
    first, second = run.finished()
    assert first == before
    one, other = (json.loads((path / "state.json").read_text())["sha256"] for path in (first, second))
    assert one == other


def over(life: Life, status: int, words: str) -> None:
    life.wait(lambda _: False)
    require(life, status, words)


def require(life: Life, status: int, words: str) -> None:
    said = " ".join(life.output.split())
    assert (life.status, words in said) == (status, True), f"{life.name} ended with {life.status}:\n{life.output}"


if __name__ == "__main__":
    ended(Path(sys.argv[1]))
