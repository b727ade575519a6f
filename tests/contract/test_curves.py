"""What stops a run, which of its models is the best, and what a server tells of its rounds while it goes on."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from networks import Plain, small_job
from test_serving import attended, place
from test_serving import job as served_job
from torch import Tensor

import roundelay as rd
from roundelay.deployment import protocol as p
from roundelay.deployment.front import curves as module
from roundelay.deployment.front.curves import curves_of
from roundelay.deployment.front.routes import openapi
from roundelay.errors import ConfigError
from roundelay.federation import Stopping
from roundelay.serving import Serving
from roundelay.standing import Standing

# ---- stopping -------------------------------------------------------------------------------------------------------


def rounds_until_stopped(stopping: Stopping, values: Sequence[float | None], metric: str = "client_loss") -> int | None:
    """Return after how many rounds of these values a run stops, None: never."""
    rows: list[Mapping[str, Any]] = [{} if value is None else {metric: value} for value in values]
    return next((n for n in range(1, len(rows) + 1) if stopping.reason(rows[:n]) is not None), None)


LOSSES = [1.0, 0.8, 0.79, 0.785, 0.9, 0.5]


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        ({"patience": 2}, LOSSES, None),
        ({"patience": 1}, LOSSES, 5),
        ({"patience": 2, "min_delta": 0.05}, LOSSES, 4),
        ({"patience": 3, "min_delta": 0.05}, LOSSES, 5),
        ({"patience": 4, "min_delta": 0.05}, LOSSES, None),
        ({"patience": 2}, [1.0, None, 0.9, None, 0.95, None, math.nan, 0.99], 8),
        ({"patience": 2, "better": "higher"}, LOSSES, 3),
        ({"target": 0.8}, LOSSES, 2),
        ({"target": 0.8, "better": "higher"}, LOSSES, 1),
    ],
)
def test_a_run_stops_when_its_loss_has_not_improved_by_more_than_min_delta_for_so_many_evaluations(
    settings: Mapping[str, Any], values: Sequence[float | None], expected: int | None
) -> None:
    assert rounds_until_stopped(Stopping("client_loss", **settings), values) == expected


def test_slow_progress_adds_up() -> None:
    """Each step is below min_delta; what counts is the distance to the best value that counted."""
    falling = [1.0 - 0.04 * n for n in range(20)]
    assert rounds_until_stopped(Stopping("loss", patience=2, min_delta=0.1), falling, "loss") == 3
    assert rounds_until_stopped(Stopping("loss", patience=3, min_delta=0.1), falling, "loss") is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Stopping(min_delta=-0.1), "min_delta must be at least 0"),
        (lambda: Stopping(better="up"), 'stopping better must be "higher" or "lower"'),
        (lambda: rd.Tracking(better="up"), 'tracking better must be "higher" or "lower"'),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


# ---- the best model -------------------------------------------------------------------------------------------------


def latency(outputs: Tensor, targets: Tensor) -> Tensor:
    """A measure whose name does not say which values are better: how far outputs are from 0."""
    return outputs.abs().sum(-1)


def job(tmp_path: Path, **changes: object) -> rd.Job:
    evaluation = rd.Evaluation(clients_every=1, measures=(latency,))
    tracking = rd.Tracking(str(tmp_path), checkpoint_every_s=0.0, **changes.pop("tracking", {}))  # type: ignore[arg-type]
    settings: dict[str, object] = {
        "model": Plain, "num_rounds": 5, "evaluation": evaluation, "tracking": tracking,
        "learner": rd.LocalSGD(lr=0.5, batch_size=4),
    }  # fmt: skip
    return small_job(**{**settings, **changes})


def best_round(given: rd.Job, resume_after: int | None = None) -> tuple[list[dict[str, Any]], list[int]]:
    """Run; return the rows, and whose rounds' models are the one that is kept as the best."""
    states: dict[int, Mapping[str, Tensor]] = {}
    run = given.start()
    for finished in run:
        states[finished.number] = finished.state_dict()
        if finished.number == resume_after:
            break
    if resume_after is not None:
        run = given.start(run.folder)
        for finished in run:
            states[finished.number] = finished.state_dict()
    assert run.folder is not None
    kept = torch.load(run.folder / "best.pt", weights_only=True)
    same = [n for n, state in states.items() if all(torch.equal(kept[name], state[name]) for name in kept)]
    return [dict(row) for row in run.history().rows], same


