"""A user's own workflow: written by hand, FedAvg ends in the bits, rows and tables of the built-in rounds."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from networks import Awkward, Plain, small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay import config, seeds
from roundelay.errors import ConfigError, EmptyRoundError, LayoutError, MetricError
from roundelay.intake import ClientReport, Outcome
from roundelay.messages import Payload
from roundelay.metrics import COLUMNS
from roundelay.simulation.federation import SimulatedFederation
from roundelay.workflows import server

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
executors = pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
GAPLESS = partial(nn.Linear, 7, 16)  # whose parameters a trainer sends as they lie in its module
OwnRun = Callable[[rd.Server], object]


async def fedavg(fed: rd.Server) -> None:
    model = fed.load_model()
    while fed.running:
        clients = fed.sample()
        results = await fed.train(model, clients)
        aggregate = fed.aggregate(results)
        model = fed.update(model, aggregate)
        await fed.evaluate(model)
        await fed.save(model)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The same as an object, with a setting."""

    count: int = 4

    async def run(self, fed: rd.Server) -> None:
        while fed.running:
            model = fed.load_model()
            await fed.save(fed.update(model, fed.aggregate(await fed.train(model, fed.sample(self.count)))))


async def with_setting(fed: rd.Server, count: int) -> None:
    await Sampled(count).run(fed)


def own(body: OwnRun, **changes: object) -> rd.History:
    return small_job(workflow=body, **{"num_rounds": 1, **changes}).run()


