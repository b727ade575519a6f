"""When a round closes, who belongs to it, what is drawn again and when a job ends: by planted durations, in every
executor.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from networks import examples, federated, small_job

import roundelay as rd
from roundelay import seeds
from roundelay.learner import accuracy
from roundelay.messages import Task

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
executors = pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
EVERYBODY = {"clients_per_round": 6}


def staggered(client: str, task: rd.Task) -> float:
    """c0 answers after a second, c5 after six; every round turns the order by one client."""
    return 1.0 + (int(client[1:]) + task.round - 1) % 6


def statuses(finished: rd.Round) -> dict[str, str]:
    return {report.client: report.status for report in finished.clients}


def of_each_round(**changes: object) -> list[dict[str, str]]:
    return [statuses(finished) for finished in small_job(**{**EVERYBODY, **changes}).rounds()]


def split(admitted: str, late: str) -> dict[str, str]:
    return {**{f"c{i}": "admitted" for i in admitted}, **{f"c{i}": "late" for i in late}}


# ---- closing --------------------------------------------------------------------------------------------------------


@executors
def test_a_goal_admits_the_fastest_and_the_next_round_starts_at_once(simulation: rd.Simulation) -> None:
    job = small_job(**EVERYBODY, workflow=rd.Rounds(goal=2), simulation=replace(simulation, duration=staggered))
    rounds = list(job.rounds())
    assert [statuses(finished) for finished in rounds] == [
        split("01", "2345"),
        split("05", "1234"),
        split("45", "0123"),
    ]
    assert [finished.row["virtual_s"] for finished in rounds] == [2.0, 4.0, 6.0]


@executors
def test_a_deadline_admits_who_answers_by_then_the_last_nanosecond_included(simulation: rd.Simulation) -> None:
    job = small_job(**EVERYBODY, workflow=rd.Rounds(deadline_s=3.0), simulation=replace(simulation, duration=staggered))
    rounds = list(job.rounds())
    assert [statuses(finished) for finished in rounds] == [
        split("012", "345"),
        split("015", "234"),
        split("045", "123"),
    ]
    assert [finished.row["virtual_s"] for finished in rounds] == [3.0, 6.0, 9.0]


@pytest.mark.parametrize("days", [0, 61, 100, 3650])
def test_an_answer_at_the_deadline_is_in_time_however_late_it_is(days: int) -> None:
    last_moment = replace(SERIAL, duration=lambda client, task: 0.1)
    learner = rd.LocalSGD(lr=0.1, local_batches=1)
    job = small_job(num_rounds=20, workflow=rd.Rounds(deadline_s=0.1), simulation=last_moment, learner=learner)
    run = job.start()
    run.standing.virtual_ns = round((days * 86_400 + 0.3) * 1e9)
    assert {finished.row["late"] for finished in run} == {0}


@executors
def test_whichever_of_goal_and_deadline_comes_first_closes_the_round(simulation: rd.Simulation) -> None:
    paced = {"num_rounds": 1, **EVERYBODY, "simulation": replace(simulation, duration=staggered)}
    ends = {}
    for goal, deadline_s in ((2, 3.0), (5, 3.0), (6, 60.0)):
        row = small_job(workflow=rd.Rounds(goal=goal, deadline_s=deadline_s), **paced).run().rows[0]
        ends[goal, deadline_s] = (row["admitted"], row["virtual_s"])
    assert ends == {(2, 3.0): (2, 2.0), (5, 3.0): (3, 3.0), (6, 60.0): (6, 6.0)}


@pytest.mark.parametrize("closing", [{"goal": 2}, {"deadline_s": 3.0}, {"goal": 4, "deadline_s": 3.5}, {}], ids=str)
def test_cut_rounds_give_the_same_bits_in_every_executor(closing: dict[str, float]) -> None:
    hashes = {
        small_job(**EVERYBODY, workflow=rd.Rounds(**closing), simulation=replace(one, duration=staggered)).run().sha256
        for one in (SERIAL, POOL, rd.Simulation(num_workers=1))
    }
    assert len(hashes) == 1


@executors
def test_a_cut_round_is_the_round_without_those_who_were_late(simulation: rd.Simulation) -> None:
    cut = small_job(
        **EVERYBODY, num_rounds=1, workflow=rd.Rounds(goal=3), simulation=replace(simulation, duration=staggered)
    )

    def only_the_fast() -> rd.FederatedData:
        everybody = federated()
        return rd.FederatedData.from_datasets({c: everybody.train(c) for c in ("c0", "c1", "c2")})

    assert cut.run().sha256 == small_job(num_rounds=1, data=only_the_fast, clients_per_round=3).run().sha256


def test_bytes_up_are_those_that_arrived_and_bytes_down_those_of_everybody_asked() -> None:
    whole = small_job(**EVERYBODY, num_rounds=1).run().rows[0]
    cut = small_job(
        **EVERYBODY, num_rounds=1, workflow=rd.Rounds(goal=2), simulation=replace(SERIAL, duration=staggered)
    )
    row = cut.run().rows[0]
    assert (row["bytes_down"], row["bytes_up"]) == (whole["bytes_down"], whole["bytes_up"] * 2 // 6)


# ---- cohorts --------------------------------------------------------------------------------------------------------


@executors
def test_over_selection_asks_more_and_closes_at_the_cohorts_size(simulation: rd.Simulation) -> None:
    for finished in small_job(
        clients_per_round=4, workflow=rd.Rounds(over_selection=0.5), simulation=replace(simulation, duration=staggered)
    ).rounds():
        fastest = sorted(statuses(finished), key=lambda client: staggered(client, Task(0, client, finished.number)))
        assert statuses(finished) == split("".join(c[1] for c in fastest[:4]), "".join(c[1] for c in fastest[4:]))


@pytest.mark.parametrize(
    ("num_clients", "wanted", "share", "asked"),
    [(200, 100, 0.1, 110), (200, 100, 0.07, 107), (20, 10, 0.25, 13), (12, 10, 0.5, 12), (20, 10, 0.0, 10)],
)
def test_over_selection_asks_for_the_share_that_it_says(
    num_clients: int, wanted: int, share: float, asked: int
) -> None:
    parts = {f"{i:03d}": examples(4) for i in range(num_clients)}
    job = small_job(
        data=rd.FederatedData.from_datasets(parts), clients_per_round=wanted, num_rounds=1,
        workflow=rd.Rounds(over_selection=share), learner=rd.LocalSGD(lr=0.1, local_batches=1),
    )  # fmt: skip
    assert len(next(job.rounds()).clients) == asked


@pytest.mark.parametrize(("share", "count"), [(1, 1), (0.5, 3), (1.0, 6), (0.01, 1), (0.34, 2), (6, 6)])
def test_clients_per_round_is_a_number_or_a_share_of_all(share: int | float, count: int) -> None:
    assert {len(finished.clients) for finished in small_job(clients_per_round=share).rounds()} == {count}


def test_more_clients_than_there_are_is_an_error_before_anything_is_trained() -> None:
    with pytest.raises(rd.errors.ConfigError, match="clients_per_round = 7 but there are only 6 clients"):
        small_job(clients_per_round=7).start()


def test_cohorts_differ_from_round_to_round_and_draw_each_client_equally_often() -> None:
    job = small_job(num_rounds=60, clients_per_round=2, learner=rd.LocalSGD(lr=0.01, batch_size=0))
    cohorts = [tuple(statuses(finished)) for finished in job.rounds()]
    assert all(list(cohort) == sorted(set(cohort)) for cohort in cohorts)
    assert len(set(cohorts)) == 15  # every pair of six
    drawn = [sum(f"c{i}" in cohort for cohort in cohorts) for i in range(6)]
    assert min(drawn) >= 10  # 20 expected each


# ---- quorum ---------------------------------------------------------------------------------------------------------


def one_by_attempt(client: str, task: rd.Task) -> float:
    """Too slow in the first attempt of each round, except for c0; in the second everybody is in time."""
    return 0.5 if task.attempt or client == "c0" else 9.0


@executors
def test_a_round_below_its_quorum_is_drawn_again_with_another_cohort(simulation: rd.Simulation) -> None:
    asked: list[tuple[int, int, str]] = []

    def noted(client: str, task: rd.Task) -> float:
        asked.append((task.round, task.attempt, client))
        return one_by_attempt(client, task)

    workflow = rd.Rounds(deadline_s=1.0, quorum=3, attempts=3)
    history = small_job(workflow=workflow, simulation=replace(simulation, duration=noted)).run()
    assert [(row["attempt"], row["admitted"], row["virtual_s"]) for row in history.rows] == [
        (1, 4, 1.5), (1, 4, 3.0), (1, 4, 4.5),
    ]  # fmt: skip
    for number in (1, 2, 3):
        first, second = ([c for r, a, c in asked if (r, a) == (number, attempt)] for attempt in (0, 1))
        assert (len(first), len(second)) == (4, 4)
    assert any(
        [c for r, a, c in asked if (r, a) == (n, 0)] != [c for r, a, c in asked if (r, a) == (n, 1)] for n in (1, 2, 3)
    )


def test_the_bytes_of_every_attempt_are_counted() -> None:
    workflow = rd.Rounds(deadline_s=1.0, quorum=3, attempts=2)
    again = (
        small_job(num_rounds=1, workflow=workflow, simulation=replace(SERIAL, duration=one_by_attempt)).run().rows[0]
    )
    once = small_job(num_rounds=1).run().rows[0]
    assert again["bytes_down"] == 2 * once["bytes_down"]
    assert again["bytes_up"] >= once["bytes_up"]


@executors
def test_after_the_last_attempt_the_model_stays_and_the_job_goes_on(simulation: rd.Simulation) -> None:
    def away_in_the_second_round(client: str, task: rd.Task) -> float:
        return 9.0 if task.round == 2 else 0.5

    workflow = rd.Rounds(deadline_s=1.0, attempts=2)
    job = small_job(workflow=workflow, simulation=replace(simulation, duration=away_in_the_second_round))
    states = [finished.state_dict() for finished in job.rounds()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[1]["first.weight"], states[2]["first.weight"])


# ---- evaluation and the end -----------------------------------------------------------------------------------------


def evaluated(job: rd.Job, state: dict[str, torch.Tensor], part: Callable[[str], rd.data.Examples]) -> list[float]:
    """Return each client's accuracy, by hand."""
    with seeds.preserved_globals():
        model = job.model()
    model.load_state_dict(state)
    model.eval()
    scores = []
    for client in job.prepared().work.data.clients:
        own = part(client)
        inputs, targets = next(own.batches(torch.arange(len(own)), len(own)))
        scores.append(float(accuracy(model(inputs), targets).mean()))
    return scores


