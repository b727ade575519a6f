"""Attacks and faults do what their names say, to those whom they strike and to nobody else; each check catches bugs."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from networks import examples, federated, small_job
from torch import Tensor

import roundelay as rd
from roundelay import attacks, config
from roundelay.aggregators import Updates
from roundelay.attacks import (
    ALIE,
    IPM,
    Backdoor,
    Crash,
    Drop,
    GaussianNoise,
    Hostile,
    LabelFlip,
    MinMax,
    NaN,
    Scaling,
    SignFlip,
    Slow,
    roles,
    work,
)
from roundelay.attacks.roles import assigned
from roundelay.cli import app
from roundelay.data import TensorExamples
from roundelay.simulation import intercepted

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
CLIENTS = tuple(f"c{i}" for i in range(6))
HOSTILE = ("c1", "c4")
Planting = Callable[[pytest.MonkeyPatch], None]


def job(*struck: Hostile, **changes: object) -> rd.Job:
    settings = {"clients_per_round": 6, "num_rounds": 2, "learner": rd.LocalSGD(lr=0.1, batch_size=4)}
    return small_job(attacks=struck, **{**settings, **changes})


# ---- who is struck --------------------------------------------------------------------------------------------------


def test_a_fraction_is_drawn_by_the_seed_the_same_for_every_attack_and_grows_by_more_clients() -> None:
    everybody = [f"{i:03d}" for i in range(100)]

    def struck(attack: Hostile, seed: int = 1) -> set[str]:
        return set(assigned([attack], everybody, seed))

    fifth = struck(ALIE(fraction=0.2))
    assert len(fifth) == 20
    assert fifth == struck(SignFlip(fraction=0.2))
    assert fifth < struck(IPM(fraction=0.3))
    assert fifth != struck(ALIE(fraction=0.2), seed=2)
    assert fifth != struck(Drop(fraction=0.2))  # faults draw their own
    assert struck(SignFlip(clients=["007", "042"])) == {"007", "042"}
    assert len(struck(Drop(p=0.5))) == 100


def test_the_trusted_root_is_not_drawn() -> None:
    prepared = job(SignFlip(fraction=0.8), aggregator=rd.FLTrust(root="c3")).prepared()
    assert len(prepared.roles) == 4
    assert "c3" not in prepared.roles


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (SignFlip(), "SignFlip strikes nobody: give fraction=0.2, or clients"),
        (SignFlip(fraction=0.01), "a fraction of 0.01 of 6 clients is nobody"),
        (SignFlip(fraction=1.2), "expected one up to 1"),
        (SignFlip(fraction=0.2, clients=["c1"]), "give fraction or clients, not both"),
        (SignFlip(clients=["zoe"]), "client 'zoe' is not among those"),
        (Slow(factor=2.0), "this job models none"),
        ("alie", r"attacks must be a list of attacks such as \[SignFlip\(fraction=0.2\)\], got 'alie'"),
    ],
)
def test_what_strikes_nobody_is_refused_at_the_start(attack: Hostile, message: str) -> None:
    with pytest.raises(rd.errors.ConfigError, match=message):
        job(attack).start()


@pytest.mark.parametrize(
    "make",
    [lambda: Drop(p=0.0), lambda: Crash(p=1.5), lambda: Slow(seconds=-1.0), lambda: Backdoor(corner="middle"),
     lambda: Backdoor(share=0.0)],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(make: Callable[[], Hostile]) -> None:
    with pytest.raises(rd.errors.ConfigError):
        make()


def test_a_flip_of_labels_needs_to_know_how_many_there_are() -> None:
    unknown = rd.FederatedData.from_datasets({c: examples(12, seed=i) for i, c in enumerate(CLIENTS)})
    with pytest.raises(rd.errors.ConfigError, match="needs num_classes"):
        job(LabelFlip(fraction=0.5), data=unknown).start()
    job(LabelFlip(fraction=0.5, num_classes=3), data=unknown).run()


def test_colluders_are_refused_where_a_round_is_never_together() -> None:
    with pytest.raises(rd.errors.ConfigError, match="which only synchronous rounds have together"):
        job(ALIE(fraction=0.5), workflow=rd.Buffered(buffer_size=2)).start()
    job(SignFlip(fraction=0.5), workflow=rd.Buffered(buffer_size=2)).run()


# ---- what they send -------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """A rule that keeps the first round's steps, by client, and answers with the mean."""

    steps: dict[str, Tensor]
    previous: Tensor | None = None

    def __call__(self, updates: Updates) -> Tensor:
        if not self.steps:
            self.steps.update(zip(updates.clients, updates.points.double() - updates.previous, strict=True))
        return updates.points.mean(0)


