"""Averaging after every few batches: who trains on what, and that nothing but a counted update moves a client on."""

import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from networks import Plain, examples, small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay import seeds
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.attacks import Crash
from roundelay.components import build, describe, namespace
from roundelay.data import TensorExamples
from roundelay.data.examples import Examples
from roundelay.epochs import Epoch
from roundelay.errors import ConfigError
from roundelay.layout import Bound
from roundelay.learner import Context, cursor
from roundelay.learner.cursor import Cursor
from roundelay.simulation.federation import SimulatedFederation
from roundelay.tracking.checkpoint import Checkpoint, load_checkpoint

SEED, SIZE = 7, 4  # the seed of small_job
SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
SHARDS = {"a": 3 * SIZE, "b": 5 * SIZE - 1, "c": 8 * SIZE - 3}  # three, five and eight batches

trained_on: list[tuple[str, tuple[int, ...]]] = []


def noted(outputs: Tensor, targets: Tensor) -> Tensor:
    """Note whose examples a batch holds, and which: targets are 100, 101, ... of a, 200, 201, ... of b, and so on."""
    numbers = targets.tolist()
    trained_on.append(("abc"[numbers[0] // 100 - 1], tuple(number % 100 for number in numbers)))
    return (outputs - (targets % 3)[:, None]).square().mean()


def shards() -> rd.FederatedData:
    numbered = {
        client: TensorExamples(examples(size, seed=size).inputs, torch.arange(size) + 100 * (1 + "abc".index(client)))
        for client, size in SHARDS.items()
    }
    return rd.FederatedData.from_datasets(numbered)


def job(when_exhausted: str, **changes: object) -> rd.Job:
    learner = rd.LocalSGD(lr=0.05, batch_size=SIZE, local_batches=2, when_exhausted=when_exhausted, loss=noted)
    settings: dict[str, object] = {
        "model": Plain, "data": shards, "learner": learner, "clients_per_round": 1.0, "num_rounds": 6,
        "evaluation": rd.Evaluation(every=0, measures=()),
    }  # fmt: skip
    return small_job(**{**settings, **changes})


def batches(client: str, epoch: int, purpose: str = "shuffle", size: int = SIZE) -> list[tuple[int, ...]]:
    shuffle = seeds.generator(SEED, epoch, 0, client, purpose)
    return [tuple(part.tolist()) for part in torch.randperm(SHARDS[client], generator=shuffle).split(size)]


def endless(client: str) -> Iterator[tuple[int, ...]]:
    for epoch in count(1):
        yield from batches(client, epoch)


def by_round(job: rd.Job) -> list[dict[str, list[tuple[int, ...]]]]:
    """Return, per round, each asked client's batches in their order."""
    rounds = []
    trained_on.clear()
    for finished in job.rounds():
        rounds.append({report.client: [] for report in finished.clients})
        for client, batch in trained_on:
            rounds[-1][client].append(batch)
        trained_on.clear()
    return rounds


def picked(*rounds: dict[str, tuple[int, slice]]) -> list[dict[str, list[tuple[int, ...]]]]:
    """Write rounds down: of each asked client, the epoch and which of its batches."""
    return [{client: batches(client, epoch)[part] for client, (epoch, part) in one.items()} for one in rounds]


FIRST, SECOND, THIRD, FOURTH = slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)

# ---- an epoch goes on where it stopped ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_batches", [1, 3, 8, 20])
@pytest.mark.usefixtures("one_thread")
def test_one_client_is_one_long_training_over_epochs_to_the_bit(num_batches: int) -> None:
    data = examples(26)
    learner = rd.LocalSGD(lr=0.1, batch_size=SIZE, local_batches=num_batches)
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(SEED, 0, 0, "", "model"))
        model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def centralised() -> Iterator[None]:
        for epoch in count(1):
            for part in torch.randperm(26, generator=seeds.generator(SEED, epoch, 0, "a", "shuffle")).split(SIZE):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(data.inputs[part]), data.targets[part]).backward()
                optimizer.step()
                yield

    steps = centralised()
    one = small_job(model=Plain, data=rd.FederatedData.from_datasets({"a": data}), learner=learner,
                    clients_per_round=1, num_rounds=9, evaluation=rd.Evaluation(every=0, measures=()))  # fmt: skip
    for finished in one.rounds():
        for _ in range(num_batches):
            next(steps)
        for name, value in finished.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (finished.number, name)