@executors
def test_clients_are_evaluated_as_often_as_asked_on_the_part_that_they_keep_out(simulation: rd.Simulation) -> None:
    job = small_job(
        data=rd.Data(examples(90), examples(30, seed=8)), partition=rd.IID(num_clients=6), num_rounds=5,
        evaluation=rd.Evaluation(every=0, clients_every=2, client_test_fraction=0.25), simulation=simulation,
    )  # fmt: skip
    rounds = list(job.rounds())
    assert [f.number for f in rounds if "client_accuracy" in f.row] == [2, 4, 5]
    assert [f.number for f in rounds if "accuracy" in f.row] == []
    data = job.prepared().work.data
    assert [(len(data.train(c)), len(data.test(c))) for c in data.clients] == [(11, 4)] * 6
    scores = torch.tensor(evaluated(job, rounds[-1].state_dict(), data.test), dtype=torch.float64)
    row = rounds[-1].row
    assert row["client_accuracy"] == pytest.approx(scores.mean().item())
    assert row["client_accuracy_variance"] == pytest.approx(scores.var(correction=0).item())
    assert row["client_accuracy_worst_decile"] == pytest.approx(scores.min().item())
    assert row["client_loss_worst_decile"] >= row["client_loss"]


@executors
def test_without_a_part_of_their_own_clients_are_evaluated_on_what_they_train_on(simulation: rd.Simulation) -> None:
    job = small_job(evaluation=rd.Evaluation(clients_every=3), simulation=simulation)
    *_, last = job.rounds()
    data = job.prepared().work.data
    scores, sizes = evaluated(job, last.state_dict(), data.train), [len(data.train(c)) for c in data.clients]
    expected = sum(score * size for score, size in zip(scores, sizes, strict=True)) / sum(sizes)
    assert last.metrics["client_accuracy"] == pytest.approx(expected)