def first_steps(*struck: Hostile, **changes: object) -> dict[str, Tensor]:
    rule = Seen({})
    job(*struck, num_rounds=1, aggregator=rule, **changes).run()
    return rule.steps


def honest_steps() -> Tensor:
    plain = first_steps()
    return torch.stack([plain[c] for c in CLIENTS if c not in HOSTILE])


def by_alie(own: Tensor) -> Tensor:
    mean, std = honest_steps().mean(0), honest_steps().std(0, correction=0)
    return mean - 0.6744898 * std  # n = 6, f = 2: s = 4 - 2 = 2 supporters; (6 - 2 - 2) / 4 = 1/2 gives z = 0: see z=


SENT: dict[str, tuple[Hostile, Callable[[Tensor], Tensor]]] = {
    "sign flip": (SignFlip(clients=HOSTILE, scale=2.0), lambda own: -2 * own),
    "scaling": (Scaling(clients=HOSTILE, factor=-100.0), lambda own: -100 * own),
    "alie": (ALIE(clients=HOSTILE, z=0.6744898), by_alie),
    "ipm": (IPM(clients=HOSTILE, epsilon=3.0), lambda own: -3 * honest_steps().mean(0)),
}


def check_sent(attack: Hostile, expected: Callable[[Tensor], Tensor]) -> None:
    """The contract: the struck clients send what the formula says, all others what they send anyway, to the bit."""
    plain, came = first_steps(), first_steps(attack)
    for client in CLIENTS:
        if client in HOSTILE:
            torch.testing.assert_close(came[client], expected(plain[client]), rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(came[client], plain[client]), client


@pytest.mark.parametrize(("attack", "expected"), SENT.values(), ids=SENT)
def test_the_struck_send_what_the_formula_says(attack: Hostile, expected: Callable[[Tensor], Tensor]) -> None:
    check_sent(attack, expected)


def strike_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roles, "_struck", lambda attack, clients, seed: clients)


def count_the_hostile_as_honest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(intercepted, "is_honest", lambda roles: True)


def forget_what_was_broadcast(patch: pytest.MonkeyPatch) -> None:
    base = intercepted.Intercepted._base
    patch.setattr(intercepted.Intercepted, "_base", lambda *args: torch.zeros_like(base(*args)))


def do_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(intercepted.Intercepted, "_tampered", lambda self, answer, batch: answer)