def test_every_client_goes_through_epochs_of_its_own() -> None:
    streams = {client: endless(client) for client in SHARDS}
    for asked in by_round(job("continue", clients_per_round=2, num_rounds=12)):
        assert len(asked) == 2
        for client, came in asked.items():
            assert came == [next(streams[client]), next(streams[client])]


def test_as_many_batches_as_an_epoch_has_are_an_epoch_to_the_bit() -> None:
    whole, one = (
        small_job(clients_per_round=6, learner=rd.LocalSGD(lr=0.1, batch_size=0, **length)).run().sha256
        for length in ({"local_epochs": 1}, {"local_batches": 1})
    )
    assert whole == one


def test_a_cursor_counts_examples_so_that_a_batch_size_of_ones_own_leaves_nothing_out() -> None:
    def sizes(round: int, client: str) -> dict[str, int]:
        return {"batch_size": SIZE if round == 1 else 3}

    rounds = by_round(job("skip", client_config=sizes, num_rounds=3))
    order = [number for batch in batches("b", 1) for number in batch]
    assert [number for one in rounds for batch in one["b"] for number in batch] == order[:20]
    assert [[len(batch) for batch in one["b"]] for one in rounds] == [[4, 4], [3, 3], [3, 2]]


def test_both_fits_of_a_task_go_on_from_the_same_place() -> None:
    rounds = by_round(job("continue", algorithm=rd.Ditto(strength=0.1), num_rounds=2))
    for one, part in zip(rounds, (FIRST, SECOND), strict=True):
        assert one["c"] == batches("c", 1)[part] + batches("c", 1, "shuffle-1")[part]


def test_a_task_of_whole_epochs_leaves_the_place_in_the_epoch_as_it_was() -> None:
    def whole(round: int, client: str) -> dict[str, int]:
        return {"local_epochs": 1} if round == 2 else {}

    rounds = by_round(job("continue", client_config=whole, num_rounds=3))
    assert [one["c"] for one in rounds] == [batches("c", 1)[FIRST], batches("c", 2), batches("c", 1)[SECOND]]


def test_a_learner_of_ones_own_may_remember_something_of_each_client(tmp_path: Path) -> None:
    class Counting:
        corrects, reports = False, frozenset[str]()

        def fit(self, bound: Bound, own: Examples, ask: Fit, context: Context) -> Fitted:
            turns = context.memory.get("turns", torch.zeros(1))
            return Fitted(bound.params(), len(own), metrics={"turns": turns.item()}, memory={"turns": turns + 1})

    history = job("continue", learner=Counting(), num_rounds=3, tracking=rd.Tracking(str(tmp_path))).run()
    assert [row["train_turns"] for row in history.rows] == [0, 1, 2]


def diverges_in_the_second_round(round: int, client: str) -> dict[str, float]:
    return {"lr": 1e38} if (round, client) == (2, "b") else {}


def check_that_a_refused_update_moves_nobody_on() -> None:
    rounds = by_round(job("continue", client_config=diverges_in_the_second_round, num_rounds=3))
    assert [one["b"] for one in rounds] == [batches("b", 1)[FIRST], batches("b", 1)[SECOND], batches("b", 1)[SECOND]]
    assert [one["a"] for one in rounds] == [
        batches("a", 1)[FIRST], [batches("a", 1)[2], batches("a", 2)[0]], batches("a", 2)[1:3],
    ]  # fmt: skip


def test_a_refused_update_moves_nobody_on() -> None:
    check_that_a_refused_update_moves_nobody_on()


def test_the_check_catches_a_cursor_that_moves_with_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, moved = rd.LocalSGD.fit, {}

    def hasty(self: rd.LocalSGD, bound: Bound, own: Examples, ask: Fit, context: Context) -> Fitted:
        told = fit(self, bound, own, ask, replace(context, memory=moved.get(context.task.client, {})))
        moved[context.task.client] = told.memory
        return told

    monkeypatch.setattr(rd.LocalSGD, "fit", hasty)
    with pytest.raises(AssertionError):
        check_that_a_refused_update_moves_nobody_on()