def check_best(folder: Path) -> None:
    for better, choose in (("higher", max), ("lower", min)):
        for resume_after in (None, 3):
            tracking = {"best": "client_latency", "better": better}
            rows, kept = best_round(job(folder, tracking=tracking), resume_after)
            values = [row["client_latency"] for row in rows]
            assert len(set(values)) == 5
            assert kept == [values.index(choose(values)) + 1], (better, resume_after)


def test_the_best_model_is_that_of_a_metric_of_choice_whatever_stops_the_run(tmp_path: Path) -> None:
    check_best(tmp_path)
    stopping = Stopping("client_loss", patience=1, min_delta=10.0)
    rows, kept = best_round(job(tmp_path, stopping=stopping, tracking={"best": "client_latency", "better": "higher"}))
    assert len(rows) == 2, "by the loss"
    assert kept == [1 + (rows[1]["client_latency"] > rows[0]["client_latency"])], "not by the loss"


def test_a_best_model_by_another_metric_than_before_is_looked_for_from_there_on(tmp_path: Path) -> None:
    """The models of before are gone, and their values say nothing of the new metric."""
    by_loss = job(tmp_path, tracking={"best": "client_loss"})
    run = by_loss.start()
    for finished in run:
        if finished.number == 3:
            break
    other = replace(by_loss, tracking=replace(by_loss.tracking, best="client_latency", better="lower"))
    states = {finished.number: finished.state_dict() for finished in other.start(run.folder)}
    assert run.folder is not None
    kept = torch.load(run.folder / "best.pt", weights_only=True)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    best = min((4, 5), key=lambda number: rows[number - 1]["client_latency"])
    assert all(torch.equal(kept[name], states[best][name]) for name in kept)


def test_a_best_model_by_what_nobody_measures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking best 'client_map' is unknown.*client_latency"):
        job(tmp_path, tracking={"best": "client_map"}).start()


def test_a_best_model_by_name_alone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the direction that was asked for is not looked at."""
    monkeypatch.setattr(Standing, "_better", None)
    with pytest.raises(AssertionError):
        check_best(tmp_path)


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_curves_have_a_value_for_each_round_that_json_can_say() -> None:
    rows = [{"round": 1, "loss": 0.5, "client_map": math.nan}, {"round": 2, "client_map": 0.25, "note": "text"}]
    curves = curves_of(rows, ["loss", "map"])
    assert curves == p.Curves(
        left_out=0, rounds={"round": [1, 2], "loss": [0.5, None], "client_map": [None, 0.25], "note": [None, None]}
    )
    assert "NaN" not in curves.model_dump_json()


def check_bounds(*_: object) -> None:
    """A client that reports ten thousand metrics in ten thousand rounds: what the job measures is not pushed out."""
    claimed = {f"client_{n:05}": 1.0 for n in range(500)} | {f"train_{n:05}": 1.0 for n in range(500)}
    rows = [claimed | {"client_map": 0.5, "client_map_variance": 0.1, "loss": 1.0, "round": n} for n in range(1_500)]
    curves = curves_of(rows, ["loss", "map"])
    assert (len(curves.rounds), curves.left_out) == (200, 500)
    assert {len(values) for values in curves.rounds.values()} == {1_000}
    assert curves.rounds["round"][-1] == 1_499
    assert {"client_map", "client_map_variance", "loss"} <= curves.rounds.keys()


def test_curves_are_bounded_whatever_clients_report() -> None:
    check_bounds()


@pytest.mark.parametrize(("bound", "value"), [("MAX_ROUNDS", 10**6), ("MAX_CURVES", 10**6)])
def test_curves_without_a_bound_are_found(bound: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, bound, value)
    with pytest.raises(AssertionError):
        check_bounds()


def test_a_server_tells_the_rounds_that_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundelay.serving.FAREWELL_S", 0.0)  # devices without a network never hear that it is over
    given = served_job(tmp_path)
    serving = Serving(given.prepared(), place(tmp_path))
    url = serving.join_line.split()[2]
    with attended(serving, given):
        told = []
        for _ in serving.rounds():
            with urlopen(f"{url}/stats", timeout=10) as answer:
                told.append(p.Stats.model_validate_json(answer.read()))
    losses = [row["loss"] for row in serving.run.history().rows]
    assert [one.progress.rounds["loss"] for one in told] == [losses[:1], losses[:2], losses]
    assert told[0].progress.rounds["round"] == [1]


def test_openapi_says_what_the_statistics_are() -> None:
    told = openapi("1")
    given = told["paths"]["/stats"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert given == {"$ref": "#/components/schemas/Stats"}
    assert told["components"]["schemas"]["Stats"]["properties"]["progress"] == {"$ref": "#/components/schemas/Curves"}