@pytest.mark.parametrize(
    ("plant", "attack"),
    [
        (strike_everybody, "sign flip"),
        (count_the_hostile_as_honest, "alie"),
        (forget_what_was_broadcast, "scaling"),
        (forget_what_was_broadcast, "ipm"),
        (do_nothing, "sign flip"),
    ],
)
def test_the_test_catches_an_attack_that_misses(plant: Planting, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = first_steps()  # what is expected comes from before the bug
    monkeypatch.setitem(globals(), "honest_steps", lambda: torch.stack([plain[c] for c in CLIENTS if c not in HOSTILE]))
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check_sent(*SENT[attack])


def test_noise_has_its_standard_deviation_and_is_drawn_by_client_and_round() -> None:
    plain, noisy = first_steps(), first_steps(GaussianNoise(clients=HOSTILE, std=0.5))
    first, second = (noisy[c] - plain[c] for c in HOSTILE)
    assert first.std().item() == pytest.approx(0.5, rel=0.2)  # 172 values
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [(50, 24, 1.4261), (20, 4, 0.1573), (6, 2, 0.0), (10, 8, 0.0)],  # Phi^-1(24/26), Phi^-1(9/16), of 1/2 and less
)
def test_alie_takes_the_deviation_that_wins_a_majority(n: int, f: int, z: float) -> None:
    s = n // 2 + 1 - f
    assert ALIE(fraction=0.1).z_of(n - f, f) == pytest.approx(z, abs=2e-4)
    if z:
        assert 0.5 * (1 + math.erf(z / math.sqrt(2))) == pytest.approx((n - f - s) / (n - f), abs=1e-4)


def test_minmax_goes_as_far_as_the_honest_are_apart() -> None:
    honest = torch.randn(7, 20, generator=torch.Generator().manual_seed(3))
    sent = MinMax(fraction=0.1).collude(honest, 2)
    widest = torch.pdist(honest).max()
    assert (honest - sent).norm(dim=1).max().item() == pytest.approx(widest.item(), rel=1e-5)
    further = sent + 0.01 * (sent - honest.mean(0))
    assert (honest - further).norm(dim=1).max() > widest
    direction = (honest.mean(0) - sent) / honest.std(0, correction=0)
    assert direction.std() / direction.mean() < 1e-3  # along the standard deviation
    assert torch.equal(MinMax(fraction=0.1).collude(honest[:1], 2), honest[0])


def test_colluders_with_nobody_honest_to_look_at_send_what_they_have() -> None:
    everybody = first_steps(ALIE(clients=CLIENTS))
    for client, step in first_steps().items():
        torch.testing.assert_close(everybody[client], step)


def test_attacks_on_one_client_act_in_their_order() -> None:
    plain = first_steps()["c1"]
    came = first_steps(SignFlip(clients=["c1"]), Scaling(clients=["c1"], factor=3.0))["c1"]
    torch.testing.assert_close(came, -3 * plain)


@dataclass(frozen=True)
class Zero(Hostile):
    """An attack of one's own."""

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return torch.zeros_like(step)


def test_an_attack_of_your_own_is_a_frozen_value_with_one_method() -> None:
    assert not first_steps(Zero(clients=HOSTILE))["c4"].any()


# ---- the same bits everywhere ---------------------------------------------------------------------------------------

MIXED = (ALIE(clients=["c1", "c4"]), GaussianNoise(clients=["c2"], std=0.1), LabelFlip(clients=["c3"]), Drop(p=0.2))


def test_serial_and_pooled_runs_end_in_the_same_sha256_whatever_the_order_of_arrival() -> None:
    def backwards(client: str, task: rd.Task) -> float:
        return 10.0 - int(client[1:])

    whole = job(*MIXED, num_rounds=3).run()
    assert job(*MIXED, num_rounds=3, simulation=POOL).run().sha256 == whole.sha256
    assert job(*MIXED, num_rounds=3, simulation=replace(SERIAL, duration=backwards)).run().sha256 == whole.sha256
    assert job(num_rounds=3).run().sha256 != whole.sha256


@pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
def test_colluders_see_everybody_whom_a_round_asked_though_it_closes_without_some(simulation: rd.Simulation) -> None:
    def staggered(client: str, task: rd.Task) -> float:
        return 1.0 + int(client[1:])  # the colluders c1 and c4; c5 is too late

    reference = first_steps(ALIE(clients=HOSTILE, z=1.0))
    came = first_steps(
        ALIE(clients=HOSTILE, z=1.0), workflow=rd.Rounds(deadline_s=5.5),
        simulation=replace(simulation, duration=staggered),
    )  # fmt: skip
    assert came.keys() == set(CLIENTS) - {"c5"}
    assert all(torch.equal(came[client], reference[client]) for client in came)


