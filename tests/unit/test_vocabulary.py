"""Seeds, metrics, virtual time and job files."""

import asyncio
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import small_job

import roundelay as rd
from roundelay import config, seeds
from roundelay.errors import ConfigError, MetricError, VirtualDeadlock
from roundelay.metrics import ClientTable, Sums, scalar
from roundelay.simulation.devices import assign, read_gpu_mapping
from roundelay.simulation.loop import VirtualLoop

KEYS = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3), st.text(max_size=3), st.text(max_size=3))


@given(KEYS, KEYS)
def test_keys_are_equal_only_for_equal_arguments(a: tuple, b: tuple) -> None:
    assert (seeds.key(*a) == seeds.key(*b)) == (a == b)
    assert 0 < seeds.uniform(*a) < 1


def test_the_callers_random_states_stay_and_draws_inside_are_keyed() -> None:
    def draws() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    seeds.seed_globals(1)
    expected = draws()
    seeds.seed_globals(1)
    with seeds.preserved_globals():
        seeds.seed_globals(2)
        inside = draws()
    assert draws() == expected
    assert inside != expected


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.array([3]), torch.tensor(3), torch.tensor([3.0])])
def test_numbers_of_every_library_are_metrics(value: object) -> None:
    assert scalar("loss", value) == 3.0


@pytest.mark.parametrize("value", [{"a": 1}, [1], "1", None, torch.zeros(2), np.zeros(3), 1j])
def test_everything_else_is_refused_by_the_metrics_name(value: object) -> None:
    with pytest.raises(MetricError, match="'loss'"):
        scalar("loss", value)


def test_tables_weigh_rank_and_leave_out_what_is_not_finite() -> None:
    table = ClientTable("abc", (1, 3, 9), ({"accuracy": 0.2}, {"accuracy": 0.6}, {"accuracy": math.nan}))
    assert table.weighted_mean("accuracy") == pytest.approx(0.5)
    assert table.variance("accuracy") == pytest.approx(0.04)
    assert table.worst_decile("accuracy", higher_is_better=True) == 0.2
    assert table.worst_decile("accuracy", higher_is_better=False) == 0.6
    assert (Sums({"loss": 1.0}, 2) + Sums({"loss": 3.0}, 6)).means() == {"loss": 0.5}


def test_virtual_time_jumps_orders_and_ends_what_would_wait_for_ever() -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop, seen = runner.get_loop(), []

        async def main() -> float:
            loop.call_later(5, seen.append, "timer")
            loop.at(5_000_000_000, seen.append, "arrival")
            await asyncio.sleep(86_400)
            return loop.time()

        assert runner.run(main()) == 86_400
        assert seen == ["arrival", "timer"]  # an answer at the deadline is in time

        async def fails() -> None:
            loop.at(loop.now_ns, lambda: 1 / 0)
            await asyncio.sleep(1)

        with pytest.raises(ZeroDivisionError):
            runner.run(fails())

        async def never() -> None:
            await asyncio.Future()

        with pytest.raises(VirtualDeadlock):
            runner.run(never())


def test_devices_are_assigned_by_the_configuration_and_fedmls_file_is_read(tmp_path: Path) -> None:
    assert assign({"cuda:0": 4, "cuda:1": 2}, None, 2) == ("cuda:0",) * 4 + ("cuda:1",) * 2
    assert assign({}, None, 2) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match="drop one of the two"):
        assign({"cuda:0": 4}, 3, 2)
    file = tmp_path / "gpu_mapping.yaml"
    file.write_text("mapping_default:\n  host1: [3, 0, 2]\ntwo:\n  host1: [1]\n  host2: [0, 5]\n")
    assert read_gpu_mapping(file, "mapping_default") == {"cuda:0": 3, "cuda:2": 2}
    assert read_gpu_mapping(file, "two", "host2") == {"cuda:1": 5}
    with pytest.raises(ConfigError, match=r"no mapping 'three'; it has \['mapping_default', 'two'\]"):
        read_gpu_mapping(file, "three")


FILE = """
num_rounds = 2
clients_per_round = 0.5
[model]
use = "mlp"
num_features = 4
hidden = [3]
num_classes = 2
[data]
use = "digits"
[partition]
use = "iid"
num_clients = 4
[learner]
lr = 1
schedule = {use = "cosine", num_rounds = 10}
loss = "torch.nn.functional:mse_loss"
"""


def read(tmp_path: Path, text: str = FILE, *overrides: str) -> rd.Job:
    (tmp_path / "job.toml").write_text(text)
    return config.load(tmp_path / "job.toml", overrides)


def test_a_job_file_reads_into_a_job_and_its_resolved_form_reads_into_the_same(tmp_path: Path) -> None:
    job = read(tmp_path, FILE, "learner.momentum=0.9", "algorithm=fedprox", "algorithm.mu=0.1")
    assert job.learner == rd.LocalSGD(
        lr=1.0, momentum=0.9, schedule=rd.Cosine(num_rounds=10), loss=torch.nn.functional.mse_loss
    )
    assert job.algorithm == rd.FedProx(mu=0.1)
    assert job.clients_per_round == 0.5
    again = read(tmp_path, job.to_toml())
    assert again.to_toml() == job.to_toml()
    assert (again.learner, again.algorithm, again.partition) == (job.learner, job.algorithm, job.partition)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("comm_round=3", r"'comm_round' \(FedML\) is called num_rounds here"),
        ("fraction_fit=0.1", "clients_per_round"),
        ("learner.local_epoch=1", "learner.local_epochs"),
        ("learner.batch_sise=1", "did you mean 'batch_size'"),
        ("learner.lr=fast", "learner.lr must be float, got 'fast'"),
        ("learner.lr=-1", "lr must be a positive number"),
        ("algorithm=fedavgg", "did you mean 'fedavg'"),
        ("algorithm=nowhere:Thing", "cannot find 'nowhere:Thing'"),
        ("simulation.executor=fibres", "known are processes, serial"),
        ("clients_per_round=0", "clients_per_round"),
        ("num_rounds=0", "num_rounds must be a whole number of at least 1"),
        ("num_rounds=ten", "num_rounds must be int, got 'ten'"),
        ("seed=1.5", "seed must be int, got 1.5"),
        ("learner.lr={a=1}", "learner.lr must be float, got {'a': 1}"),
        ("workflow.deadline_s=0", "deadline_s must be positive"),
        ("learner.optimizer=sgdd", "not in torch.optim"),
    ],
)
def test_mistakes_in_a_job_file_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, FILE, override)


def test_what_lives_in_a_script_is_named_and_refused_when_the_file_is_read(tmp_path: Path) -> None:
    job = small_job(model=lambda: torch.nn.Linear(7, 3))
    with pytest.raises(ConfigError, match="resume from Python"):
        read(tmp_path, job.to_toml())


def test_stopping_at_a_target_and_without_improvement() -> None:
    rows = [{"loss": 3.0}, {"loss": 2.0}, {}, {"loss": 2.5}, {"loss": 2.1}]
    assert rd.Stopping(metric="loss", target=2.0).reason(rows[:2]) == "loss reached 2 (target 2)"
    assert rd.Stopping(metric="loss", patience=2).reason(rows) is not None
    assert rd.Stopping(metric="loss", patience=3).reason(rows) is None
    assert len(small_job(num_rounds=9, stopping=rd.Stopping(metric="loss", target=100.0)).run().rows) == 1
