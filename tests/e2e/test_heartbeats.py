"""The task of heartbeats as its page says: simulated, on workers that listen, each with its own patients' records and
nobody else's, and on clients that join; the example that puts settings side by side; the real records.
"""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Outcome, on_workers, only, outcome, serve, served
from support import data_folder
from wfdb_records import write_patients

from roundelay import config
from roundelay.job import Job

EXAMPLE = Path(__file__).parents[2] / "examples" / "ecg" / "side_by_side.py"
PATIENTS = {"1": 0.3, "2": 0.2, "3": 0.5, "4": 0.3}
WINDOW = {"before_s": 0.2, "after_s": 0.28}
SMALL = ["model.length=48", "num_rounds=2", "learner.batch_size=10"]
SITES = {"pi-1": ["1", "2"], "3": ["3"]}


def shared_out(folder: Path) -> Path:
    """Write all records into one folder, and beside it each site's own into its own."""
    whole = write_patients(folder / "whole", PATIENTS)
    for site, patients in {**SITES, "server": ["4"]}.items():
        (folder / site).mkdir()
        for patient in patients:
            for suffix in (".hea", ".dat", ".atr"):
                shutil.copyfile(whole / f"{patient}{suffix}", folder / site / f"{patient}{suffix}")
    return folder


def settings(folder: str, patients: str) -> list[str]:
    window = [f"data.{name}={value}" for name, value in WINDOW.items()]
    return [f'data.folder="{folder}"', f"data.patients={patients}", 'data.held_out=["4"]', *window, *SMALL]


def simulated(folder: Path, executor: str) -> Outcome:
    own = settings(str(folder / "whole"), '{pi-1=["1", "2"], 3=["3"]}')
    config.load("task:ecg", [*own, f"simulation.executor={executor}", f"tracking.root={folder / executor}"]).run()
    return outcome(only(folder / executor))


def brought() -> list[list[str]]:
    """What each site types: one has two patients, one is a patient."""
    window = ",".join(f"{name}={value}" for name, value in WINDOW.items())
    return [["--id", "pi-1", "--data", f'heartbeats:folder=pi-1,patients={{pi-1=["1","2"]}},{window}'],
            ["--id", "3", "--data", f"heartbeats:folder=3,{window}"]]  # fmt: skip


def task(folder: Path, *overrides: str) -> Job:
    window = [f"data.{name}={value}" for name, value in WINDOW.items()]
    own = [f'data.folder="{folder}"', *window, *SMALL, "simulation.executor=serial"]
    return replace(config.load("task:ecg", [*own, *overrides]), tracking=None)


def test_the_task_learns_made_up_beats_and_tells_of_each_patient(tmp_path: Path) -> None:
    job = task(write_patients(tmp_path, PATIENTS), "num_rounds=4", "keep_local=['@batch_norm']")
    *_, last = job.rounds()
    assert last.metrics["pooled_macro_f1"] > 0.95
    assert {one.client: one.num_examples for one in last.clients if one.status == "evaluated"} == dict.fromkeys(
        PATIENTS, 30.0
    )


def test_local_only_is_each_patient_alone(tmp_path: Path) -> None:
    """Ditto without a pull: what a patient's own model comes to does not depend on who else is there."""
    folder = write_patients(tmp_path, PATIENTS)
    told = []
    for others in ('["1", "2", "3"]', '["1", "4"]', '["1"]'):
        job = task(folder, f"data.patients={others}", "algorithm={use='ditto', strength=0.0}")
        *_, last = job.rounds()
        told.append(next(one.metrics for one in last.clients if one.client == "1" and one.status == "evaluated"))
    assert told[0] == told[1] == told[2]
    *_, pulled = task(folder, 'data.patients=["1", "2", "3"]', "algorithm={use='ditto', strength=1.0}").rounds()
    assert next(one.metrics for one in pulled.clients if one.client == "1" and one.status == "evaluated") != told[0]


@pytest.mark.slow
def test_sites_that_listen_or_join_with_their_own_patients_end_in_the_bits_of_a_simulation(tmp_path: Path) -> None:
    shared_out(tmp_path)
    serial = simulated(tmp_path, "serial")
    assert simulated(tmp_path, "processes") == serial
    of_server = settings(str(tmp_path / "server"), "[]")
    assert on_workers(tmp_path, "task:ecg", "listening", brought(), *of_server) == serial
    command = [*serve("task:ecg", "joined", *of_server), "--clients", "pi-1,3"]
    assert served(tmp_path, command, "joined", brought()) == serial
    _, rounds, clients = serial
    assert {"macro_f1", "pooled_macro_f1", "client_macro_f1"} <= rounds[-1].keys()
    assert {row["client"] for row in clients if row["status"] == "evaluated"} == {"pi-1", "3"}


@pytest.mark.slow
def test_settings_are_put_side_by_side_and_patients_left_out(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "records", {"1": 0.3, "2": 0.3, "3": 0.3})
    asked = [sys.executable, str(EXAMPLE), "--data", str(folder), "--out", str(tmp_path / "out"), "--seeds", "1",
             "--processes", "1", "--set", "model.length=80", "--set", "num_rounds=1"]  # fmt: skip
    for more, settings in (
        (["--only", "centralised", "local only", "FedBN"], ("centralised", "local only", "FedBN")),
        (["--leave-one-out", "--only", "FedAvg"], ("FedAvg",)),
    ):
        ended = subprocess.run([*asked, *more], capture_output=True, text=True, timeout=200, check=False)
        assert ended.returncode == 0, ended.stderr
        told = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in ended.stdout.splitlines() if "|" in line}
        assert all(0 <= float(value) <= 1 or math.isnan(float(value)) for name in settings for value in told[name])
        assert {"1", "2", "3"} <= told.keys()
        assert all(len(told[patient]) == len(settings) for patient in "123")
    assert (tmp_path / "out" / "beats.png").exists()


@pytest.mark.slow
def test_fedbn_finds_most_of_the_premature_beats_of_the_records_at_hand() -> None:
    folder = data_folder("mitbih")
    job = config.load(
        "task:ecg", [f'data.folder="{folder}"', "keep_local=['@batch_norm']", "simulation.executor=serial"]
    )
    assert replace(job, tracking=None).run().metrics["pooled_macro_f1"] > 0.85