def test_an_attacked_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def kept(name: str) -> rd.Job:
        return job(*MIXED, num_rounds=4, tracking=rd.Tracking(str(tmp_path), name, checkpoint_every_s=0))

    whole = kept("whole").run()
    for finished in kept("cut").rounds():
        if finished.number == 2:
            break
    assert kept("cut").run(resume=tmp_path / "cut").sha256 == whole.sha256
    said = json.loads((tmp_path / "cut" / "attacks.json").read_text())
    assert said["c1"] == ["ALIE", "Drop"]


# ---- faults ---------------------------------------------------------------------------------------------------------


def statuses(finished: rd.Round) -> dict[str, str]:
    return {report.client: report.status for report in finished.clients}


def expected(status: str) -> dict[str, str]:
    return {client: status if client in HOSTILE else "admitted" for client in CLIENTS}


def check_nan() -> None:
    (finished,) = job(NaN(clients=HOSTILE), num_rounds=1).rounds()
    assert statuses(finished) == expected("refused")
    assert "NaN or infinite" in next(r.reason for r in finished.clients if r.client == "c1")
    without = job(Drop(clients=HOSTILE), num_rounds=1).run()
    assert job(NaN(clients=HOSTILE), num_rounds=1).run().sha256 == without.sha256


def check_drop() -> None:
    (finished,) = job(Drop(clients=HOSTILE), num_rounds=1).rounds()
    assert statuses(finished) == expected("lost")
    assert not any(report.traceback for report in finished.clients)


def check_crash() -> None:
    (finished,) = job(Crash(clients=HOSTILE), num_rounds=1).rounds()
    assert statuses(finished) == expected("lost")
    assert "crashes in training" in next(r.traceback for r in finished.clients if r.client == "c1")
    without = job(Drop(clients=HOSTILE), num_rounds=1).run()
    assert job(Crash(clients=HOSTILE), num_rounds=1).run().sha256 == without.sha256


def check_slow() -> None:
    slow = Slow(clients=HOSTILE, factor=3.0, seconds=1.0)
    timed = replace(SERIAL, duration=lambda client, task: 1.0)
    (finished,) = job(slow, num_rounds=1, simulation=timed, workflow=rd.Rounds(deadline_s=3.9)).rounds()
    assert statuses(finished) == expected("late")
    (finished,) = job(slow, num_rounds=1, simulation=timed).rounds()
    assert finished.row["virtual_s"] == 4.0


def check_flip() -> None:
    data = job(LabelFlip(clients=HOSTILE)).prepared().work.data
    for client in CLIENTS:
        honest = federated().train(client).labels()
        assert torch.equal(data.train(client).labels(), 2 - honest if client in HOSTILE else honest), client


CHECKS = {"nan": check_nan, "drop": check_drop, "crash": check_crash, "slow": check_slow, "flip": check_flip}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_faults_do_what_they_say(check: Callable[[], None]) -> None:
    check()


def never(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work, "strikes", lambda *args: False)
    patch.setattr(intercepted, "strikes", lambda *args: False)


def flip_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LabelFlip, "relabel", lambda self, targets: targets)


def flip_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work, "_poisoned", lambda poisons, seed, client, part: poisons["c1"][0].poison(part, None))


def send_zeros(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NaN, "lie", lambda self, step, draw: torch.zeros_like(step))


def stay_quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("roundelay.run.slowed", lambda duration, roles: duration)


@pytest.mark.parametrize(
    ("check", "plant"),
    [("nan", send_zeros), ("drop", never), ("crash", never), ("slow", stay_quick), ("flip", flip_nothing),
     ("flip", flip_everybody)],
)  # fmt: skip
def test_the_tests_catch_faults_that_do_not_happen(
    check: str, plant: Planting, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, StopIteration)):
        CHECKS[check]()


