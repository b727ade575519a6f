"""fl.patch: an algorithm's corrections in a user's own loop come to the bits of LocalSGD, for the same batches."""

import sys
from pathlib import Path

import pytest
from networks import Twins, examples, small_job
from scripts import script_job, threads

import roundelay as rd
from roundelay.client import session
from roundelay.client.patch import Steps

BEGIN = """
from networks import Twins
from roundelay import seeds
from roundelay.data import Examples
settings = dict(pair.split("=") for pair in sys.argv[1:])

fl.init()
site = fl.get_site_name()
number = fl.get_config()["partition"]["number"]
data = examples(10 + 2 * number, seed=number)
net = Awkward()
"""
MADE = """
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=float(settings.get("momentum", 0)))
"""
PATCHED = "fl.patch(optimizer)\n"
LOOP = """
before, fit, meta = -1, 0, {}
while fl.is_running():
    model = fl.receive()
    if fl.is_evaluate():
        net.load_state_dict(model.params)
        net.eval()
        with torch.no_grad():
            right = (net(data.inputs).argmax(1) == data.targets).float().mean()
        fl.send(fl.FLModel(metrics={"accuracy": right}, num_examples=len(data)))
        continue
    fit = fit + 1 if model.current_round == before else 0  # Ditto asks for two a round
    before = model.current_round
    net.load_state_dict(model.params)
    net.train()
    optimizer.state.clear()  # LocalSGD's is new for every task
    order = seeds.generator(7, model.current_round + 1, 0, site, f"shuffle-{fit}" if fit else "shuffle")
    num_steps = 0
    for _ in range(1 + number):  # how many steps differs: FedNova and SCAFFOLD must be told
        for inputs, targets in data.batches(torch.randperm(len(data), generator=order), 4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
            num_steps += 1
    meta = {"NUM_STEPS_CURRENT_ROUND": num_steps} if "meta" in settings else {}
    fl.send(fl.FLModel(params=net.state_dict(), num_examples=len(data), meta=meta))
"""
SCRIPT = BEGIN + MADE + PATCHED + LOOP


def own_epochs(round: int, client: str) -> dict[str, int]:
    return {"local_epochs": int(client.removeprefix("site-"))}


def learnt(algorithm: rd.Algorithm, folder: Path, momentum: float = 0.0, **changes: object) -> rd.History:
    """What LocalSGD comes to, with its own shuffles, one epoch more for each client."""
    parts = {f"site-{i + 1}": examples(10 + 2 * i, seed=i) for i in range(3)}
    return small_job(
        data=rd.FederatedData.from_datasets(parts), learner=rd.LocalSGD(lr=0.1, batch_size=4, momentum=momentum),
        algorithm=algorithm, client_config=own_epochs, clients_per_round=3, **changes,
    ).run()  # fmt: skip


def written(algorithm: rd.Algorithm, folder: Path, text: str = SCRIPT, args: str = "", **changes: object) -> rd.History:
    return script_job(
        folder, text, threads(3), script_args=args, algorithm=algorithm, num_rounds=3, **changes
    ).run()  # fmt: skip


ALGORITHMS = {
    "FedAvg": rd.FedAvg(),
    "FedProx": rd.FedProx(mu=0.5),
    "SCAFFOLD": rd.Scaffold(),
    "FedNova": rd.FedNova(),
    "FedNova with a pull": rd.FedNova(mu=0.5),
    "FedDyn": rd.FedDyn(alpha=0.1),
    "Ditto": rd.Ditto(strength=0.5),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_patched_loop_comes_to_the_bits_of_local_sgd(algorithm: rd.Algorithm, tmp_path: Path) -> None:
    assert written(algorithm, tmp_path).sha256 == learnt(algorithm, tmp_path).sha256


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_fednova_knows_the_momentum_of_a_patched_optimizer(mu: float, tmp_path: Path) -> None:
    nova = rd.FedNova(mu=mu)
    assert written(nova, tmp_path, args="momentum=0.9").sha256 == learnt(nova, tmp_path, momentum=0.9).sha256


def test_fednova_takes_a_number_of_steps_that_the_script_tells(tmp_path: Path) -> None:
    told = written(rd.FedNova(), tmp_path, BEGIN + MADE + LOOP, args="meta=1")
    assert told.sha256 == learnt(rd.FedNova(), tmp_path).sha256
    assert told.sha256 != learnt(rd.FedAvg(), tmp_path).sha256


def test_the_test_of_patches_catches_a_correction_that_is_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["roundelay.client.patch"], "_correct", lambda *arguments: None)
    for name in ("FedProx", "SCAFFOLD", "FedDyn"):
        with pytest.raises(AssertionError):
            test_a_patched_loop_comes_to_the_bits_of_local_sgd(ALGORITHMS[name], tmp_path / name)