def timeless(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def came_to(**changes: object) -> tuple[str, list[dict[str, object]], list[list[ClientReport]]]:
    """Return a job's hash, its rows, and what became of each client in each round."""
    run = small_job(**changes).start()
    rounds = list(run)
    return run.history().sha256, timeless(run.history().rows), [list(finished.clients) for finished in rounds]


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
        return kept and replace(kept, state={**kept.state, "params": self._initial.state["params"]})

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


# ---- mistakes -------------------------------------------------------------------------------------------------------


def mistake(step: Callable[[rd.Server, rd.GlobalModel], object]) -> OwnRun:
    """A first round as it should be, then a mistake in the second."""

    async def mistaken(fed: rd.Server) -> None:
        results = await fed.train(fed.load_model(), fed.sample())
        model = fed.update(fed.load_model(), fed.aggregate(results))
        await fed.save(model)
        came = step(fed, model)
        if inspect.isawaitable(came):
            await came

    return mistaken


def without(state_dict: dict[str, Tensor], name: str, **others: Tensor) -> dict[str, Tensor]:
    return {key: value for key, value in {**state_dict, **others}.items() if key != name}


MISTAKES: dict[str, tuple[Callable[[rd.Server, rd.GlobalModel], object], type[Exception], str]] = {
    "saved twice": (lambda fed, model: fed.save(model), ConfigError, "model 1 is of a round that is saved"),
    "no model": (lambda fed, model: fed.train(model.params, ["c0"]), ConfigError, "expected a model of .*, got dict"),
    "unknown client": (lambda fed, model: fed.train(model, ["c0", "zoe"]), ConfigError, "client 'zoe' is unknown"),
    "client twice": (lambda fed, model: fed.train(model, ["c0", "c0"]), ConfigError, "client 'c0' is named twice"),
    "one string": (lambda fed, model: fed.train(model, "c0"), ConfigError, "a list of client ids, got the string 'c0'"),
    "goal": (lambda fed, model: fed.train(model, ["c0"], goal=0), ConfigError, "goal must be at least 1, got 0"),
    "deadline": (lambda fed, model: fed.train(model, ["c0"], deadline_s=0.0), ConfigError, "must be positive, got 0"),
    "sample": (lambda fed, model: fed.sample(7), ConfigError, r"fed\.sample\(7\): .*there are only 6 clients"),
    "among": (lambda fed, model: fed.sample(1, among=["zoe"]), ConfigError, r"fed\.sample: client 'zoe' is unknown"),
    "no results": (lambda fed, model: fed.aggregate([model]), ConfigError, "takes results of .*, got GlobalModel"),
    "mean of none": (lambda fed, model: fed.aggregate([]).params, EmptyRoundError, "nothing to average"),
    "missing": (lambda fed, model: fed.update(model, without(model.params, "norm.bias")), LayoutError,
                r"fed\.update: tensor 'norm.bias' of shape \(13,\) is missing"),
    "unknown": (lambda fed, model: fed.update(model, {**model.params, "extra": torch.ones(1)}), LayoutError,
                "tensor 'extra' is not part of this model"),
    "shape": (lambda fed, model: fed.update(model, {**model.params, "norm.bias": torch.ones(1)}), LayoutError,
              r"has shape \(1,\), the model has \(13,\)"),
    "nan": (lambda fed, model: fed.update(model, {**model.params, "norm.bias": torch.full((13,), torch.nan)}),
            ConfigError, "NaN or infinite"),
    "aggregate": (lambda fed, model: fed.update(model, [model]), ConfigError, "an aggregate or a state dict, got list"),
    "column": (lambda fed, model: fed.log(bytes_up=1), ConfigError, "'bytes_up' is a column that the framework writes"),
    "clients'": (lambda fed, model: fed.log(client_accuracy=1), ConfigError, "'client_accuracy' is a column"),
    "number": (lambda fed, model: fed.log(curve=[1, 2]), MetricError, "metric 'curve' is a list"),
}  # fmt: skip


@pytest.mark.parametrize(("step", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_the_run_and_is_named(
    step: Callable[[rd.Server, rd.GlobalModel], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        own(mistake(step), num_rounds=3, learner=lambda model, part, task: (1, {}))


def test_a_weight_of_nothing_a_step_of_more_than_parameters_and_one_round_too_many_are_named() -> None:
    async def weightless(fed: rd.Server) -> None:
        fed.aggregate([replace(r, num_examples=0.0) for r in await fed.train(fed.load_model(), ["c0"])])

    async def stepping(fed: rd.Server) -> None:
        fed.update(fed.load_model(), fed.load_model().params)

    async def showing(fed: rd.Server) -> None:
        _ = (await fed.train(fed.load_model(), ["c0"]))[0].params

    async def endless(fed: rd.Server) -> None:
        while True:
            await fed.save(fed.update(fed.load_model(), fed.aggregate([])))

    with pytest.raises(ConfigError, match=r"client 'c0' has num_examples = 0\.0; expected a number above 0"):
        own(weightless)
    with pytest.raises(ConfigError, match="Scaffold makes its step of control, params"):
        own(stepping, algorithm=rd.Scaffold())
    with pytest.raises(ConfigError, match="client 'c0' has no parameters to show"):
        own(showing, algorithm=rd.FedNova())
    with pytest.raises(ConfigError, match="all 1 rounds of the job are saved"):
        own(endless)


def test_what_cannot_be_a_workflow_is_refused_when_the_job_is_made() -> None:
    async def nothing() -> None: ...

    async def two(fed: rd.Server, algorithm: rd.Algorithm) -> None: ...

    def waits_for_nobody(fed: rd.Server) -> None: ...

    with pytest.raises(ConfigError, match=r"nothing\(\) -> None must take one argument, the server"):
        small_job(workflow=nothing)
    with pytest.raises(ConfigError, match=r"two.* must take one argument, the server"):
        small_job(workflow=two)
    with pytest.raises(ConfigError, match="waits_for_nobody is not async"):
        small_job(workflow=waits_for_nobody)
    with pytest.raises(ConfigError, match="workflow is a int; expected a workflow such as"):
        small_job(workflow=3)
    with pytest.raises(ConfigError, match=r"workflow is the class Sampled; give an instance: Sampled\(\.\.\.\)"):
        small_job(workflow=Sampled)


def test_rules_collusion_and_privacy_need_the_built_in_rounds() -> None:
    with pytest.raises(ConfigError, match="which only synchronous rounds have"):
        own(fedavg, aggregator=rd.CoordinateMedian())
    with pytest.raises(ConfigError, match="looks at the honest updates of a round"):
        own(fedavg, attacks=[rd.attacks.ALIE(fraction=0.2)])
    pytest.importorskip("dp_accounting", reason="the accountant comes with the extra 'privacy'")
    with pytest.raises(ConfigError, match="privacy is reckoned for synchronous rounds"):
        own(fedavg, model=Plain, privacy=rd.CentralDP(noise_multiplier=1.0, clip_norm=1.0, delta=1e-3))


# ---- in a job file, and inside another workflow ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('use = "test_own_workflows:fedavg"', fedavg),
        ('use = "test_own_workflows:Sampled"\ncount = 3', Sampled(3)),
        ('use = "test_own_workflows:with_setting"\ncount = 3', None),
    ],
)
def test_a_job_file_names_it_and_the_resolved_one_brings_it_back(table: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'model = "lenet"\ndata = "digits"\nnum_rounds = 1\nclients_per_round = 2\nlearner = {lr = 0.1}\n'
        f"[workflow]\n{table}\n"
    )
    job = config.load(tmp_path / "job.toml")
    (tmp_path / "again.toml").write_text(job.to_toml())
    again = config.load(tmp_path / "again.toml")
    assert again.to_toml() == job.to_toml()
    if expected is None:
        assert job.workflow.func is again.workflow.func is with_setting
        assert job.workflow.keywords == again.workflow.keywords == {"count": 3}
    else:
        assert job.workflow == again.workflow == expected


def test_a_job_file_that_names_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[workflow]\nuse = "test_own_workflows:SERIAL"\n')
    with pytest.raises(ConfigError, match="is a Simulation; expected a class or a function"):
        config.load(tmp_path / "job.toml")


def test_settings_given_in_a_job_file_reach_a_function() -> None:
    assert own(partial(with_setting, count=4), num_rounds=3).sha256 == small_job().run().sha256


def test_cross_site_evaluation_follows_a_workflow_of_ones_own() -> None:
    history = small_job(workflow=rd.CrossSite(then=fedavg)).run()
    assert history.records == small_job(workflow=rd.CrossSite()).run().records


def test_tensors_that_stay_with_clients_take_no_part() -> None:
    changes = {"keep_local": ["@batch_norm"]}
    assert came_to(workflow=fedavg, **changes) == came_to(**changes)
