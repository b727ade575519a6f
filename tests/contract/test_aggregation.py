"""Aggregation rules in jobs: the same bits in every executor, in any order and after a resume; what is refused, and
what happens in a round that ends too small.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import examples, small_job
from torch import Tensor

import roundelay as rd
from roundelay import config
from roundelay.aggregators import Rule, Updates
from roundelay.gather import Gathered
from roundelay.report.progress import final_table
from roundelay.tracking.checkpoint import Checkpoint, load_checkpoint

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
RULES = [
    rd.CoordinateMedian(f=1), rd.TrimmedMean(f=1), rd.Krum(f=1), rd.MultiKrum(f=1), rd.GeometricMedian(f=1),
    rd.CentredClipping(tau=0.5, iterations=2), rd.NormBounding(), rd.FLTrust(root="c5"),
    rd.NearestNeighbourMixing(f=1, then=rd.TrimmedMean(f=1)), rd.Bucketing(size=2, then=rd.CoordinateMedian()),
    rd.Robust(f=1),
]  # fmt: skip


def halfway(updates: Updates) -> Tensor:
    out = updates.previous
    for client in updates.points:
        out = (out + client) / 2
    return out


POOLED = [rd.CoordinateMedian(f=1), rd.Robust(f=1), halfway]


def job(rule: Rule | None, **changes: object) -> rd.Job:
    settings = {"clients_per_round": 5, "num_rounds": 2, "learner": rd.LocalSGD(lr=0.1, batch_size=4)}
    return small_job(aggregator=rule, **{**settings, **changes})


@pytest.fixture(scope="module")
def in_the_pool() -> dict[str, str]:
    """Hashes by rule; a pool takes a second to start, so the rules take turns in the same test process."""
    return {str(rule): job(rule, simulation=POOL).run().sha256 for rule in POOLED}


def named(rule: object) -> str:
    return getattr(rule, "__name__", str(rule))  # a function's text holds its address, which differs between processes


@pytest.mark.parametrize("rule", POOLED, ids=named)
def test_serial_and_pooled_runs_end_in_the_same_sha256(rule: Rule, in_the_pool: dict[str, str]) -> None:
    assert job(rule).run().sha256 == in_the_pool[str(rule)]


@pytest.mark.parametrize("rule", [*RULES, halfway], ids=named)
def test_the_order_of_arrival_changes_no_bit(rule: Rule) -> None:
    def backwards(client: str, task: rd.Task) -> float:
        return 10.0 - int(client[1:])

    plain = job(rule).run().sha256
    assert job(rule, simulation=replace(SERIAL, duration=backwards)).run().sha256 == plain


def test_a_test_of_order_catches_rows_in_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(client: str, task: rd.Task) -> float:
        return 10.0 - int(client[1:])

    whole = job(halfway).run().sha256
    applied = Gathered._apply
    monkeypatch.setattr(Gathered, "_apply", lambda self, points: applied(self, points.flip(0)))
    assert job(halfway, simulation=replace(SERIAL, duration=drawn)).run().sha256 != whole


def test_without_a_rule_nothing_is_gathered_and_with_one_the_run_says_how_much() -> None:
    assert "gathered_bytes" not in job(None).run().rows[0]
    history = job(rd.CoordinateMedian()).run()
    num_params = sum(p.numel() for p in history.model.parameters())
    assert {row["gathered_bytes"] for row in history.rows} == {5 * num_params * 4}
    (column,) = [final_table(history).columns[1]]
    assert any(f"{5 * num_params * 4:,} bytes" in str(cell) for cell in column.cells)


# ---- what a rule sees -----------------------------------------------------------------------------------------------


class Noted:
    """A rule that keeps what it was given, and answers with the mean."""

    def __init__(self) -> None:
        self.seen: list[Updates] = []

    def __call__(self, updates: Updates) -> Tensor:
        self.seen.append(replace(updates, points=updates.points.clone()))
        return updates.points.mean(0)


def test_a_rule_sees_the_clients_in_order_what_was_broadcast_and_the_last_step() -> None:
    rule = Noted()
    states = [finished.state_dict() for finished in job(rule, num_rounds=3).rounds()]
    first, second, third = rule.seen
    assert list(first.clients) == sorted(first.clients)
    assert [first.weights[first.clients.index(c)] for c in first.clients] == [
        10 + 2 * int(c[1:]) for c in first.clients
    ]
    assert not first.last.any()
    torch.testing.assert_close(second.last, second.previous - first.previous)
    torch.testing.assert_close(third.last, third.previous - second.previous)
    names = [name for name, _ in job(rule).model().named_parameters()]
    assert torch.equal(torch.cat([states[0][name].flatten() for name in names]), second.previous)
    assert [(u.round, u.seed) for u in rule.seen] == [(1, 7), (2, 7), (3, 7)]


class Two(rd.FedAvg):
    """An algorithm that sends a second vector: three times its step."""

    uplink = {"params": "examples", "control": "one"}  # noqa: RUF012

    def client(self, received: dict[str, Tensor], memory: object) -> object:
        end = yield rd.Fit(received["params"])
        params = end.params.clone()
        return rd.Reply({"params": params, "control": 3 * (params - received["params"])}, end.num_examples)

    def apply(self, state: dict[str, Tensor], totals: dict[int, rd.Total]) -> dict[str, Tensor]:
        total = totals[0]
        torch.testing.assert_close(total.mean("control"), 3 * (total.mean("params") - state["params"]))
        torch.testing.assert_close(total.sum("control"), total.mean("control") * total.count)
        return {"params": total.mean("params")}


def test_further_vectors_lie_beside_the_parameters_and_count_from_zero() -> None:
    rule = Noted()
    one, two = (job(r, num_rounds=1, algorithm=a).run().model for r, a in ((Noted(), rd.FedAvg()), (rule, Two())))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    (seen,) = rule.seen
    num_params = seen.points.shape[1] // 2
    assert not seen.previous[num_params:].any()
    torch.testing.assert_close(seen.points[:, num_params:], 3 * (seen.points - seen.previous)[:, :num_params])


def test_an_attack_acts_on_all_vectors_alike() -> None:
    rule = Noted()
    job(rule, num_rounds=1, algorithm=Two(), attacks=[rd.attacks.SignFlip(clients=["c1"])], clients_per_round=6).run()
    (seen,) = rule.seen
    num_params = seen.points.shape[1] // 2
    torch.testing.assert_close(seen.points[:, num_params:], 3 * (seen.points - seen.previous)[:, :num_params])


def test_the_mean_rule_equals_the_streaming_mean_for_clients_of_equal_size() -> None:
    equal = rd.FederatedData.from_datasets({f"c{i}": examples(12, seed=i) for i in range(5)})
    streamed, gathered = (job(rule, data=equal).run().model.state_dict() for rule in (None, rd.Mean()))
    for name, value in streamed.items():
        torch.testing.assert_close(gathered[name], value)


def test_buffers_take_the_median_under_a_robust_rule_and_the_mean_under_your_own() -> None:
    def client_buffers(rule: Rule) -> list[Tensor]:
        return [f.state_dict()["norm.running_mean"] for f in job(rule, num_rounds=1).rounds()]

    (plain,), (own,), (robust,) = (client_buffers(rule) for rule in (None, halfway, rd.CoordinateMedian()))
    assert torch.equal(plain, own)
    assert not torch.equal(plain, robust)


def test_the_server_step_of_the_algorithm_follows_the_rule() -> None:
    whole, half = (
        job(rd.CoordinateMedian(), num_rounds=1, algorithm=rd.FedAvg(server_lr=lr)).run().model for lr in (1.0, 0.5)
    )
    still = job(rd.CoordinateMedian(), num_rounds=1, algorithm=rd.FedAvg(server_lr=1e-30)).run().model
    for a, b, c in zip(whole.parameters(), half.parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(b, (a + c) / 2)


FITTING = [
    rd.FedAvgM(beta=0.5), rd.FedAdam(server_lr=0.1), rd.Scaffold(), rd.FedDyn(alpha=0.5), rd.Ditto(strength=0.1),
    rd.FedProx(mu=0.1),
]  # fmt: skip


@pytest.mark.parametrize("algorithm", FITTING, ids=lambda algorithm: type(algorithm).__name__)
def test_every_algorithm_that_sends_parameters_back_takes_a_rule_and_suffers_attacks(algorithm: rd.Algorithm) -> None:
    struck = [rd.attacks.ALIE(clients=["c1"]), rd.attacks.SignFlip(clients=["c2"])]
    mean, ruled, attacked = (
        job(rule, algorithm=algorithm, attacks=attacks).run().sha256
        for rule, attacks in ((None, ()), (rd.Robust(), ()), (rd.Robust(), struck))
    )
    assert len({mean, ruled, attacked}) == 3


@pytest.mark.parametrize(
    "algorithm",
    [rd.FedNova(), rd.QFedAvg(q=1.0, lipschitz=10.0), rd.IFCA(num_clusters=2)],
    ids=lambda algorithm: type(algorithm).__name__,
)
@pytest.mark.parametrize(
    "changes", [{"aggregator": rd.Robust()}, {"attacks": [rd.attacks.SignFlip(clients=["c1"])]}], ids=["rule", "attack"]
)
def test_an_algorithm_whose_vectors_are_no_points_is_refused(algorithm: rd.Algorithm, changes: dict) -> None:
    with pytest.raises(rd.errors.ConfigError, match=r"compares what clients send with what they received, as 'params'"):
        small_job(algorithm=algorithm, **changes).start()


def test_what_stays_on_the_clients_is_no_business_of_the_rule() -> None:
    (finished, *_) = job(rd.Robust(), keep_local=["second.*"]).rounds()
    assert finished.row["gathered_bytes"] == 5 * 4 * (172 - 13 * 3 - 3)


# ---- the trusted root -----------------------------------------------------------------------------------------------


def test_the_root_client_is_asked_in_every_round_beside_those_drawn() -> None:
    cohorts = [
        [r.client for r in f.clients] for f in job(rd.FLTrust(root="c2"), clients_per_round=2, num_rounds=8).rounds()
    ]
    assert all("c2" in cohort and len(cohort) == 3 for cohort in cohorts)
    assert {c for cohort in cohorts for c in cohort} == {f"c{i}" for i in range(6)}


def test_a_round_without_the_root_keeps_the_model() -> None:
    def rootless(client: str, task: rd.Task) -> float:
        return 9.0 if client == "c2" and task.round == 2 else 0.5

    rounds = list(
        job(rd.FLTrust(root="c2"), num_rounds=3, workflow=rd.Rounds(deadline_s=1.0),
            simulation=replace(SERIAL, duration=rootless)).rounds()
    )  # fmt: skip
    assert [f.row["kept_model"] for f in rounds] == [0, 1, 0]
    first, second, third = (f.state_dict()["first.weight"] for f in rounds)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


# ---- resume ---------------------------------------------------------------------------------------------------------


def check_resume(rule: Rule, root: Path) -> None:
    def kept(name: str) -> rd.Job:
        return job(rule, num_rounds=5, tracking=rd.Tracking(str(root), name, checkpoint_every_s=0))

    whole = kept("whole").run()
    for finished in kept("cut").rounds():
        if finished.number == 3:
            break
    assert kept("cut").run(resume=root / "cut").sha256 == whole.sha256


@pytest.mark.parametrize(
    "rule", [rd.CentredClipping(tau=0.1), rd.Robust(), rd.Bucketing(size=2, then=rd.Mean())], ids=str
)
def test_a_resumed_run_ends_in_the_same_bits(rule: Rule, tmp_path: Path) -> None:
    check_resume(rule, tmp_path)


def test_the_test_of_resume_catches_a_last_step_that_was_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*args: object) -> Checkpoint:
        kept = load_checkpoint(*args)
        return replace(kept, version=replace(kept.version, last=None))

    monkeypatch.setattr("roundelay.standing.load_checkpoint", forgetful)
    with pytest.raises(AssertionError):
        check_resume(rd.CentredClipping(tau=0.1), tmp_path)


# ---- job files ------------------------------------------------------------------------------------------------------

JOB = """
num_rounds = 2
clients_per_round = 5
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
name = "{name}"
"""


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ('use = "krum"\nf = 1', rd.Krum(f=1)),
        ('use = "robust"', rd.Robust()),
        ('use = "norm_bounding"\nthen = {use = "trimmed_mean", f = 1}', rd.NormBounding(then=rd.TrimmedMean(f=1))),
        ('use = "contract_rules_module:halfway"', halfway),
    ],
)
def test_a_job_file_names_the_rule_and_the_run_folder_keeps_it(
    table: str, rule: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "contract_rules_module.py").write_text(
        "def halfway(updates):\n    out = updates.previous\n    for client in updates.points:\n"
        "        out = (out + client) / 2\n    return out\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(root=tmp_path, name="a") + f"[aggregator]\n{table}\n")
    expected = job(rule).run().sha256
    assert config.load(path).run().sha256 == expected
    assert config.load(tmp_path / "a" / "job.toml", ["tracking.name=b"]).run().sha256 == expected


def test_another_rule_is_another_job(tmp_path: Path) -> None:
    def kept(rule: Rule) -> rd.Job:
        return job(rule, tracking=rd.Tracking(str(tmp_path), "a", checkpoint_every_s=0))

    next(kept(rd.Krum(f=1)).rounds())
    with pytest.raises(rd.errors.ConfigError, match="its aggregator is"):
        kept(rd.Robust()).run(resume=tmp_path / "a")


# ---- refusals -------------------------------------------------------------------------------------------------------


class Several(rd.FedAvg):
    """An algorithm of two models, of which a client picks one."""

    def broadcast(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"models": torch.stack([state["params"], state["params"]])}

    def client(self, received: dict[str, Tensor], memory: object) -> object:
        end = yield rd.Fit(received["models"][0])
        return rd.Reply({"params": end.params}, end.num_examples, group=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregator": rd.Krum(f=2)}, r"Krum\(f=2\) needs n >= 2f \+ 3, here at least 7 updates, and n = 5; raise"),
        ({"aggregator": rd.TrimmedMean(f=1), "workflow": rd.Rounds(goal=2)}, "n = 2"),
        ({"aggregator": rd.Krum(f=1), "clients_per_round": 4, "workflow": rd.Rounds(over_selection=0.5)}, "n = 4"),
        ({"aggregator": rd.FLTrust(root="zoe")}, "client 'zoe' is unknown"),
        ({"aggregator": rd.Krum(f=1), "algorithm": Several()}, "aggregator Krum.* Several sends .*leave it out"),
        (
            {"aggregator": rd.Robust(), "workflow": rd.Cyclic()},
            "only synchronous rounds have; Cyclic folds by the mean",
        ),
        ({"aggregator": rd.Robust}, "aggregator is the class Robust; give an instance"),
        ({"aggregator": "krum"}, "aggregator must be a rule"),
    ],
)
def test_what_a_rule_cannot_promise_is_refused_at_the_start(changes: dict[str, object], message: str) -> None:
    with pytest.raises(rd.errors.ConfigError, match=message):
        small_job(**{"clients_per_round": 5, **changes}).start()


def test_a_round_that_ends_too_small_keeps_the_model_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def late_in_the_second(client: str, task: rd.Task) -> float:
        return 9.0 if task.round == 2 and client in ("c0", "c1", "c2", "c3") else 0.5

    rounds = list(
        job(rd.TrimmedMean(f=1), clients_per_round=6, num_rounds=3, workflow=rd.Rounds(deadline_s=1.0),
            simulation=replace(SERIAL, duration=late_in_the_second)).rounds()
    )  # fmt: skip
    assert [f.row["kept_model"] for f in rounds] == [0, 1, 0]
    assert "needs n >= 2f + 1, here at least 3 updates, and n = 2" in caplog.text
    first, second, third = (f.state_dict()["first.weight"] for f in rounds)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_round_below_its_quorum_keeps_the_model_though_the_rule_would_have_had_enough() -> None:
    late = replace(SERIAL, duration=lambda client, task: 9.0 if client in ("c0", "c1", "c2") else 0.5)
    workflow = rd.Rounds(deadline_s=1.0, quorum=5)
    rows = job(rd.Robust(), clients_per_round=6, workflow=workflow, simulation=late).run().rows
    assert [(row["admitted"], row["kept_model"]) for row in rows] == [(3, 1), (3, 1)]


def test_a_round_that_ends_too_small_is_drawn_again_where_attempts_are_left() -> None:
    def late_at_first(client: str, task: rd.Task) -> float:
        return 9.0 if task.attempt == 0 and client != "c0" else 0.5

    workflow = rd.Rounds(deadline_s=1.0, attempts=2)
    rows = job(rd.TrimmedMean(f=1), workflow=workflow, simulation=replace(SERIAL, duration=late_at_first)).run().rows
    assert [(row["attempt"], row["kept_model"]) for row in rows] == [(1, 0), (1, 0)]


@pytest.mark.parametrize("returned", [torch.zeros(3), None, 1.0], ids=str)
def test_a_rule_of_your_own_that_returns_something_else_is_an_error_that_says_what_came(returned: object) -> None:
    with pytest.raises(rd.errors.ConfigError, match=r"returned .*, expected a tensor \(172,\)"):
        job(lambda updates: returned).run()


def test_a_rule_of_your_own_that_overflows_keeps_the_model() -> None:
    rows = job(lambda updates: updates.points.sum(0) * 1e38 * 1e38).run().rows
    assert [row["kept_model"] for row in rows] == [1, 1]


def test_a_rule_that_returns_a_row_does_not_keep_the_others_in_memory() -> None:
    (first,) = job(lambda updates: updates.points[0], num_rounds=1).rounds()
    params = first._version.state["params"]
    assert params.untyped_storage().nbytes() == params.nbytes
