"""A run on a Ray cluster ends in the bits of one process, and leaves the cluster as it was found."""

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import clusters
import psutil
import pytest
from clusters import fails_for_c1
from networks import small_job

import roundelay as rd
from roundelay import config
from roundelay.errors import ConfigError, MissingExtra
from roundelay.simulation.executors.cluster import join

ON_RAY = rd.Simulation("ray", num_workers=2)


def test_a_run_on_ray_ends_in_the_bits_of_one_process_and_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = {"learner": fails_for_c1, "clients_per_round": 6, "evaluation": rd.Evaluation(clients_every=1)}
    alone = small_job(**job).run()
    with clusters.quiet_ray() as folder:
        history = small_job(**job, simulation=ON_RAY).run()
        assert not psutil.wait_procs(clusters.processes_of(folder), timeout=20)[1], "Ray outlived its run"
    assert history.sha256 == alone.sha256
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in h.rows] for h in (alone, history)]
    assert timeless[0] == timeless[1]
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(5, 1)] * 3
    assert "in fails_for_c1" in caplog.text  # the remote traceback


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[ray\]"):
        small_job(simulation=ON_RAY).run()


def test_an_address_where_no_cluster_answers_is_named_at_once() -> None:
    with socket.create_server((clusters.IP, 0)) as taken:
        free = f"{clusters.IP}:{taken.getsockname()[1]}"
    with clusters.quiet_ray():
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {free}.*refused"):
            small_job(simulation=rd.Simulation("ray", address=free)).run()
        with pytest.raises(ConfigError, match="no Ray runs on this machine: begin one with"):
            small_job(simulation=rd.Simulation("ray", address="auto")).run()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"executor": "ray", "address": "ray://head:10001"}, 'expected "auto", "local", or "host:port"'),
     ({"executor": "processes", "address": "auto"}, 'set it to "ray", or leave address out'),
     ({"executor": "ray", "devices": {"cuda:0": 1}}, "trains on the CPUs of a cluster")],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rd.Simulation(**settings)


@pytest.mark.slow
def test_memories_travel_with_the_tasks_and_a_run_may_change_its_executor(tmp_path: Path) -> None:
    job = {"algorithm": rd.Scaffold(), "num_rounds": 4, "clients_per_round": 6}
    alone = small_job(**job).run()
    kept = rd.Tracking(root=str(tmp_path), name="run", checkpoint_every_s=0)
    with clusters.quiet_ray():
        for finished in small_job(**job, simulation=ON_RAY, tracking=kept).rounds():
            if finished.number == 2:
                break
        resumed = small_job(**job, simulation=ON_RAY, tracking=kept).run(resume=tmp_path / "run")
    assert resumed.sha256 == alone.sha256
    assert [row["round"] for row in resumed.rows] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_cluster_is_left_running_and_a_process_that_has_joined_one_stays_in_it() -> None:
    import ray

    alone = small_job().run().sha256
    with clusters.cluster([2]) as address:
        for where in (address, "auto"):
            assert small_job(simulation=rd.Simulation("ray", address=where)).run().sha256 == alone
            assert not ray.is_initialized()
        assert join(ray, None, address)
        assert small_job(simulation=ON_RAY).run().sha256 == alone
        assert ray.is_initialized()
        with pytest.raises(ConfigError, match=f"has joined the Ray cluster at {address}"):
            small_job(simulation=rd.Simulation("ray", address="127.0.0.9:6379")).run()
        ray.shutdown()


def test_the_page_on_clusters_says_one_thing_in_both_forms() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    section = page.split("\n## A Ray cluster\n")[1].split("\n## ")[0]
    (table,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", section, flags=re.S) for kind in ("toml", "python"))
    made: dict[str, object] = {}
    exec(code, made)
    assert config.parts_of(tomllib.loads(table))["simulation"] == made["simulation"]


JOB = """
model = "job_parts:Model"
data = "job_parts:federated"
num_rounds = 2
clients_per_round = 3
[learner]
lr = 0.1
batch_size = 4
[tracking]
root = "runs"
"""
PARTS = """
from networks import Awkward, federated
class Model(Awkward):
    pass
"""


@pytest.mark.slow
def test_the_command_takes_a_cluster_and_modules_beside_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "job_parts.py").write_text(f"import sys\nsys.path.append({str(Path(__file__).parents[1])!r})\n" + PARTS)

    def hash_of(*arguments: str) -> str:
        command = [sys.executable, "-c", "from roundelay.cli import main; main()", "run", str(tmp_path / "job.toml")]
        shown = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return next(line for line in shown.stdout.splitlines() if line.startswith("sha256: "))

    with clusters.cluster([1]) as address:
        shas = {hash_of("--executor", "serial"), hash_of("--executor", "ray", "--address", "auto"),
                hash_of("--executor", "ray", "--address", address)}  # fmt: skip
    assert len(shas) == 1
