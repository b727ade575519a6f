"""What a site brings, what a server may tell it, and that both sides mean the same bits by it."""

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from networks import small_job

import roundelay as rd
from roundelay import config
from roundelay.client.exchange import Site
from roundelay.client.session import _algorithm
from roundelay.components import describe
from roundelay.data.examples import Examples, as_examples
from roundelay.data.federated import FederatedData
from roundelay.deployment.device.hands import Hands, ScriptHands, TrainerHands
from roundelay.deployment.offered import offered_settings
from roundelay.deployment.protocol import Briefing, Holding
from roundelay.errors import ClientError, ConfigError, DataError, LayoutError, WireError
from roundelay.site import Brought, hands_for, holding, making, simulated
from roundelay.site.offered import LOSSES, read_settings
from roundelay.trainer import Trainer

DATA = """
import torch
import roundelay as rd

def own():
    return rd.Data((torch.randn(40, 7), torch.arange(40) % 3), name="own")

def pair():
    return torch.randn(40, 7), torch.arange(40) % 3

def parted():
    return rd.FederatedData.from_datasets({name: (torch.randn(9, 7), torch.arange(9) % 3) for name in ("ann", "bob")})
"""
"""A site's own module; its draws are from the global state, as any user's are."""

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nnet = loss = measure = fedavg = print\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "sites_data.py").write_text(DATA)
    (tmp_path / "evil.py").write_text(EVIL)
    for module in ("sites_data", "evil"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def logistic(**changes: object) -> rd.Job:
    """A job whose settings a device can use: of roundelay's own parts."""
    document: dict[str, object] = {
        "num_rounds": 2, "seed": 7,
        "model": {"use": "logistic", "num_features": 7, "num_classes": 3}, "data": {"use": "sites_data:own"},
        "partition": {"use": "dirichlet", "num_clients": 4, "alpha": 0.5, "min_examples": 2},
        "learner": {"lr": 0.1, "batch_size": 4},
    }  # fmt: skip
    return config.build_job({**document, **changes})


def briefing(job: rd.Job, client: str = "alice", settings: str | None = None, **site: object) -> Briefing:
    """What a server of this job tells the client."""
    layout = Trainer(replace(job, data=FederatedData.elsewhere([client]), partition=None).prepared().work).layout
    told = Site(client, "run", job.seed, job.num_rounds, describe(job.algorithm), layout, {"lr": 1})
    text = offered_settings(job.to_toml()) if settings is None else settings
    return Briefing(run="run", client=client, heartbeat_s=1.0, site={**told.frame().fields, **site}, settings=text)


def hands(brought: Brought, told: Briefing) -> Hands:
    return hands_for(brought, told, Path("scripts"), lambda *_: None)


def trainer_hands(brought: Brought, told: Briefing) -> TrainerHands:
    made = hands(brought, told)
    assert isinstance(made, TrainerHands)
    return made


def same(one: Examples, other: Examples) -> bool:
    (first,), (second,) = (list(e.batches(torch.arange(len(e)), len(e))) for e in (one, other))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def part(made: TrainerHands, client: str = "alice") -> tuple[Examples, Examples | None]:
    data = made._trainer.work.data
    return data.train(client), data.test(client)


# ---- the same data as in a simulation -------------------------------------------------------------------------------

NAMES = ("dora", "alice", "carl", "bob")


@pytest.mark.parametrize("fraction", [0.0, 0.4])
@pytest.mark.parametrize("brings_job", [False, True])
def test_a_shard_is_what_the_simulated_client_of_that_name_has(fraction: float, brings_job: bool) -> None:
    job = logistic(evaluation={"client_test_fraction": fraction})
    Path("job.toml").write_text(tomli_w.dumps(tomllib.loads(job.to_toml())))
    data = simulated(job, NAMES).prepared().work.data
    assert data.clients == tuple(sorted(NAMES))
    sizes = set()
    for number, client in enumerate(NAMES):
        brought = Brought(job="job.toml") if brings_job else Brought(data="sites_data:own")
        made = trainer_hands(replace(brought, shard=f"{number}/4"), briefing(job, client))
        train, test = part(made, client)
        assert same(train, data.train(client))
        assert (test is None) == (fraction == 0)
        if test is not None:
            own = data.test(client)
            assert own is not None
            assert same(test, own)
        sizes.add(len(train))
    assert len(sizes) > 1  # swapped parts would show


def test_without_a_shard_all_of_the_sites_data_is_its_own_and_anything_that_is_examples_will_do() -> None:
    for word in ("sites_data:own", "sites_data:pair"):
        assert len(trainer_hands(Brought(data=word), briefing(logistic())).examples) == 40


def test_a_shard_of_a_job_without_a_partition_is_drawn_at_random() -> None:
    told = briefing(logistic(), settings=without(offered_settings(logistic().to_toml()), "partition"))
    made = trainer_hands(Brought(data="sites_data:own", shard="1/3"), told)
    job = replace(logistic(), partition=rd.IID(3))
    assert same(made.examples, job.prepared().work.data.train("1"))


def test_a_job_without_a_shard_gives_each_client_its_own_part_by_name() -> None:
    job = logistic()
    Path("job.toml").write_text(job.to_toml())
    made = trainer_hands(Brought(job="job.toml"), briefing(job, "2"))
    assert same(made.examples, job.prepared().work.data.train("2"))
    with pytest.raises(ConfigError, match=r"client 'alice': the job's partition has no part .* 0, 1, 2, 3; .*--shard"):
        hands(Brought(job="job.toml"), briefing(job))


def test_a_split_file_gives_the_part_of_this_clients_name() -> None:
    rd.Split.from_parts({"alice": [5, 3, 8], "bob": [1]}, 40).save("split.json")
    made = trainer_hands(Brought(data="sites_data:own", split=Path("split.json")), briefing(logistic()))
    whole = trainer_hands(Brought(data="sites_data:own"), briefing(logistic())).examples
    assert same(made.examples, whole.select(torch.tensor([3, 5, 8])))
    with pytest.raises(ConfigError, match=r"client 'carl': split.json has no part of that name, only alice, bob"):
        hands(Brought(data="sites_data:own", split=Path("split.json")), briefing(logistic(), "carl"))
    rd.Split.from_parts({"alice": [1]}, 41).save("split.json")
    with pytest.raises(DataError, match="splits 41 examples, own has 40"):
        hands(Brought(data="sites_data:own", split=Path("split.json")), briefing(logistic()))


def test_data_in_its_clients_hands_is_found_by_name_or_number() -> None:
    job = logistic(data="sites_data:parted")
    job = replace(job, partition=None)
    simulation = simulated(job, ["bob"]).prepared().work.data
    assert simulation.clients == ("bob",)
    by_name = trainer_hands(Brought(data="sites_data:parted"), briefing(job, "bob"))
    by_number = trainer_hands(Brought(data="sites_data:parted", shard="1/2"), briefing(job, "alice"))
    assert same(by_name.examples, simulation.train("bob"))
    assert same(by_number.examples, simulation.train("bob"))
    for wrong, message in ((Brought(data="sites_data:parted"), "'alice': this data has no part"),
                           (Brought(data="sites_data:parted", shard="0/3"), "give --shard i/2")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            hands(wrong, briefing(job))
    with pytest.raises(ConfigError, match="'carl': the job's data is in the hands of ann, bob"):
        simulated(job, ["ann", "carl"])


def test_a_shard_of_another_number_of_clients_is_refused_before_anything_is_dealt_out() -> None:
    settings = offered_settings(logistic().to_toml()).replace("num_clients = 4", "num_clients = 1000000000000")
    for number, told in ((4, briefing(logistic(), settings=settings)), (5, briefing(logistic()))):
        with pytest.raises(ConfigError, match=r"splits its data among .* clients; give --shard i/"):
            hands(Brought(data="sites_data:own", shard=f"0/{number}"), told)


def test_the_digits_are_found_by_name_with_their_settings() -> None:
    job = config.load(Path(rd.__file__).parents[2] / "examples" / "digits" / "job.toml")
    made = trainer_hands(Brought(data="digits:num_test=4900", shard="0/2"), briefing(job, settings=without(
        offered_settings(job.to_toml()), "partition")))  # fmt: skip
    assert len(made.examples) == 50
    counts = torch.bincount(made.examples.labels()).tolist()
    assert holding(made, True) == Holding(num_examples=50, label_counts=counts)
    assert holding(made, False) == Holding(num_examples=50), "nobody allowed more"


@pytest.mark.parametrize(("words", "message"), [
    ({"data": "mnist"}, "--data mnist.folder is missing"), ({"data": "minst"}, "did you mean 'mnist'"),
    ({"data": "mnist:/nowhere"}, "/nowhere: no such folder"), ({}, "say which data"),
    ({"data": "sites_data:none"}, "cannot find 'sites_data:none'"),
    ({"data": "digits:num_tests=5"}, "did you mean 'num_test'"),
])  # fmt: skip
def test_data_that_is_not_there_is_named(words: Mapping[str, str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        hands(Brought(**words), briefing(logistic()))  # type: ignore[arg-type]


@pytest.mark.parametrize(("words", "message"), [
    ({"shard": "2/2"}, "from 0 to n - 1"), ({"shard": "0"}, "expected i/n"), ({"shard": "-1/2"}, "expected i/n"),
    ({"shard": "0/1", "split": Path("s")}, "not both"), ({"script": Path("s"), "data": "mnist"}, "reads its own data"),
    ({"script_args": ["x"]}, "for a --script"),
])  # fmt: skip
def test_words_that_cannot_mean_anything_together_are_refused(words: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Brought(**words)  # type: ignore[arg-type]


# ---- what a server may say ------------------------------------------------------------------------------------------


def without(settings: str, *names: str) -> str:
    return tomli_w.dumps({name: value for name, value in tomllib.loads(settings).items() if name not in names})


def test_a_server_tells_neither_files_nor_scripts_and_unwraps_names() -> None:
    Path("secret.json").touch()
    rd.Split.from_parts({"a": [1]}, 40).save("secret.json")
    job = replace(logistic(), init="secret.pt", partition=rd.FromFile("secret.json"), data=None, script="secret.py",
                  learner=None)  # fmt: skip
    told = offered_settings(job.to_toml())
    assert "secret" not in told
    assert tomllib.loads(told)["partition"] == {"use": "fromfile"}
    plain = logistic()
    assert offered_settings(simulated(plain, NAMES).to_toml()) == offered_settings(plain.to_toml())


def test_a_simulation_by_name_is_written_and_read_again() -> None:
    job = simulated(logistic(), NAMES)
    again = config.build_job(tomllib.loads(job.to_toml()))
    assert again.to_toml() == job.to_toml()
    assert again.prepared().split == job.prepared().split


EVILS: Sequence[tuple[str, object]] = [
    ("model", {"use": "evil:net"}),
    ("model", "evil:net"),
    ("model", {"use": "logistic", "num_features": {"use": "evil:net"}, "num_classes": 3}),
    ("learner", {"lr": 0.1, "loss": "evil:loss"}),
    ("learner", {"lr": 0.1, "loss": "evil:lo-ss"}),
    ("learner", {"lr": 0.1, "schedule": {"use": "evil:net"}}),
    ("learner", {"lr": 0.1, "optimizer_args": {"deep": [{"use": "evil:net"}]}}),
    ("learner", {"use": "functionlearner", "function": "evil:net"}),
    ("learner", {"use": "torch.nn.functional:cross_entropy:evil"}),
    ("algorithm", {"use": "evil:fedavg"}),
    ("algorithm", {"use": "fedavg", "server_lr": {"use": "evil:fedavg"}}),
    ("evaluation", {"measures": ["evil:measure"]}),
    ("evaluation", {"loss": "evil:loss"}),
    ("partition", {"use": "evil:net"}),
    ("partition", {"use": "named", "names": ["a"], "inner": {"use": "evil:net"}}),
]


@pytest.mark.parametrize(("place", "value"), EVILS)
def test_a_name_that_was_not_allowed_is_refused_and_nothing_is_imported(place: str, value: object) -> None:
    document = {**tomllib.loads(offered_settings(logistic().to_toml())), place: value}
    told = briefing(logistic(), settings=tomli_w.dumps(document))
    Path("ran").unlink(missing_ok=True)
    sys.modules.pop("sites_data", None)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=rf"{place}.*: the server asks for .*allow it with --allow "):
        hands(Brought(data="sites_data:own", shard="0/4"), told)
    assert not Path("ran").exists()
    assert set(sys.modules) - before <= {"sites_data"}  # the site's own


def test_a_name_that_was_allowed_is_imported_and_no_other() -> None:
    document = {**tomllib.loads(offered_settings(logistic().to_toml())), "learner": {"lr": 0.1, "loss": "evil:loss"}}
    told = briefing(logistic(), settings=tomli_w.dumps(document))
    with pytest.raises(ConfigError, match="evil:loss"):
        hands(Brought(data="sites_data:own", allow=["evil:net"]), told)
    hands(Brought(data="sites_data:own", allow=["evil:loss"]), told)
    assert Path("ran").exists()


def test_the_test_of_names_catches_a_server_that_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundelay.site.offered.foreign", lambda *_: ())
    with pytest.raises((AssertionError, TypeError, pytest.fail.Exception)):
        test_a_name_that_was_not_allowed_is_refused_and_nothing_is_imported(*EVILS[4])


def test_a_script_is_given_no_algorithm_with_something_foreign_inside(tmp_path: Path) -> None:
    table = {"use": "fedavg", "server_lr": {"use": "evil:fedavg"}}
    with pytest.raises(ClientError, match=r"algorithm.server_lr 'evil:fedavg'"):
        _algorithm(table, ())
    (tmp_path / "client.py").touch()
    with pytest.raises(ConfigError, match="--allow evil:fedavg"):
        hands(Brought(script=Path("client.py")), briefing(logistic(), algorithm=table))
    assert not Path("ran").exists()


def test_what_a_process_alone_has_must_be_brought() -> None:
    settings = offered_settings(small_job(model=torch.nn.Linear(7, 3)).to_toml())
    with pytest.raises(ConfigError, match=r"model.*which only its own process has; bring the job"):
        hands(Brought(data="sites_data:own"), briefing(logistic(), settings=settings))


def test_settings_open_no_file_and_files_that_they_name_are_not_looked_at() -> None:
    document = {**tomllib.loads(offered_settings(logistic().to_toml())), "init": "/nowhere", "script": "/nowhere",
                "data": {"use": "mnist", "folder": "/nowhere"}, "tracking": {"root": "/nowhere"}}  # fmt: skip
    made = trainer_hands(Brought(data="sites_data:own"), briefing(logistic(), settings=tomli_w.dumps(document)))
    assert len(made.examples) == 40
    for table in ({"use": "fromfile", "path": "/nowhere"}, {"use": "From_File", "path": "/nowhere"},
                  {"use": "named", "names": ["a"], "inner": {"use": "fromfile", "path": "/nowhere"}}):  # fmt: skip
        told = briefing(logistic(), settings=tomli_w.dumps({**document, "partition": table}))
        with pytest.raises(ConfigError, match="bring a copy with --split FILE"):
            hands(Brought(data="sites_data:own", shard="0/1"), told)


def test_the_losses_of_torch_need_no_leave() -> None:
    for name in LOSSES:
        loss = getattr(torch.nn.functional, name.partition(":")[2])
        assert describe(loss) == name


@pytest.mark.parametrize("site", [
    {"specs": 3}, {"specs": [["w", ["x"], "float32", "parameter", [], False]]}, {"name": "bob"}, {"seed": "x"},
    {"specs": [["w", [-1], "float32", "parameter", [], False]]}, {"algorithm": []}, {"more": 1}, {"dtype": "os"},
])  # fmt: skip
def test_a_description_that_is_none_is_refused(site: Mapping[str, object]) -> None:
    with pytest.raises(WireError, match="the server"):
        hands(Brought(data="sites_data:own"), briefing(logistic(), **site))


@pytest.mark.parametrize("text", ["[", "x = " + "[" * 10_000, "seed = 'x'", "learner = 3\nmodel = 'mlp'", ""])
def test_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        hands(Brought(data="sites_data:own"), briefing(logistic(), settings=text))


# ---- a job that is installed here -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"seed": 8}, "seed is 8 in the job that is installed here, and 7 in the server's"),
    ({"learner": {"lr": 0.2, "batch_size": 4}}, r"learner.lr is 0.2 in .*, and 0.1 in"),
    ({"algorithm": {"use": "scaffold"}}, r"algorithm.use is 'scaffold' in .* 'fedavg'"),
    ({"model": {"use": "mlp", "num_features": 7, "hidden": [], "num_classes": 3}}, r"model.hidden is \[\] .* not set"),
    ({"keep_local": ["*.bias"]}, r"keep_local is \['\*.bias'\] in .*, and \[\] in"),
    ({"evaluation": {"client_test_fraction": 0.5}}, "evaluation.client_test_fraction is 0.5 in .*, and 0.0 in"),
])  # fmt: skip
def test_an_installed_job_that_differs_in_what_decides_bits_is_refused(
    changes: Mapping[str, object], message: str
) -> None:
    Path("job.toml").write_text(logistic(**changes).to_toml())
    with pytest.raises(ConfigError, match=message):
        hands(Brought(job="job.toml", shard="0/4"), briefing(logistic()))


def test_an_installed_job_may_differ_in_what_is_the_servers_affair_and_may_live_in_a_module() -> None:
    Path("own_job.py").write_text(
        "import roundelay as rd, sites_data\n"
        "def make():\n"
        "    return rd.Job(model=rd.models.Logistic(7, 3), data=sites_data.own, partition=rd.IID(2), num_rounds=99,\n"
        "                  learner=rd.LocalSGD(lr=0.1, batch_size=4), seed=7)\n"
    )
    served = replace(logistic(), model=rd.models.Logistic(7, 3))
    assert len(trainer_hands(Brought(job="own_job:make", shard="0/2"), briefing(served)).examples) == 20
    with pytest.raises(ConfigError, match=r"expected a roundelay.Job"):
        hands(Brought(job="sites_data:own"), briefing(served))


def test_another_model_than_the_servers_is_refused() -> None:
    told = briefing(logistic(model={"use": "logistic", "num_features": 7, "num_classes": 4}))
    settings = offered_settings(logistic().to_toml())
    with pytest.raises(LayoutError, match=r"client 'alice': .* 'linear.weight'"):
        hands(Brought(data="sites_data:own"), told.model_copy(update={"settings": settings}))


@pytest.mark.parametrize("changes", [{"keep_local": ["*.bias"]}, {"algorithm": {"use": "ditto", "strength": 0.1}}])
def test_first_values_that_the_server_has_from_elsewhere_must_be_brought(changes: Mapping[str, object]) -> None:
    state = rd.models.Logistic(7, 3).state_dict()
    torch.save(state, "first.pt")
    served = replace(logistic(**changes), init="first.pt")
    with pytest.raises(ConfigError, match="which the server has from init"):
        hands(Brought(data="sites_data:own"), briefing(served))
    Path("job.toml").write_text(served.to_toml())
    trainer_hands(Brought(job="job.toml", shard="0/4"), briefing(served))
    hands(Brought(data="sites_data:own"), briefing(replace(logistic(), init="first.pt")))  # nothing hangs on them


# ---- scripts --------------------------------------------------------------------------------------------------------


def scripts_hands(brought: Brought, told: Briefing) -> ScriptHands:
    made = hands(brought, told)
    assert isinstance(made, ScriptHands)
    assert holding(made, True) is None
    return made


def test_a_script_is_told_its_part_by_the_site_and_no_file_by_the_server() -> None:
    Path("client.py").touch()
    rd.Split.from_parts({"alice": [0], "bob": [1]}, 40).save("split.json")
    job, brought = logistic(), Brought(script=Path("client.py"))
    told = briefing(job, config={"lr": 1, "partition": {"client": "bob", "number": 3, "file": "/etc/passwd"}})
    parts = [(brought, {"client": "alice", "number": 3}),
             (replace(brought, shard="1/5"), {"client": "alice", "number": 1, "num_clients": 5}),
             (replace(brought, split=Path("split.json")), {"client": "alice", "number": 0, "num_clients": 2,
                                                           "file": str(Path("split.json").resolve())})]  # fmt: skip
    for words, expected in parts:
        assert scripts_hands(words, told)._site.config == {"lr": 1, "partition": expected}


@pytest.mark.parametrize("settings", [
    {"algorithm": {"use": "scaffold"}}, {"algorithm": {"use": "ditto", "strength": 0.1}}, {"keep_local": ["*.bias"]},
])  # fmt: skip
def test_a_script_begins_with_the_memory_of_a_simulated_one(settings: Mapping[str, object]) -> None:
    Path("client.py").touch()
    job = logistic(**settings)
    trainer = Trainer(job.prepared().work)
    expected = {**trainer.first_local(), **job.algorithm.first_memory(trainer.bound.params().clone())}
    first = scripts_hands(Brought(script=Path("client.py")), briefing(job))._first
    assert {k: v.tolist() for k, v in first.items()} == {k: v.tolist() for k, v in expected.items()}


def test_a_job_of_scripts_needs_a_script_or_brings_it() -> None:
    Path("client.py").touch()
    served = replace(logistic(), data=None, partition=None, learner=None, script="client.py")
    with pytest.raises(ConfigError, match="this run's clients are scripts: bring yours with --script FILE"):
        hands(Brought(data="sites_data:own"), briefing(served))
    Path("job.toml").write_text(served.to_toml())
    assert scripts_hands(Brought(job="job.toml"), briefing(served))._script.path == Path("client.py").resolve()
    served = replace(served, simulation=rd.Simulation(num_clients=2))
    renamed = simulated(served, ["b", "a", "c"]).prepared().work.data
    assert renamed.clients == ("a", "b", "c")


def test_classes_are_counted_only_where_that_is_allowed() -> None:
    made = trainer_hands(Brought(data="sites_data:own"), briefing(logistic()))
    assert holding(made, True) == Holding(num_examples=40, label_counts=[14, 13, 13])
    assert holding(made, False) == Holding(num_examples=40)


def test_what_has_no_classes_has_no_counts() -> None:
    made = trainer_hands(Brought(data="sites_data:own"), briefing(logistic()))
    made.examples = rd.data.examples.as_examples((torch.zeros(3, 7), torch.zeros(3)))
    assert holding(made, True) == Holding(num_examples=3)
    assert read_settings("has_init = 1")["has_init"] is False


def test_a_folder_with_settings_behind_it_is_text_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(folder: str, patients: object = None, before_s: float = 0.0) -> rd.FederatedData:
        given.append((folder, patients, before_s))
        return rd.FederatedData.elsewhere(())

    given: list[object] = []
    monkeypatch.setitem(config.CHOSEN, "data", ({"Reads": reads}, None))
    for word in ("reads:3", "reads:a=b", "reads:folder=100,before_s=0.2", 'reads:folder=a:b,patients={pi=["1","2"]}'):
        making._source(word)()
    assert given == [("3", None, 0.0), ("a=b", None, 0.0), ("100", None, 0.2), ("a:b", {"pi": ("1", "2")}, 0.0)]


def test_a_server_that_has_held_out_data_only_takes_its_clients_from_their_names() -> None:
    held_out = as_examples((torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)))
    mine = replace(logistic(), data=rd.FederatedData.elsewhere((), held_out), partition=None)
    job = simulated(mine, ["bob", "ann"])
    assert job.data.clients == ("ann", "bob")
    assert job.data.held_out is held_out
