"""Scripts that end, and what they leave: no process, thread, descriptor or folder, whoever ended them and how."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from scripts import BODY, HANGS, WAIT_S, check_lost, in_mid_training, outcome, processes, script_job, threads

import roundelay as rd
from roundelay.client.exchange import Site
from roundelay.errors import ChannelClosed
from roundelay.hosting.forkserver import main_hidden
from roundelay.hosting.process import ScriptProcess
from roundelay.hosting.talk import ScriptFailed, Talk, Watch
from roundelay.layout import Layout
from roundelay.simulation.executors.scripts import Scripts
from roundelay.wire import Frame


def gone(pids: list[int]) -> bool:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return not psutil.wait_procs(found, timeout=WAIT_S)[1]


# ---- leaving things behind ------------------------------------------------------------------------------------------

GRANDCHILD = """import subprocess
        note("pid", subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"],
                                     stdin=subprocess.DEVNULL, close_fds=False).pid)"""
FORKED = """import multiprocessing, threading
        child = multiprocessing.get_context("fork").Process(target=threading.Event().wait, daemon=False)
        child.start(); note("pid", child.pid)"""


def check_left(history: rd.History) -> None:
    assert [row["admitted"] for row in history.rows] == [2, 2]
    pids = [int(pid) for pid in (history.run_folder / "sites" / "site-2" / "pid").read_text().split()]
    assert pids
    assert gone(pids), "what a script had started outlived the job"


@pytest.mark.parametrize("end", ["", "import os; os._exit(0)\n"], ids=["with the loop", "without"])
def test_what_a_script_has_started_ends_with_the_job(end: str, tmp_path: Path) -> None:
    text = in_mid_training(GRANDCHILD, "number == 1 and model.current_round == 0") + end
    check_left(script_job(tmp_path, text, processes(2), num_rounds=2).run())


def test_a_child_that_holds_the_socket_open_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script dies, its forked child holds its ends of socket and pipe: its death shows all the same."""
    monkeypatch.setattr("roundelay.hosting.talk.POLL_S", 0.2)
    monkeypatch.setattr("roundelay.hosting.process.POLL_S", 0.2)
    text = in_mid_training(FORKED + "; os.kill(os.getpid(), 9)")
    history = script_job(tmp_path, text, processes(2), num_rounds=3).run()
    check_lost(history, "killed by SIGKILL")
    pids = [int(pid) for pid in (history.run_folder / "sites" / "site-2" / "pid").read_text().split()]
    assert len(pids) == 2
    assert gone(pids)


def test_the_test_of_children_catches_scripts_that_are_ended_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundelay.hosting.process._end_group", lambda leader: None)
    monkeypatch.setattr(ScriptProcess, "kill", lambda self: self._process.kill())
    monkeypatch.setattr(f"{__name__}.WAIT_S", 0.2)
    with pytest.raises(AssertionError, match="outlived the job"):
        test_what_a_script_has_started_ends_with_the_job("", tmp_path)
    for pid in (tmp_path / "run-1" / "run" / "sites" / "site-2" / "pid").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_nothing_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tempfile.mkdtemp(dir="/tmp")  # of a short name, as sockets need it, and nobody else's
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    for mode in (processes(2), threads(2)):
        script_job(tmp_path, BODY, mode, num_rounds=1).run()  # whatever is opened once, by torch's optimisers too
    me = psutil.Process()

    def held() -> tuple[int, int, list[str], int]:
        gc.collect()  # multiprocessing closes what it holds of an ended process when that is collected
        return me.num_fds(), threading.active_count(), os.listdir(temporary), len(multiprocessing.active_children())

    before = held()
    for mode in (processes(2), threads(2)):
        script_job(tmp_path, BODY, mode, num_rounds=2).run()
        script_job(tmp_path, in_mid_training("1 / 0"), mode, num_rounds=3).run()
    assert held() == before
    with contextlib.suppress(OSError):  # multiprocessing keeps a folder in it until this process ends
        os.rmdir(temporary)


# ---- leaving the loop -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched_executors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Scripts]]:
    made: list[Scripts] = []
    init = Scripts.__init__

    def noting(self: Scripts, *arguments: object, **settings: object) -> None:
        init(self, *arguments, **settings)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(Scripts, "__init__", noting)
    yield made