def test_a_probability_is_drawn_by_client_and_round() -> None:
    rounds = [statuses(f) for f in job(Drop(p=0.5), num_rounds=20).rounds()]
    lost = sum(status == "lost" for one in rounds for status in one.values())
    assert 35 < lost < 85  # of 120, 60 expected
    assert len({tuple(one.values()) for one in rounds}) > 10
    assert rounds == [statuses(f) for f in job(Drop(p=0.5), num_rounds=20).rounds()]


# ---- poisoned examples ----------------------------------------------------------------------------------------------


def images(num_examples: int) -> TensorExamples:
    generator = torch.Generator().manual_seed(1)
    return TensorExamples(torch.rand(num_examples, 1, 6, 6, generator=generator), torch.arange(num_examples) % 3)


def test_a_backdoor_stamps_a_share_of_the_images_and_leaves_the_data_itself_alone() -> None:
    clean = images(20)
    backdoor = Backdoor(clients=["a"], target=2, size=2, corner="top right", value=9.0, share=0.3)
    seen = backdoor.poison(clean, torch.Generator().manual_seed(4))
    stamped = [i for i in range(20) if (seen[i][0] == 9.0).any()]
    assert len(stamped) == 6
    for i in range(20):
        inputs, target = seen[i]
        assert target == (2 if i in stamped else clean[i][1])
        corner = torch.zeros(6, 6, dtype=torch.bool)
        corner[:2, -2:] = i in stamped
        assert torch.equal(inputs[0][corner], torch.full((4 * (i in stamped),), 9.0))
        assert torch.equal(inputs[0][~corner], clean[i][0][0][~corner])
    assert torch.equal(clean.inputs, images(20).inputs)


def read(part: rd.data.Examples, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*part.batches(order, size), strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize(
    "attack", [Backdoor(clients=["a"], value=5.0), LabelFlip(clients=["a"], num_classes=3)], ids=["backdoor", "flip"]
)
def test_poisoned_examples_are_the_same_by_item_by_batch_by_label_and_selected(attack: attacks.Poisons) -> None:
    seen = attack.poison(images(20), torch.Generator().manual_seed(4))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(9))
    inputs, targets = read(seen, order, 6)
    for at, i in enumerate(order.tolist()):
        assert torch.equal(inputs[at], seen[i][0])
        assert targets[at] == seen[i][1] == seen.labels()[i]
    some = torch.tensor([7, 3, 12])
    chosen = seen.select(some)
    assert len(chosen) == 3
    assert torch.equal(read(chosen, torch.arange(3), 2)[0], read(seen, some, 2)[0])
    assert torch.equal(chosen.labels(), seen.labels()[some])


def test_a_stamp_needs_images() -> None:
    with pytest.raises(rd.errors.DataError, match=r"expected images \(B, ..., H, W\)"):
        Backdoor(clients=["a"]).stamp(torch.zeros(4, 7))


# ---- files and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("alie", {"use": "alie"}),
        ("sign_flip:fraction=0.2,scale=3", {"use": "sign_flip", "fraction": 0.2, "scale": 3}),
        ('drop:clients=["a", "b"],p=0.5', {"use": "drop", "clients": ["a", "b"], "p": 0.5}),
        ("backdoor:corner=top left,fraction=0.1", {"use": "backdoor", "corner": "top left", "fraction": 0.1}),
        ("my.module:Attack", {"use": "my.module:Attack"}),
        ("my.module:Attack:fraction=0.1", {"use": "my.module:Attack", "fraction": 0.1}),
    ],
)
def test_an_attack_of_the_command_line_stands_for_a_table(text: str, table: dict[str, object]) -> None:
    assert config.parse_attack(text) == table