@executors
def test_evaluation_changes_no_bit_of_the_model(simulation: rd.Simulation) -> None:
    often = small_job(evaluation=rd.Evaluation(every=1, clients_every=1), simulation=simulation).run()
    never = small_job(evaluation=rd.Evaluation(every=0), simulation=simulation).run()
    assert often.sha256 == never.sha256


def planted_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the held-out loss after round n be ``losses[n - 1]``."""
    left = iter(losses)

    def means(self: object) -> dict[str, float]:
        return {"loss": next(left)}

    monkeypatch.setattr("roundelay.metrics.Sums.means", means)


@pytest.mark.parametrize(
    ("stopping", "num_rounds"),
    [
        ({"patience": 2}, 5),  # the best is round 3
        ({"patience": 3}, 6),  # as good as the best is no improvement
        ({"target": 2.5}, 3),
        ({"target": 0.1}, 8),
        ({"target": 2.5, "patience": 1}, 2),
    ],
)
def test_a_job_ends_at_its_target_or_when_its_patience_is_over(
    stopping: dict[str, float], num_rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_losses(monkeypatch, [4.0, 4.5, 2.0, 3.0, 2.5, 2.0, 2.4, 1.0])
    history = small_job(num_rounds=8, stopping=rd.Stopping(metric="loss", **stopping)).run()
    assert len(history.rows) == num_rounds