def test_leaving_the_loop_ends_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_executors(monkeypatch) as made:
        for finished in script_job(tmp_path, BODY, processes(2), num_rounds=50).rounds():
            if finished.number == 2:
                pids = list(made[0].process_ids.values())
                break
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def check_interrupt(line: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract: Ctrl+C ends a run whose script is at work, and the script."""
    text = BODY.replace("    loss = train", f"    note('pid', os.getpid())\n    {line}\n    loss = train")
    job = script_job(root, text, processes(1, max_concurrent=1), num_rounds=1)
    run, pid_file = job.start(), root / "run-1" / "run" / "sites" / "site-1" / "pid"
    works, on_scalar = threading.Event(), run.standing.keep_scalar

    def noting(*arguments: object) -> None:
        works.set()
        on_scalar(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run.standing, "keep_scalar", noting)
    rounds = iter(run)
    interrupted = threading.Event()

    def get(*arguments: object) -> object:  # where the caller's thread waits, and Ctrl+C comes
        assert works.wait(WAIT_S)
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(run._finished, "get", get)
    done = threading.Event()

    def caller() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            next(rounds)
        done.set()

    threading.Thread(target=caller, daemon=True).start()
    assert done.wait(WAIT_S), "the run goes on"
    assert interrupted.is_set()
    assert gone([int(pid_file.read_text())])


@pytest.mark.parametrize("line", HANGS.values(), ids=HANGS)
def test_ctrl_c_ends_a_script_that_is_at_work(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_interrupt("fl.log('x', 1.0); " + line.replace("        while", "    while"), tmp_path, monkeypatch)


SERVER = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import roundelay as rd
    from scripts import script_job
    text = "fl.init(); fl.receive(); note({fifo!r}, os.getpid()); import threading; threading.Event().wait()"
    script_job(Path({root!r}), text, rd.Simulation(num_clients=2)).run()
"""


def test_a_killed_simulator_leaves_no_script_behind(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = textwrap.dedent(SERVER).format(tests=str(Path(__file__).parents[1]), root=str(tmp_path), fifo=str(fifo))
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    with open(os.open(fifo, os.O_RDWR), encoding="utf-8") as said:  # both ways, or it ends with the first writer
        pids = [int(said.readline()), int(said.readline())]
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert gone(pids), "a script outlived the simulator"


# ---- threads that share a process -----------------------------------------------------------------------------------


def check_main() -> None:
    """The contract: of two agents that start processes at once, none takes the other's stand-in for the real module."""
    main, first_in, second_in, first_out = sys.modules["__main__"], *(threading.Event() for _ in range(3))

    def first() -> None:
        with main_hidden():
            first_in.set()
            second_in.wait(0.1)  # in vain, where only one may be inside
        first_out.set()

    def second() -> None:
        first_in.wait()
        with main_hidden():
            second_in.set()
            first_out.wait()

    agents = [threading.Thread(target=agent) for agent in (first, second)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
    left, sys.modules["__main__"] = sys.modules["__main__"], main
    assert left is main


def test_agents_that_start_processes_at_once_leave_main_as_it_was() -> None:
    check_main()


def test_the_check_of_main_catches_agents_that_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundelay.hosting.forkserver.CHILDREN", contextlib.nullcontext())
    with pytest.raises(AssertionError):
        check_main()


def test_a_task_that_is_cancelled_while_its_script_starts_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three answers are enough: what the third had begun, or not yet, changes nothing."""
    job: dict[str, object] = {"workflow": rd.Rounds(goal=2), "num_rounds": 3}
    slow = [mode(3, duration=lambda client, task: float(client[-1])) for mode in (threads, processes)]
    came = [outcome(script_job(tmp_path, BODY, mode, **job).run()) for mode in slow]
    assert came[0] == came[1]
    assert [row["late"] for row in came[0][1]] == [1, 1, 1]
    worked: list[str] = []
    monkeypatch.setattr(Scripts, "_was_cancelled", lambda self, task: task.client == "site-3")
    work = ScriptProcess.work

    def noting(self: ScriptProcess, task: object) -> object:
        worked.append(self._name)
        return work(self, task)  # type: ignore[arg-type]

    monkeypatch.setattr(ScriptProcess, "work", noting)
    script_job(tmp_path, BODY, slow[1], **job).run()
    assert set(worked) == {"site-1", "site-2"}


def test_an_answer_that_a_process_gave_before_its_end_is_read() -> None:
    """The process ends between a silence and the look at it; its last word is in the socket."""
    said: list[str] = []

    class Late:
        """A channel on which the answer comes after the first silence."""

        def receive(self, timeout_s: float) -> object:
            said.append("asked")
            if len(said) == 1:
                raise TimeoutError
            return Frame("waiting", {}, {})

    site = type("Site", (), {"name": "site-1"})()
    watch = Watch(lambda *arguments: None, None, lambda: False)
    talk = Talk(Late(), site, 1, watch, lambda: "exit status 0")  # type: ignore[arg-type]
    talk.ready(float("inf"))
    assert talk.waits


def test_a_script_that_dies_while_it_is_greeted_has_failed_and_no_more() -> None:
    class Closing:
        """A channel whose other end says hello, and is gone."""

        def receive(self, timeout_s: float) -> object:
            return Frame("hello", {}, {})

        def send(self, frame: object) -> None:
            raise ChannelClosed("gone")

    layout = Layout.of(torch.nn.Linear(1, 1))
    site = Site("site-1", "run", 0, 1, {"use": "fedavg"}, layout, {})
    watch = Watch(lambda *arguments: None, None, lambda: False)
    with pytest.raises(ScriptFailed, match=r"'site-1' called fl\.init\(\) and ended \(killed by SIGKILL\)"):
        Talk(Closing(), site, 1, watch, lambda: "killed by SIGKILL\n").greet(float("inf"))  # type: ignore[arg-type]
