"""Jobs on real images, on any map-style data set, and on clients with names of their own."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from networks import Plain, examples, small_job
from support import data_folder
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

import roundelay as rd
from roundelay import config
from roundelay.cli import app
from roundelay.errors import ConfigError, DataError

IMAGES = """
num_rounds = {rounds}
clients_per_round = 4
seed = 1
model = {{use = "logistic", num_features = {features}, num_classes = 10}}
data = {{use = "{name}", folder = "{folder}"}}
partition = {{use = "dirichlet", num_clients = 40, alpha = 0.5}}
[learner]
lr = {lr}
batch_size = 32
local_batches = 20
[evaluation]
every = {rounds}
batch_size = 2000
[simulation]
executor = "{executor}"
num_workers = 2
[tracking]
root = "{root}"
name = "{executor}"
"""


def trained(name: str, folder: Path, root: Path, executor: str, **values: float) -> rd.History:
    job = root / f"{executor}.toml"
    job.write_text(IMAGES.format(name=name, folder=folder, root=root, executor=executor, **values))
    return config.load(job).run()


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_job_file_trains_on_the_real_mnist(executor: str, tmp_path: Path) -> None:
    history = trained("mnist", data_folder("mnist"), tmp_path, executor, rounds=5, features=784, lr=0.05)
    assert history.metrics["accuracy"] > 0.75
    split = rd.Split.load(tmp_path / executor / "split.json")
    assert (len(split), sum(len(part) for part in split.values())) == (40, 60_000)


def test_a_job_file_trains_on_the_real_cifar10(tmp_path: Path) -> None:
    history = trained(
        "cifar10", data_folder("cifar-10-batches-bin"), tmp_path, "serial", rounds=5, features=3072, lr=0.005
    )
    assert history.metrics["accuracy"] > 0.2


# ---- map-style data sets --------------------------------------------------------------------------------------------


class Readings(Dataset[tuple[Tensor, int]]):
    """A data set as users write them: items are made when they are asked for."""

    def __init__(self, num_readings: int, seed: int = 5) -> None:
        made = examples(num_readings, seed)
        self.inputs, self.classes = made.inputs, made.targets.tolist()

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], self.classes[index]


PARTITIONS = [
    rd.IID(num_clients=6),
    rd.Dirichlet(num_clients=6, alpha=0.5, min_examples=2),
    rd.Natural([f"site {i % 6}" for i in range(60)]),
]
SIMULATIONS = [rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)]


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda partition: type(partition).__name__)
@pytest.mark.parametrize("simulation", SIMULATIONS, ids=["serial", "processes"])
def test_a_map_style_data_set_trains_to_the_bits_of_the_same_tensors(
    partition: rd.IID, simulation: rd.Simulation
) -> None:
    def job(train: object, test: object) -> rd.Job:
        data = rd.Data(train, test)
        return small_job(model=Plain, data=data, partition=partition, simulation=simulation)

    plain = job(examples(60), examples(20, seed=6)).run()
    mapped = job(rd.data.as_examples(Readings(60)), rd.data.as_examples(Readings(20, seed=6))).run()
    assert mapped.sha256 == plain.sha256
    assert mapped.metrics["accuracy"] == plain.metrics["accuracy"]


@pytest.mark.parametrize(
    "given",
    [
        lambda: Readings(60),
        lambda: TensorDataset(*(getattr(examples(60), name) for name in ("inputs", "targets"))),
        lambda: (examples(60).inputs, examples(60).targets),
        lambda: Subset(Readings(60), range(60)),
    ],
    ids=["map-style", "TensorDataset", "tensors", "Subset"],
)
def test_data_takes_whatever_a_client_may_hold(given: object) -> None:
    job = small_job(model=Plain, data=lambda: rd.Data(given()), partition=rd.IID(num_clients=6))
    assert job.run().sha256 == small_job(model=Plain, data=rd.Data(examples(60)), partition=rd.IID(6)).run().sha256


def test_data_refuses_what_holds_no_examples() -> None:
    with pytest.raises(DataError, match="expected examples: a pair"):
        rd.Data("digits")


def test_one_data_set_per_client_needs_no_partition() -> None:
    parts = {f"sensor {i}": Readings(10 + i, seed=i) for i in range(4)}
    data = rd.FederatedData.from_datasets(parts, held_out=Readings(20), tests={"sensor 2": Readings(5, seed=8)})
    history = small_job(model=Plain, data=data, evaluation=rd.Evaluation(clients_every=1)).run()
    assert {"accuracy", "client_accuracy"} <= history.metrics.keys()
    with pytest.raises(ConfigError, match="already split among clients; leave partition out"):
        small_job(model=Plain, data=data, partition=rd.IID(num_clients=2)).start()


# ---- clients with names of their own --------------------------------------------------------------------------------

PATIENTS = ("anna", "bert", "chloé", "anna", "bert", "anna", "d/e", "zoë 2")


def patients() -> rd.Data:
    return rd.Data(examples(40), examples(10, seed=6), groups=PATIENTS * 5, name="ward")


def held(groups: Sequence[str]) -> dict[str, int]:
    return {client: list(groups).count(client) for client in sorted(set(groups))}


@pytest.mark.parametrize("simulation", SIMULATIONS, ids=["serial", "processes"])
def test_natural_clients_keep_their_names_and_their_examples(simulation: rd.Simulation, tmp_path: Path) -> None:
    job = small_job(
        model=Plain, data=patients, partition=rd.Natural(), clients_per_round=5, simulation=simulation,
        tracking=rd.Tracking(str(tmp_path), "run"),
    )  # fmt: skip
    history = job.run()
    assert {row["client"]: row["num_examples"] for row in history.clients()} == held(PATIENTS * 5)
    assert list(rd.Split.load(tmp_path / "run" / "split.json")) == sorted(set(PATIENTS))


def test_a_job_file_runs_and_resumes_with_natural_clients_of_a_module_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [*sys.path]
    monkeypatch.setattr(sys, "path", [*before])
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.toml").write_text(
        'num_rounds = 2\nclients_per_round = 3\nmodel = "networks:Plain"\ndata = "ward_of_a_test:ward"\n'
        'partition = "natural"\nlearner = {lr = 0.1, batch_size = 4}\nsimulation = {executor = "serial"}\n'
    )
    (tmp_path / "jobs" / "ward_of_a_test.py").write_text(
        "import roundelay as rd\nfrom networks import examples\n\n\n"
        "def ward():\n    return rd.Data(examples(12), groups=['anna', 'bert', 'carl'] * 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    app(["run", "jobs/job.toml", "--set", "tracking.name=a"], standalone_mode=False)
    first = capsys.readouterr().out.splitlines()[-1]
    assert first.startswith("sha256: ")
    monkeypatch.setattr(sys, "path", before)  # another process, which has not imported what lies beside the job file
    monkeypatch.delitem(sys.modules, "ward_of_a_test")
    app(["resume", "runs/a"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == first