@pytest.mark.parametrize("closing", [{"quorum": 3}, {"quorum": 3, "attempts": 2}], ids=str)
def test_a_round_that_does_not_count_moves_nobody_on(closing: dict[str, int]) -> None:
    config = diverges_in_the_second_round
    rounds = by_round(job("continue", client_config=config, num_rounds=3, workflow=rd.Rounds(**closing)))
    assert rounds[2] == picked({"a": (1, SECOND), "b": (1, SECOND), "c": (1, SECOND)})[0] | {
        "a": [batches("a", 1)[2], batches("a", 2)[0]]
    }


def test_a_resumed_run_with_memory_on_disk_goes_on_in_its_epochs(tmp_path: Path) -> None:
    settings = {"clients_per_round": 2, "simulation": replace(SERIAL, memory="disk")}
    whole = job("continue", clients_per_round=2).run().sha256
    tracked = job("continue", **settings, tracking=rd.Tracking(str(tmp_path), "run"))
    for finished in tracked.rounds():
        if finished.number == 3:
            break
    assert tracked.run(resume=tmp_path / "run").sha256 == whole


# ---- an epoch that all end together ---------------------------------------------------------------------------------


def check_skip(**changes: object) -> None:
    assert by_round(job("skip", **changes)) == picked(
        {"a": (1, FIRST), "b": (1, FIRST), "c": (1, FIRST)},
        {"a": (1, SECOND), "b": (1, SECOND), "c": (1, SECOND)},  # a has one batch left
        {"b": (1, THIRD), "c": (1, THIRD)},  # b has one
        {"c": (1, FOURTH)},
        {"a": (2, FIRST), "b": (2, FIRST), "c": (2, FIRST)},
        {"a": (2, SECOND), "b": (2, SECOND), "c": (2, SECOND)},
    )


def check_stop(**changes: object) -> None:
    assert by_round(job("stop", **changes)) == picked(
        {"a": (1, FIRST), "b": (1, FIRST), "c": (1, FIRST)},
        {"a": (1, SECOND), "b": (1, SECOND), "c": (1, SECOND)},
        {"a": (2, FIRST), "b": (2, FIRST), "c": (2, FIRST)},
        {"a": (2, SECOND), "b": (2, SECOND), "c": (2, SECOND)},
        {"a": (3, FIRST), "b": (3, FIRST), "c": (3, FIRST)},
        {"a": (3, SECOND), "b": (3, SECOND), "c": (3, SECOND)},
    )


CHECKS = {"skip": check_skip, "stop": check_stop}


def test_skip_waits_until_nobody_has_a_batch_left() -> None:
    check_skip()


def test_stop_ends_the_epoch_when_one_has_no_batch_left() -> None:
    check_stop()


def nobody_waits(patch: pytest.MonkeyPatch) -> None:
    """The planted bug: who has no batch left is asked all the same."""
    patch.setattr(Epoch, "left", lambda self, clients: None)


def clients_hear_of_no_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("roundelay.learner.local_sgd.EPOCH", "era")
    patch.setattr("roundelay.bookkeeping.EPOCH", "era")
    patch.setattr(Cursor, "ahead", wrapping(Cursor.ahead))


def wrapping(ahead: Callable[..., Sequence[cursor.Stretch]]) -> Callable[..., Sequence[cursor.Stretch]]:
    return lambda self, *args, wraps: ahead(self, *args, wraps=True)


def tasks_wrap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cursor, "ahead", wrapping(Cursor.ahead))


def shuffles_by_round(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Context, "shuffle", lambda self, epoch: self.generator("shuffle"))


def epochs_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Epoch, "after", lambda self, counted, clients: self)


PLANTINGS = [nobody_waits, clients_hear_of_no_epoch, tasks_wrap, shuffles_by_round, epochs_never_end]


