"""A user's own workflow: written by hand, FedAvg ends in the bits, rows and tables of the built-in rounds."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from networks import Awkward, Plain, small_job
from own_workflows import Sampled, came_to, fedavg, own, timeless
from torch import Tensor, nn

import roundelay as rd
from roundelay import seeds
from roundelay.intake import Outcome
from roundelay.messages import Payload
from roundelay.metrics import COLUMNS
from roundelay.simulation.federation import SimulatedFederation
from roundelay.workflows import server

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
executors = pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
GAPLESS = partial(nn.Linear, 7, 16)  # whose parameters a trainer sends as they lie in its module

# ---- the same bits --------------------------------------------------------------------------------------------------

ALGORITHMS = {
    "fedavg": rd.FedAvg(),
    "scaffold": rd.Scaffold(),
    "fedadam": rd.FedAdam(server_lr=0.01),
    "fednova": rd.FedNova(),  # whose clients send no model
    "ifca": rd.IFCA(num_clusters=2),  # whose server keeps several
}


def check_same_bits(algorithm: rd.Algorithm, simulation: rd.Simulation = SERIAL, **changes: object) -> None:
    """The contract: the same hash, the same rows, the same table of clients as the built-in rounds."""
    changes = {"algorithm": algorithm, "simulation": simulation, **changes}
    assert came_to(**changes, workflow=fedavg) == came_to(**changes)


@executors
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_fedavg_written_by_hand_ends_in_the_bits_rows_and_tables_of_the_built_in_rounds(
    algorithm: rd.Algorithm, simulation: rd.Simulation
) -> None:
    check_same_bits(algorithm, simulation)


@executors
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_a_refused_client_is_in_the_table_with_its_reason_and_nothing_else_differs(
    name: str, simulation: rd.Simulation
) -> None:
    changes = {"attacks": [rd.attacks.NaN(clients=["c1"])], "clients_per_round": 6}
    check_same_bits(ALGORITHMS[name], simulation, **changes)
    _, rows, tables = came_to(workflow=fedavg, simulation=simulation, **changes)
    assert [(row["admitted"], row["refused"]) for row in rows] == [(5, 1)] * 3
    assert all("c1" in table[1].reason and "not finite" in table[1].reason for table in tables)


def test_clients_that_are_lost_or_answer_out_of_order_and_clients_that_evaluate_are_as_in_rounds() -> None:
    def uneven(client: str, task: rd.Task) -> float:
        return 0.5 + 3 * seeds.uniform(5, task.round, task.attempt, client, "pace")

    check_same_bits(
        rd.FedAvg(), replace(SERIAL, duration=uneven), attacks=[rd.attacks.Crash(clients=["c2"])],
        evaluation=rd.Evaluation(every=1, clients_every=2), clients_per_round=6,
    )  # fmt: skip


def test_results_are_the_workflows_own_where_trainers_send_what_they_train() -> None:
    check_same_bits(rd.FedAvg(), model=GAPLESS)


def test_a_round_without_an_admitted_update_keeps_the_model_as_rounds_do() -> None:
    check_same_bits(rd.FedAdam(server_lr=0.01), attacks=[rd.attacks.NaN()])


def test_what_is_not_evaluated_by_hand_is_evaluated_where_the_job_says_so() -> None:
    for every in (0, 1, 2):
        changes = {"evaluation": rd.Evaluation(every=every, clients_every=every)}
        assert came_to(workflow=Sampled(), **changes) == came_to(**changes)


Planting = Callable[[pytest.MonkeyPatch], None]


def fold_backwards(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(server, "_order", lambda result: [-ord(letter) for letter in result.client])


def forget_memories(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedFederation, "commit", lambda self, outcome: None)
    train = SimulatedFederation.train

    async def remembered(self: SimulatedFederation, *args: object, fold: object = None, **kwargs: object) -> Outcome:
        outcome = await train(self, *args, fold=fold, **kwargs)
        if fold is None:  # the built-in rounds
            self._memory.commit(outcome.memories)
        return outcome

    patch.setattr(SimulatedFederation, "train", remembered)


def count_attempts_from_one(patch: pytest.MonkeyPatch) -> None:
    begin = rd.Server._open_round

    def later(self: rd.Server) -> None:
        begin(self)
        self._num_trainings = 1

    patch.setattr(rd.Server, "_open_round", later)


def share_tensors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Payload, "copy", lambda self: self)


def weigh_alike(patch: pytest.MonkeyPatch) -> None:
    train = rd.Server.train

    async def alike(self: rd.Server, *args: object, **kwargs: object) -> list[rd.Result]:
        return [replace(result, num_examples=1.0) for result in await train(self, *args, **kwargs)]

    patch.setattr(rd.Server, "train", alike)


def lose_reports(patch: pytest.MonkeyPatch) -> None:
    train = rd.Server.train

    async def lost(self: rd.Server, *args: object, **kwargs: object) -> list[rd.Result]:
        results = await train(self, *args, **kwargs)
        self._reports = []
        return results

    patch.setattr(rd.Server, "train", lost)


BUGS: dict[str, Planting] = {
    "folding in another order": fold_backwards,
    "memories that are never committed": forget_memories,
    "attempts that count from one": count_attempts_from_one,
    "results that share memory": share_tensors,
    "weights that are left out": weigh_alike,
    "reports that are lost": lose_reports,
}


@pytest.mark.parametrize("plant", BUGS.values(), ids=BUGS)
def test_the_check_of_the_same_bits_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    algorithm = rd.Scaffold() if plant is forget_memories else rd.FedAvg()
    model = GAPLESS if plant is share_tensors else Awkward
    with pytest.raises(AssertionError):
        check_same_bits(algorithm, model=model)


# ---- resume, stopping, the end --------------------------------------------------------------------------------------


def check_resume(root: Path, algorithm: rd.Algorithm) -> None:
    numbers: list[int] = []

    async def noisy(fed: rd.Server) -> None:
        numbers.append(fed.load_model().number)
        while fed.running:
            model = fed.load_model()
            results = await fed.train(model, fed.sample())
            model = fed.update(model, fed.aggregate(results[1:]))
            fed.log(draw=torch.rand(1, generator=fed.generator("draw")))
            await fed.save(model)

    def job(name: str) -> rd.Job:
        tracking = rd.Tracking(str(root), name, checkpoint_every_s=0)
        return small_job(workflow=noisy, algorithm=algorithm, tracking=tracking)

    whole = job("whole").run()
    for finished in job("cut").rounds():
        assert finished.number == 1
        break
    resumed = job("cut").run(resume=root / "cut")
    assert numbers == [0, 0, 1]
    assert resumed.sha256 == whole.sha256
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert resumed.clients() == whole.clients()


@pytest.mark.parametrize("name", ["scaffold", "fedadam"])
def test_a_run_that_was_interrupted_goes_on_from_the_model_saved_last(name: str, tmp_path: Path) -> None:
    check_resume(tmp_path, ALGORITHMS[name])


def test_the_resume_test_would_see_a_model_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = SimulatedFederation.restore

    def fresh(self: SimulatedFederation) -> object:
        kept = restore(self)
        return kept and replace(kept, state={**kept.state, "params": self._initial().state["params"]})

    monkeypatch.setattr(SimulatedFederation, "restore", fresh)
    with pytest.raises(AssertionError):
        check_resume(tmp_path, rd.FedAvg())


def test_a_stopping_rule_ends_the_loop_as_it_ends_rounds() -> None:
    stopping = rd.Stopping(metric="loss", target=100.0)
    history = small_job(workflow=fedavg, stopping=stopping).run()
    assert len(history.rows) == 1
    assert history.stopped == small_job(stopping=stopping).run().stopped
    assert "loss reached" in history.stopped


def test_a_function_that_ends_early_ends_the_job_with_what_it_saved(caplog: pytest.LogCaptureFixture) -> None:
    async def once(fed: rd.Server) -> None:
        await fed.save(fed.update(fed.load_model(), fed.aggregate(await fed.train(fed.load_model(), fed.sample()))))
        await fed.train(fed.load_model(), fed.sample())

    history = own(once, num_rounds=3)
    assert history.sha256 == small_job(num_rounds=1).run().sha256
    assert history.stopped == "the workflow ended after 1 rounds"
    assert "ended with round 2 trained and not saved" in caplog.text


def test_a_loop_that_never_saves_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Enough(Exception):
        pass

    async def forgetful(fed: rd.Server) -> None:
        model = fed.load_model()
        for _ in range(len(fed.clients)):
            model = fed.update(model, fed.aggregate(await fed.train(model, fed.sample(1))))
        assert "forgotten" not in caplog.text
        await fed.train(model, fed.sample(1))
        raise Enough

    with caplog.at_level(logging.WARNING), pytest.raises(Enough):
        own(forgetful)
    assert "was await fed.save(model) forgotten?" in caplog.text


# ---- what else a round may be ---------------------------------------------------------------------------------------


def test_two_trainings_in_a_round_are_two_attempts_with_draws_of_their_own() -> None:
    seen: dict[str, object] = {}

    async def twice(fed: rd.Server) -> None:
        model = fed.load_model()
        seen["cohorts"] = [fed.sample(3), fed.sample(3)]
        first, second = await fed.train(model, ["c0", "c1"]), await fed.train(model, ["c1", "c0"])
        assert [result.client for result in second] == ["c0", "c1"]
        seen["differ"] = [not torch.equal(a.params["first.weight"], b.params["first.weight"])
                          for a, b in zip(first, second, strict=True)]  # fmt: skip
        await fed.save(fed.update(model, fed.aggregate([*second, *first])))

    run = small_job(workflow=twice, num_rounds=1).start()
    (finished,) = run
    assert seen["cohorts"][0] != seen["cohorts"][1]
    assert seen["differ"] == [True, True]
    assert [(report.client, report.attempt) for report in finished.clients] == [
        ("c0", 0), ("c1", 0), ("c0", 1), ("c1", 1),
    ]  # fmt: skip
    (one,) = small_job(clients_per_round=2, num_rounds=1).run().rows
    row = finished.row
    assert (row["admitted"], row["attempt"], row["bytes_up"]) == (4, 1, 2 * one["bytes_up"])


def test_only_clients_whose_results_count_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[set[str]] = []
    monkeypatch.setattr(SimulatedFederation, "commit", lambda self, outcome: committed.append(set(outcome.memories)))

    async def drawn_again(fed: rd.Server) -> None:
        model = fed.load_model()
        await fed.train(model, ["c0", "c1"])
        third, fourth = await fed.train(model, ["c2"]), await fed.train(model, ["c3"])
        model = fed.update(model, fed.aggregate(third))
        await fed.save(fed.update(model, fed.aggregate(fourth)))  # a second step of the same round
        await fed.save(fed.update(fed.load_model(), fed.aggregate(await fed.train(fed.load_model(), ["c5"]))))

    own(drawn_again, algorithm=rd.Scaffold(), num_rounds=2)
    assert committed == [{"c2", "c3"}, {"c5"}]


def test_a_round_may_pass_the_model_from_client_to_client() -> None:
    seen: list[float] = []

    def add_one(model: nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        bias = dict(model.named_parameters())["second.bias"]
        seen.append(float(bias.detach()[0]))
        with torch.no_grad():
            bias += 1
        return len(part), {}

    async def cyclic(fed: rd.Server) -> None:
        model = fed.load_model()
        while fed.running:
            for client in fed.clients:
                model = fed.update(model, fed.aggregate(await fed.train(model, [client])))
                assert model.number == fed.round
            await fed.save(model)

    own(cyclic, learner=add_one, num_rounds=2)
    assert [value - seen[0] for value in seen] == pytest.approx(range(12), abs=1e-5)


def test_a_goal_and_a_deadline_leave_the_slow_clients_out() -> None:
    async def hurried(fed: rd.Server) -> None:
        model = fed.load_model()
        fast = await fed.train(model, fed.clients, goal=2)
        in_time = await fed.train(model, fed.clients, deadline_s=3.0)
        assert ["".join(result.client[1] for result in results) for results in (fast, in_time)] == ["01", "012"]
        await fed.save(fed.update(model, fed.aggregate(fast)))

    paced = replace(SERIAL, duration=lambda client, task: 1.0 + int(client[1]))
    (row,) = own(hurried, simulation=paced).rows
    assert (row["admitted"], row["late"], row["virtual_s"]) == (5, 7, 5.0)


def test_groups_may_train_side_by_side_in_virtual_time() -> None:
    async def side_by_side(fed: rd.Server) -> None:
        model = fed.load_model()
        left, right = await asyncio.gather(*(fed.train(model, group) for group in (["c0", "c2"], ["c1", "c5"])))
        assert [result.client for result in [*left, *right]] == ["c0", "c2", "c1", "c5"]
        await fed.save(fed.update(model, fed.aggregate([*right, *left])))

    paced = replace(SERIAL, duration=lambda client, task: 1.0 + int(client[1]))
    (row,) = own(side_by_side, simulation=paced).rows
    assert (row["admitted"], row["virtual_s"]) == (4, 6.0)


def test_a_round_drawn_again_by_hand_is_that_of_rounds_with_attempts() -> None:
    """c0 and c1 never answer: a cohort with both is drawn again, keyed by the attempt."""

    async def again(fed: rd.Server) -> None:
        model = fed.load_model()
        while fed.running:
            results = await fed.train(model, fed.sample())
            if len(results) < 3:
                continue
            model = fed.update(model, fed.aggregate(results))
            await fed.save(model)

    changes = {"attacks": [rd.attacks.NaN(clients=["c0", "c1"])], "algorithm": rd.Scaffold(), "num_rounds": 4}
    mine, rows, tables = came_to(workflow=again, **changes)
    theirs, built_in, their_tables = came_to(workflow=rd.Rounds(quorum=3, attempts=50), **changes)
    assert mine == theirs
    assert [row["attempt"] for row in rows] == [row["attempt"] for row in built_in]
    assert max(row["attempt"] for row in rows) > 0
    assert [row["bytes_up"] for row in rows] == [row["bytes_up"] for row in built_in]
    assert tables == their_tables


# ---- an aggregation of one's own ------------------------------------------------------------------------------------


def test_a_state_dict_takes_the_place_of_the_mean_and_the_algorithm_makes_its_step_of_it() -> None:
    async def by_name(fed: rd.Server) -> None:
        while fed.running:
            model = fed.load_model()
            results = await fed.train(model, fed.sample())
            state_dict = fed.aggregate(results).params
            model = fed.update(model, state_dict)
            assert model.params.keys() == state_dict.keys()
            await fed.save(model)

    for algorithm in (rd.FedAvg(), rd.FedAdam(server_lr=0.01), rd.FedDyn(alpha=0.1)):
        changes = {"algorithm": algorithm}
        assert came_to(workflow=by_name, **changes)[:2] == came_to(**changes)[:2]


def test_results_show_what_each_client_trained_and_a_median_of_ones_own_is_what_comes_out() -> None:
    def add_number(model: nn.Module, part: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        with torch.no_grad():
            for p in model.parameters():
                p += int(task.client[1]) ** 2
        return len(part), {"mine": int(task.client[1])}

    states: list[dict[str, Tensor]] = []

    async def median(fed: rd.Server) -> None:
        model = fed.load_model()
        results = await fed.train(model, ["c0", "c1", "c5"])
        assert [(result.client, result.num_examples, result.metrics) for result in results] == [
            ("c0", 10, {"train_mine": 0}), ("c1", 12, {"train_mine": 1}), ("c5", 20, {"train_mine": 5}),
        ]  # fmt: skip
        came = [result.params for result in results]
        middle = {name: torch.stack([state[name] for state in came]).median(0).values for name in came[0]}
        states.extend([model.params, middle])
        await fed.save(fed.update(model, middle))

    history = own(median, model=Plain, learner=add_number)
    for name, value in history.model.state_dict().items():
        assert torch.equal(value, states[1][name])
        torch.testing.assert_close(value, states[0][name] + 1)


def test_weights_of_ones_own_are_those_of_the_mean() -> None:
    async def alike(fed: rd.Server) -> None:
        model = fed.load_model()
        results = [replace(result, num_examples=1.0) for result in await fed.train(model, fed.clients)]
        aggregate = fed.aggregate(results).params
        for name in ("first.weight", "norm.running_var"):
            torch.testing.assert_close(aggregate[name], torch.stack([r.params[name] for r in results]).mean(0))
        await fed.save(fed.update(model, fed.aggregate(results)))

    assert own(alike).rows[0]["admitted"] == 6


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_noted_numbers_join_the_row_of_their_round_and_evaluation_that_of_the_saved_model_only() -> None:
    returned: list[dict[str, float]] = []

    async def noting(fed: rd.Server) -> None:
        model = fed.load_model()
        while fed.running:
            await fed.evaluate(model)
            results = await fed.train(model, fed.sample())
            model = fed.update(model, fed.aggregate(results))
            returned.append(await fed.evaluate(model))
            fed.log(spread=torch.tensor(3.0), turn=fed.round)
            if fed.round == 2:
                fed.log(only_here=1)
            await fed.save(model)

    rows = own(noting, num_rounds=2, evaluation=rd.Evaluation(every=0)).rows
    assert [(row["spread"], row["turn"], "only_here" in row) for row in rows] == [(3.0, 1, False), (3.0, 2, True)]
    assert [{name: row[name] for name in ("accuracy", "loss")} for row in rows] == returned


def test_every_column_that_the_framework_writes_is_refused_as_a_note() -> None:
    plain = small_job(num_rounds=1, aggregator=rd.CoordinateMedian()).run().rows[0]
    assert plain.keys() - set(COLUMNS) == {"accuracy", "loss", "train_loss"}
    pytest.importorskip("dp_accounting", reason="the accountant comes with the extra 'privacy'")
    private = small_job(
        num_rounds=1,
        model=Plain,
        privacy=rd.CentralDP(noise_multiplier=1.0, clip_norm=1.0, delta=1e-3),
        clients_per_round=0.5,
    )
    assert private.run().rows[0].keys() - set(COLUMNS) <= {"accuracy", "loss"}


def test_cross_site_evaluation_follows_a_workflow_of_ones_own() -> None:
    history = small_job(workflow=rd.CrossSite(then=fedavg)).run()
    assert history.records == small_job(workflow=rd.CrossSite()).run().records


def test_tensors_that_stay_with_clients_take_no_part() -> None:
    changes = {"keep_local": ["@batch_norm"]}
    assert came_to(workflow=fedavg, **changes) == came_to(**changes)
