"""Scripts that die, hang, talk without end or talk nonsense: the job goes on, and the culprit is named."""

import threading
from pathlib import Path

import pytest
from scripts import BODY, HANGS, WAIT_S, check_lost, in_mid_training, outcome, processes, reasons, script_job, threads

import roundelay as rd
from roundelay.hosting.output import OUTPUT_BYTES
from roundelay.hosting.talk import Talk

# ---- dying ----------------------------------------------------------------------------------------------------------

DEATHS = {
    "kill -9": ("import signal; os.kill(os.getpid(), signal.SIGKILL)", ["ended (killed by SIGKILL)", "fl.send"]),
    "exit status 3": ("print('out of scans', flush=True); os._exit(3)", ["ended (exit status 3)", "fl.send"]),
}


@pytest.mark.parametrize(("line", "words"), DEATHS.values(), ids=DEATHS)
def test_a_script_that_dies_in_mid_training_is_lost_in_that_round(
    line: str, words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_lost(script_job(tmp_path, in_mid_training(line), processes(2), num_rounds=3).run(), *words)
    assert ("out of scans" in caplog.text) == ("scans" in line)  # what it printed last is in the log


def test_a_script_that_was_killed_once_is_run_again_and_nothing_is_lost(tmp_path: Path) -> None:
    once = in_mid_training("if not os.path.exists('killed'): note('killed', 1); os.kill(os.getpid(), 9)")
    history = script_job(tmp_path, once, processes(2), num_rounds=3).run()
    assert (history.run_folder / "sites" / "site-2" / "killed").exists()
    assert outcome(history) == outcome(script_job(tmp_path, BODY, threads(2), num_rounds=3).run())


def test_the_test_of_killed_scripts_catches_a_task_that_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundelay.hosting.tasks.TRIES", 1)
    with pytest.raises(AssertionError):
        test_a_script_that_was_killed_once_is_run_again_and_nothing_is_lost(tmp_path)


# ---- hanging --------------------------------------------------------------------------------------------------------


def check_hangs(line: str, folder: Path, patience_s: float = WAIT_S) -> None:
    """The contract: a script that needs longer than task_timeout_s is ended and lost, whatever it says meanwhile."""
    job = script_job(folder, in_mid_training(line), processes(2, task_timeout_s=1.0), num_rounds=3)
    came: list[rd.History] = []
    aside = threading.Thread(target=lambda: came.append(job.run()), name=f"hangs {folder}", daemon=True)
    aside.start()
    aside.join(patience_s)
    assert came, "the job hangs with its script"
    check_lost(came[0], "was given the model of round 2 and did not go on within simulation.task_timeout_s = 1.0 s")


@pytest.mark.parametrize("line", HANGS.values(), ids=HANGS)
def test_a_script_that_hangs_is_ended_after_its_time(line: str, tmp_path: Path) -> None:
    check_hangs(line, tmp_path)


def test_a_script_that_hangs_before_it_begins_is_ended_too(tmp_path: Path) -> None:
    text = "import threading\nthreading.Event().wait()"
    with pytest.raises(rd.errors.ClientFailed, match=r"did not call fl\.init\(\) within .*task_timeout_s = 0\.5 s"):
        script_job(tmp_path, text, processes(1, task_timeout_s=0.5)).run()


def test_a_script_that_does_not_end_is_ended_after_its_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = BODY + "import threading\nthreading.Event().wait()"
    history = script_job(tmp_path, text, processes(2, task_timeout_s=0.5), num_rounds=1).run()
    assert [row["admitted"] for row in history.rows] == [2]
    for client in ("site-1", "site-2"):
        assert f"client '{client}' was told that nothing is left to do and goes on; it is ended" in caplog.text


def test_the_check_of_hanging_scripts_catches_one_that_nobody_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Talk, "_check_time", lambda self, until: None)
    with pytest.raises(AssertionError, match="hangs with its script"):
        check_hangs(HANGS["talking all the while"], tmp_path, patience_s=2.0)
    monkeypatch.undo()  # from here on the time is looked at, and is over
    (aside,) = [thread for thread in threading.enumerate() if thread.name == f"hangs {tmp_path}"]
    aside.join(WAIT_S)
    assert not aside.is_alive()


# ---- saying what it must not ----------------------------------------------------------------------------------------


def test_a_script_that_sends_nan_is_refused_by_name(tmp_path: Path) -> None:
    text = in_mid_training("fl.send(fl.FLModel(params={n: v * torch.nan for n, v in net.state_dict().items()}, "
                           "num_examples=1)); continue")  # fmt: skip
    history = script_job(tmp_path, text, threads(2), num_rounds=3).run()
    assert [(row["admitted"], row["refused"]) for row in history.rows] == [(2, 0), (1, 1), (2, 0)]
    assert set(reasons(history)) == {(2, "site-2")}
    assert "site-2" in reasons(history)[2, "site-2"]


@pytest.mark.parametrize(
    "line",
    [
        "fl._session()._channel.send(fl.Frame('answer', {'task_id': 'x'}, {})); fl._session()._channel.receive()",
        "fl._session()._channel.send(fl.Frame('scalar', {'name': 3}, {})); fl._session()._channel.receive()",
        "fl._session()._channel.send(fl.Frame('scalar', {'name': 'x', 'value': 1, 'step': 2**63}, {})); "
        "fl._session()._channel.receive()",
        "fl._session()._channel._socket.sendall(b'no frame at all'); fl._session()._channel.receive()",
        "fl._session()._channel.send(fl.Frame('nonsense', {}, {})); fl._session()._channel.receive()",
    ],
    ids=["no answer", "no number", "a step beyond all", "no frame", "no word"],
)
def test_a_script_that_speaks_nonsense_is_lost_by_name(line: str, tmp_path: Path) -> None:
    check_lost(script_job(tmp_path, in_mid_training(line), threads(2), num_rounds=3).run())


# ---- printing -------------------------------------------------------------------------------------------------------


def test_a_script_may_print_without_end(tmp_path: Path) -> None:
    """30 MB at once, of which a part is kept; the job neither hangs nor fills the disk."""
    text = in_mid_training("os.write(1, b'begin'); [os.write(1, b'x' * 2**20) for _ in range(30)]", "number == 1")
    history = script_job(tmp_path, text, processes(2), num_rounds=2).run()
    assert [row["admitted"] for row in history.rows] == [2, 2]
    kept = (history.run_folder / "sites" / "site-2" / "output.log").read_bytes()
    assert OUTPUT_BYTES <= len(kept) <= OUTPUT_BYTES + 100
    assert kept.startswith(b"begin")
    assert kept.endswith(b"dropped]\n")