@pytest.mark.parametrize("when_exhausted", CHECKS)
@pytest.mark.parametrize("plant", PLANTINGS, ids=lambda plant: plant.__name__)
def test_the_checks_of_skip_and_stop_catch(
    plant: Callable[[pytest.MonkeyPatch], None], when_exhausted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plant is nobody_waits and when_exhausted == "stop":
        return  # under "stop" nobody does
    plant(monkeypatch)
    with pytest.raises((AssertionError, rd.errors.RoundelayError)):
        CHECKS[when_exhausted]()


def test_who_was_not_drawn_begins_the_next_epoch_with_the_others() -> None:
    positions = dict.fromkeys(SHARDS, 0)
    epoch = 1
    for asked in by_round(job("stop", clients_per_round=2, num_rounds=12)):
        for client, came in asked.items():
            at = positions[client]
            assert came == batches(client, epoch)[at : at + 2]
            positions[client] += 2
        if any(positions[client] >= len(batches(client, 1)) for client in SHARDS):
            epoch, positions = epoch + 1, dict.fromkeys(SHARDS, 0)
    assert epoch > 2


def test_skip_draws_among_those_who_have_batches_left() -> None:
    rounds = by_round(job("skip", clients_per_round=2, num_rounds=9))
    came = {client: [batch for one in rounds for batch in one.get(client, ())] for client in SHARDS}
    first = {client: came[client][: len(batches(client, 1))] for client in SHARDS}
    assert first == {client: batches(client, 1) for client in SHARDS}
    assert all(1 <= len(one) <= 2 for one in rounds)


def check_bits(simulation: rd.Simulation, when_exhausted: str, root: Path) -> None:
    """The contract: the same bits and tables in every executor, and after a resume amid an epoch."""
    tracked = replace(job(when_exhausted), tracking=rd.Tracking(str(root), "whole"))
    whole = tracked.run()
    cut = replace(tracked, simulation=simulation, tracking=rd.Tracking(str(root), "cut"))
    for finished in cut.rounds():
        if finished.number == 3:
            break
    resumed = cut.run(resume=root / "cut")
    assert resumed.sha256 == whole.sha256
    assert resumed.clients() == whole.clients()
    assert {row["status"] for row in whole.clients()} == {"admitted"}


@pytest.mark.parametrize("when_exhausted", ["continue", "stop", "skip"])
@pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
def test_executors_and_a_resume_amid_an_epoch_give_the_same_bits(
    simulation: rd.Simulation, when_exhausted: str, tmp_path: Path
) -> None:
    check_bits(simulation, when_exhausted, tmp_path)


@pytest.mark.parametrize("when_exhausted", ["stop", "skip"])
def test_the_check_catches_an_epoch_that_the_checkpoint_forgets(
    when_exhausted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*args: object) -> Checkpoint:
        kept = load_checkpoint(*args)
        return replace(kept, version=replace(kept.version, epoch=Epoch(when_exhausted)))

    monkeypatch.setattr("roundelay.standing.load_checkpoint", forgetful)
    with pytest.raises((AssertionError, rd.errors.RoundelayError)):
        check_bits(SERIAL, when_exhausted, tmp_path)


# ---- who keeps the others waiting -----------------------------------------------------------------------------------


def test_a_client_that_never_gets_through_does_not_keep_the_others_waiting_for_ever() -> None:
    rounds = by_round(job("skip", client_config=lambda round, client: {"lr": 1e38} if client == "b" else {}))
    assert rounds == picked(
        {"a": (1, FIRST), "b": (1, FIRST), "c": (1, FIRST)},
        {"a": (1, SECOND), "b": (1, FIRST), "c": (1, SECOND)},
        {"b": (1, FIRST), "c": (1, THIRD)},
        {"b": (1, FIRST), "c": (1, FOURTH)},
        {"b": (1, FIRST)},  # nobody counts, and two wait: the epoch ends
        {"a": (2, FIRST), "b": (2, FIRST), "c": (2, FIRST)},
    )


def test_a_round_below_its_quorum_ends_an_epoch_in_which_somebody_waits() -> None:
    rounds = by_round(job("skip", workflow=rd.Rounds(quorum=3), num_rounds=4))
    assert rounds[2:] == picked({"b": (1, THIRD), "c": (1, THIRD)}, {"a": (2, FIRST), "b": (2, FIRST), "c": (2, FIRST)})


def test_a_federation_that_would_pause_ends_the_epoch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real devices wait for those who are away; nobody is away who has no batch left."""
    paused = []

    async def stalled(self: SimulatedFederation, number: int, why: str, quorum: int) -> bool:
        paused.append(number)
        assert len(paused) < 3, "the run pauses for ever"
        return True

    monkeypatch.setattr(SimulatedFederation, "stalled", stalled)
    test_a_round_below_its_quorum_ends_an_epoch_in_which_somebody_waits()
    assert not paused


def test_a_round_that_fails_while_nobody_waits_is_of_the_same_epoch() -> None:
    config = {1: {"lr": 1e38}}
    rounds = by_round(job("skip", client_config=lambda round, client: config.get(round, {}), num_rounds=2))
    everybody = {"a": (1, FIRST), "b": (1, FIRST), "c": (1, FIRST)}
    assert rounds == picked(everybody, everybody)


def test_what_a_client_trained_on_before_it_crashed_comes_again() -> None:
    streams, lost = {client: endless(client) for client in SHARDS}, 0
    trained_on.clear()
    for finished in job("continue", attacks=[Crash(fraction=0.4, p=0.5)], num_rounds=8).rounds():
        status = {report.client: report.status for report in finished.clients}
        for client, batch in trained_on:
            if status[client] == "admitted":
                assert batch == next(streams[client])
        lost += finished.row["lost"]
        trained_on.clear()
    assert lost > 1


def test_models_are_submitted_by_those_who_have_no_batch_left_too() -> None:
    history = job("skip", workflow=rd.CrossSite(), num_rounds=3, evaluation=rd.Evaluation(every=0)).run()
    assert history.records["cross_site"]["models"] == ["global model", "a", "b", "c"]


# ---- what cannot mean what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"when_exhausted": "skip"}, 'when_exhausted = "skip" says what happens .* give local_batches'),
        ({"when_exhausted": "stop", "local_epochs": 2}, "give local_batches"),
        ({"when_exhausted": "skips"}, "when_exhausted 'skips' is unknown; did you mean 'skip'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rd.LocalSGD(lr=0.1, **settings)


async def own(fed: rd.Server) -> None: ...


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workflow": rd.Buffered(buffer_size=2)}, "only synchronous rounds have; Buffered has none"),
        ({"workflow": rd.Cyclic()}, "Cyclic has none"),
        ({"workflow": rd.Hierarchical(edges=1)}, "Hierarchical has none"),
        ({"workflow": own}, "FunctionWorkflow has none"),
        ({"workflow": rd.CrossSite(then=rd.Cyclic())}, "Cyclic has none"),
        ({"privacy": rd.CentralDP(noise_multiplier=1.0, clip_norm=1.0, delta=1e-5)}, "draws by chance alone"),
        ({"aggregator": rd.aggregators.FLTrust(root="a")}, "skip the root client 'a'"),
    ],
    ids=["buffered", "cyclic", "hierarchical", "own", "cross-site", "privacy", "root"],
)
def test_what_does_not_go_together_is_refused_at_start(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job("skip", **changes).start()


@pytest.mark.parametrize("config", [{"local_epochs": 1}, {"when_exhausted": "continue"}], ids=str)
def test_a_task_cannot_leave_the_epoch_of_all(config: dict[str, object]) -> None:
    own_way = job("skip", num_rounds=1, client_config=lambda round, client: config if client == "b" else {})
    (finished,) = own_way.rounds()
    (lost,) = [report for report in finished.clients if report.status == "lost"]
    assert lost.client == "b"
    assert next(iter(config)) in lost.traceback


def test_the_page_shows_a_job_file_that_says_what_it_means() -> None:
    page = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text()
    (shown,) = re.findall(r"```toml\n(\[learner\].*?)```", page, flags=re.S)
    learner = rd.LocalSGD(lr=0.05, local_batches=50, when_exhausted="skip")
    known = namespace(rd.learner)
    assert build(tomllib.loads(shown)["learner"], known, "learner") == learner
    assert build(describe(learner), known, "learner") == learner