def test_the_test_of_patches_catches_steps_that_are_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all rounds together: SCAFFOLD's control variates and FedNova's norms come out wrong."""
    kept: dict[str, Steps] = {}
    hand_out = session._Work._hand_out

    def keeping(self: session._Work, ask: object) -> None:
        hand_out(self, ask)  # type: ignore[arg-type]
        self.steps = kept.setdefault(self.task.client, self.steps)

    monkeypatch.setattr(session._Work, "_hand_out", keeping)
    for name in ("SCAFFOLD", "FedNova"):
        kept.clear()
        with pytest.raises(AssertionError):
            test_a_patched_loop_comes_to_the_bits_of_local_sgd(ALGORITHMS[name], tmp_path / name)


def test_a_personal_model_is_measured_as_local_sgds_is(tmp_path: Path) -> None:
    ditto, often = rd.Ditto(strength=0.5), rd.Evaluation(clients_every=1)
    ours, wanted = (of(ditto, tmp_path, evaluation=often) for of in (written, learnt))
    for name in ("client_accuracy", "client_accuracy_variance", "client_accuracy_worst_decile"):
        assert [row[name] for row in ours.rows] == pytest.approx([row[name] for row in wanted.rows]), name
    assert len({row["client_accuracy"] for row in ours.rows}) > 1


@pytest.mark.parametrize("keep_local", [["second.*"], ["@batch_norm"]])
@pytest.mark.parametrize("algorithm", [rd.FedAvg(), rd.Scaffold()], ids=["FedAvg", "SCAFFOLD"])
def test_what_stays_on_a_client_stays_there(keep_local: list[str], algorithm: rd.Algorithm, tmp_path: Path) -> None:
    text = SCRIPT.replace("fl.patch(optimizer)", "fl.patch(optimizer, net)")
    ours, wanted = (
        written(algorithm, tmp_path, text, keep_local=keep_local),
        learnt(algorithm, tmp_path, keep_local=keep_local),
    )
    assert ours.sha256 == wanted.sha256


IN_GROUPS = """
groups = [[p for p in net.parameters() if p.dim() == dim] for dim in (1, 2)]
optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=0.1)
"""


def test_parameters_in_another_order_are_refused_unless_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(rd.errors.ClientFailed, match=r"are not the model's 6 shared ones.*patch\(optimizer, net"):
        written(rd.Scaffold(), tmp_path, BEGIN + IN_GROUPS + PATCHED + LOOP)
    named = written(rd.Scaffold(), tmp_path, BEGIN + IN_GROUPS + "fl.patch(optimizer, net)\n" + LOOP)
    assert named.sha256 == learnt(rd.Scaffold(), tmp_path).sha256


def test_parameters_that_only_their_values_tell_apart_are_refused_in_another_order(tmp_path: Path) -> None:
    begin = BEGIN.replace("Awkward()", "Twins()")
    layers = "[*net.second.parameters(), *net.first.parameters(), *net.head.parameters()]"
    swapped = f"optimizer = torch.optim.SGD({layers}, lr=0.1)\n"
    with pytest.raises(rd.errors.ClientFailed, match=r"parameters 0 and 2 are each other's.*patch\(optimizer, net"):
        written(rd.Scaffold(), tmp_path, begin + swapped + PATCHED + LOOP, model=Twins)
    named = written(rd.Scaffold(), tmp_path, begin + swapped + "fl.patch(optimizer, net)\n" + LOOP, model=Twins)
    assert named.sha256 == learnt(rd.Scaffold(), tmp_path, model=Twins).sha256


def test_a_step_that_computes_gradients_of_its_own_is_refused(tmp_path: Path) -> None:
    for step in ("optimizer.step(lambda: 0.0)", "optimizer.step(closure=lambda: 0.0)"):
        with pytest.raises(rd.errors.ClientFailed, match=r"step\(\) takes no closure"):
            written(rd.FedProx(mu=0.5), tmp_path, SCRIPT.replace("optimizer.step()", step))


def test_an_optimizer_that_is_patched_twice_is_corrected_once(tmp_path: Path) -> None:
    text = (
        BEGIN + MADE + LOOP.replace("    model = fl.receive()\n", "    model = fl.receive()\n    fl.patch(optimizer)\n")
    )
    assert written(rd.Scaffold(), tmp_path, text).sha256 == learnt(rd.Scaffold(), tmp_path).sha256


UNPATCHED = {
    "SCAFFOLD": (rd.Scaffold(), r"client 'site-1': .*round 1 .*Scaffold, which corrects every gradient: call fl\.p"),
    "FedNova": (rd.FedNova(), r"client 'site-1': .*FedNova, which needs a_norm .*fl\.patch\(optimizer\).*NUM_STEPS"),
    "q-FedAvg": (rd.QFedAvg(q=1.0, lipschitz=10.0), "losses of models, which a script cannot"),
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "words"), UNPATCHED.values(), ids=UNPATCHED)
def test_an_algorithm_that_is_not_served_says_what_to_call(algorithm: rd.Algorithm, words: str, tmp_path: Path) -> None:
    with pytest.raises((rd.errors.ClientFailed, rd.errors.ConfigError), match=words):
        written(algorithm, tmp_path, BEGIN + MADE + LOOP)


def test_an_optimizer_that_is_not_plain_sgd_tells_no_norm(tmp_path: Path) -> None:
    text = SCRIPT.replace(
        "torch.optim.SGD(net.parameters(), lr=0.1, momentum", "torch.optim.Adam(net.parameters(), lr=0.1, eps"
    )
    with pytest.raises(rd.errors.ClientFailed, match=r"with a plain torch\.optim\.SGD"):
        written(rd.FedNova(), tmp_path, text)
    assert written(rd.FedProx(mu=0.5), tmp_path, text.replace('settings.get("momentum", 0)', "1e-8")).rows
