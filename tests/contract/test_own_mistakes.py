"""What a user's own workflow may get wrong, how a job refuses it, and how a job file names one."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from networks import Plain, small_job
from own_workflows import OwnRun, Sampled, fedavg, own, with_setting
from torch import Tensor

import roundelay as rd
from roundelay import config
from roundelay.errors import ConfigError, EmptyRoundError, LayoutError, MetricError


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
    "no await": (lambda fed, model: fed.aggregate(fed.train(model, ["c0"])), ConfigError, r"= await fed\.train"),
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


# ---- in a job file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('use = "own_workflows:fedavg"', fedavg),
        ('use = "own_workflows:Sampled"\ncount = 3', Sampled(3)),
        ('use = "own_workflows:with_setting"\ncount = 3', None),
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
    (tmp_path / "job.toml").write_text('[workflow]\nuse = "own_workflows:__name__"\n')
    with pytest.raises(ConfigError, match="is a str; expected a class or a function"):
        config.load(tmp_path / "job.toml")


def test_settings_given_in_a_job_file_reach_a_function() -> None:
    assert own(partial(with_setting, count=4), num_rounds=3).sha256 == small_job().run().sha256