JOB = """
num_rounds = 2
clients_per_round = 6
seed = 7
model = "networks:Awkward"
data = "networks:federated"
[learner]
lr = 0.1
batch_size = 4
[simulation]
executor = "serial"
[tracking]
root = "{root}"
"""


def test_a_job_file_a_command_line_and_a_run_folder_name_the_same_attacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        (sha256,) = re.findall(r"sha256: ([0-9a-f]{64})", capsys.readouterr().out)
        return sha256

    plain, listed = tmp_path / "plain.toml", tmp_path / "listed.toml"
    plain.write_text(JOB.format(root=tmp_path))
    tables = '[[attacks]]\nuse = "alie"\nfraction = 0.3\n[[attacks]]\nuse = "drop"\np = 0.2\n'
    listed.write_text(JOB.format(root=tmp_path) + tables)
    expected = job(ALIE(fraction=0.3), Drop(p=0.2)).run().sha256
    on_the_line = ["--attack", "alie:fraction=0.3", "--attack", "drop:p=0.2"]
    assert run("run", str(plain), *on_the_line, "--set", "tracking.name=a") == expected
    assert run("run", str(listed), "--set", "tracking.name=b") == expected
    assert run("run", str(tmp_path / "a" / "job.toml"), "--set", "tracking.name=c") == expected
    assert run("resume", str(tmp_path / "a")) == expected
    assert run("run", str(plain), "--set", "tracking.name=d") != expected


def test_a_sweep_attacks_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.toml").write_text(JOB.format(root=tmp_path))
    settings = [
        "--seeds",
        "7,8",
        "--set",
        "learner.lr=0.1,0.2",
        "--metric",
        "loss",
        "--attack",
        "signflip:fraction=0.3",
    ]
    app(["sweep", str(tmp_path / "job.toml"), *settings], standalone_mode=False)
    came = re.findall(r"sha256: ([0-9a-f]{64})", capsys.readouterr().out)
    attacked, plain = (
        [
            job(*struck, seed=seed, learner=rd.LocalSGD(lr=lr, batch_size=4)).run().sha256
            for lr in (0.1, 0.2)
            for seed in (7, 8)
        ]
        for struck in ([SignFlip(fraction=0.3)], [])
    )
    assert came == attacked
    assert not set(came) & set(plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ale:fraction=0.2", "did you mean 'alie'"),
        ("alie:fracton=0.2", "did you mean 'fraction'"),
        ("alie:fraction=many", "must be float"),
        ("fraction=0.2", "cannot read the attack 'fraction=0.2'"),
    ],
)
def test_a_mistake_in_an_attack_is_explained(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB.format(root=tmp_path))
    with pytest.raises(rd.errors.ConfigError, match=message):
        config.load(tmp_path / "job.toml", attacked=[text])


# ---- what it is for -------------------------------------------------------------------------------------------------


def separable(num_examples: int, seed: int) -> TensorExamples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 7, generator=generator)
    return TensorExamples(inputs, inputs[:, :3].argmax(1))


def accuracy_under(attack: Sequence[Hostile], aggregator: rd.aggregators.Rule | None) -> float:
    parts = {f"c{i}": separable(40, seed=i) for i in range(10)}
    data = rd.FederatedData.from_datasets(parts, held_out=separable(300, seed=99))
    run = job(
        *attack, data=data, model=lambda: torch.nn.Linear(7, 3), aggregator=aggregator, num_rounds=15,
        clients_per_round=10, learner=rd.LocalSGD(lr=0.3, batch_size=10),
    ).run()  # fmt: skip
    return run.metrics["accuracy"]


def test_one_scaled_update_in_five_ruins_the_mean_and_not_the_robust_default() -> None:
    attack = [Scaling(fraction=0.2, factor=-100.0)]
    assert accuracy_under([], None) > 0.9
    assert accuracy_under(attack, None) < 0.5
    assert accuracy_under(attack, rd.Robust()) > 0.85
