"""Frozen parameters: they never travel, every side has the same ones, and what is saved has them all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deployments import require_same
from networks import Awkward, Plain, federated, small_job
from scripts import BEGIN, script_job, threads
from torch import nn
from uplinks import served

import roundelay as rd
from roundelay.client.exchange import Site
from roundelay.deployment.device.hands import TrainerHands
from roundelay.errors import ClientFailed, ConfigError, LayoutError, RoundelayError
from roundelay.layout import Layout, Scope
from roundelay.learner.function import FunctionLearner
from roundelay.models import LoRALinear, lora, merge_lora
from roundelay.trainer import Trainer

NUM_TRAINED = 2 * (7 + 13) + 13 * 3 + 3  # adapters of rank 2 beside the first layer, and the second layer


def adapted() -> nn.Module:
    """A frozen first layer with an adapter, and a head that is trained."""
    net = lora(Plain(), rank=2, alpha=4.0, targets=["first"])
    net.second.requires_grad_(True)
    return net


def normed() -> nn.Module:
    """A frozen layer with BatchNorm behind it, whose statistics travel."""
    net = Awkward()
    net.first.requires_grad_(False)
    return net


def by_hand(num_rounds: int) -> dict[str, torch.Tensor]:
    """Plain PyTorch: two clients, the full batch; what is trained is averaged, the rest is the factory's."""
    modules = [small_job(model=adapted).prepared().work.initial_module() for _ in range(2)]
    parts = [federated(2).train(client) for client in ("c0", "c1")]
    for _ in range(num_rounds):
        for module, part in zip(modules, parts, strict=True):
            optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(part.inputs), part.targets).backward()
            optimizer.step()
        with torch.no_grad():
            for one, other in zip(*(module.parameters() for module in modules), strict=True):
                one.lerp_(other, len(parts[1]) / (len(parts[0]) + len(parts[1])))
                other.copy_(one)
    return dict(modules[0].state_dict())


def test_a_run_equals_a_loop_by_hand_and_only_what_is_trained_travels() -> None:
    learner = rd.LocalSGD(lr=0.1, batch_size=0)
    job = small_job(model=adapted, data=lambda: federated(2), clients_per_round=2, learner=learner)
    history, expected = job.run(), by_hand(3)
    state = history.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    assert torch.equal(state["first.weight"], expected["first.weight"])
    for row in history.rows:
        assert row["bytes_down"] == row["bytes_up"] == 2 * 4 * NUM_TRAINED


JOBS = {
    "adapters": {"model": adapted},
    "a frozen layer before batch norm": {"model": normed},
    "with keep_local": {"model": normed, "keep_local": ["second.*"]},
    "scaffold": {"model": adapted, "algorithm": rd.Scaffold()},
    "ditto": {"model": adapted, "algorithm": rd.Ditto(strength=0.1)},
    "encoded": {"model": adapted, "uplink": rd.Uplink(codec=rd.TopK(fraction=0.1), feedback="error")},
}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name, marks=[pytest.mark.slow] * (name not in ("adapters", "with keep_local")))
     for name, changes in JOBS.items()],
)  # fmt: skip
def test_a_pool_and_devices_end_in_the_bits_of_one_process(tmp_path: Path, changes: dict[str, object]) -> None:
    tracking = rd.Tracking(root=str(tmp_path / "runs"), checkpoint_every_s=0.0)
    given = small_job(**changes, tracking=tracking)
    alone = given.run()
    require_same(alone, given.run(rd.Simulation(num_workers=2)))
    require_same(alone, served(given))


def test_statistics_behind_a_frozen_layer_travel_and_are_averaged() -> None:
    layout = Layout.of(normed())
    assert [spec.name for spec in layout.frozen] == ["first.weight", "first.bias"]
    names = ("norm.running_mean", "norm.num_batches_tracked")
    assert all(spec.scope is Scope.SHARED for spec in layout.specs if spec.name in names)
    state = small_job(model=normed).run().model.state_dict()
    assert state["norm.running_mean"].any()
    assert state["norm.num_batches_tracked"] > 0


def test_what_is_saved_is_the_whole_model(tmp_path: Path) -> None:
    rounds = list(small_job(model=adapted, tracking=rd.Tracking(root=str(tmp_path))).rounds())
    first = small_job(model=adapted).prepared().work.initial_module().state_dict()
    (run,) = tmp_path.iterdir()
    for state in (rounds[-1].state_dict(), *(torch.load(run / f"{name}.pt") for name in ("last", "best"))):
        adapted().load_state_dict(state)  # strict: every name is there
        assert torch.equal(state["first.weight"], first["first.weight"])
        assert not torch.equal(state["second.weight"], first["second.weight"])


def test_a_first_model_from_a_file_brings_its_frozen_part_too(tmp_path: Path) -> None:
    begun = adapted()
    torch.save(begun.state_dict(), tmp_path / "first.pt")
    history = small_job(model=adapted, init=str(tmp_path / "first.pt")).run()
    assert torch.equal(history.model.state_dict()["first.weight"], begun.state_dict()["first.weight"])


# ---- another base ----------------------------------------------------------------------------------------------------


def test_a_device_with_another_base_is_told_which_tensor_differs() -> None:
    work = small_job(model=adapted).prepared().work
    server, other = Trainer(work), replace(work, seed=8)
    site = Site("c0", "run", work.seed, 3, {"use": "fedavg"}, server.layout, {})
    TrainerHands(work, site)
    with pytest.raises(LayoutError, match=r"'c0'.*'first.weight' is frozen and has other values.*the same file"):
        TrainerHands(other, site)


def test_a_worker_that_builds_another_base_ends_the_run_by_the_tensors_name() -> None:
    def by_the_process() -> nn.Module:
        import os

        net = adapted()
        with torch.no_grad():
            net.first.weight.fill_(os.getpid())
        return net

    with pytest.raises(RoundelayError, match=r"a worker builds: tensor 'first\.weight' is frozen"):
        small_job(model=by_the_process, simulation=rd.Simulation(num_workers=1)).run()


def test_a_run_is_not_resumed_on_another_base(tmp_path: Path) -> None:
    tracking = rd.Tracking(root=str(tmp_path), checkpoint_every_s=0.0)
    given = small_job(model=Shifted(0.0), num_rounds=1, tracking=tracking)
    run = given.run().run_folder
    longer = replace(given, num_rounds=3)
    assert longer.run(resume=run).sha256 == replace(longer, tracking=None).run().sha256
    with pytest.raises(LayoutError, match=r"first.weight .* frozen"):
        replace(given, model=Shifted(1.0), num_rounds=4).run(resume=run)


class Shifted:
    """A factory that reads as the same one, whatever it adds to the frozen weights."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self) -> nn.Module:
        net = adapted()
        with torch.no_grad():
            net.first.weight.add_(self.by)
        return net


def unfreezes(model: nn.Module, data: object, task: object) -> tuple[float, dict[str, float]]:
    model.requires_grad_(True)
    return 1.0, {}


def writes(model: nn.Module, data: object, task: object) -> tuple[float, dict[str, float]]:
    with torch.no_grad():
        model.first.weight.add_(1.0)
    return 1.0, {}


def replaces(model: nn.Module, data: object, task: object) -> tuple[float, dict[str, float]]:
    model.first.weight.data = model.first.weight.detach() + 1.0
    return 1.0, {}


def returns(model: nn.Module, data: object, task: object) -> tuple[dict[str, torch.Tensor], float, dict[str, float]]:
    return {name: value + 1.0 for name, value in model.state_dict().items()}, 1.0, {}


@pytest.mark.parametrize("function", [unfreezes, writes, replaces, returns])
def test_a_function_that_changes_what_is_frozen_is_told(function: object) -> None:
    with pytest.raises(ClientFailed, match=r"changed 'first\.\w+', which is frozen"):
        small_job(model=adapted, learner=FunctionLearner(function)).run()


def harmless(model: nn.Module, data: object, task: object) -> tuple[float, dict[str, float]]:
    model.load_state_dict(model.state_dict())  # writes the same values once more
    model.first.weight.data = model.first.weight.detach().clone()
    return 1.0, {}


def test_a_function_that_leaves_the_same_values_is_not_troubled() -> None:
    history = small_job(model=adapted, learner=FunctionLearner(harmless)).run()
    assert all(row["admitted"] == 4 for row in history.rows)


SCRIPT = """
from test_frozen import adapted
torch.manual_seed(3)
net = adapted()
with torch.no_grad():
    net.first.weight.fill_({value})
    net.first.bias.fill_(0.5)
optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
while fl.is_running():
    net.load_state_dict(fl.receive().params, strict=False)
    train(net, optimizer, data)
    fl.send(fl.FLModel(params=net.state_dict(), num_examples=len(data)))
"""


def filled() -> nn.Module:
    net = adapted()
    with torch.no_grad():
        net.first.weight.fill_(0.25)
        net.first.bias.fill_(0.5)
    return net


def test_a_script_keeps_its_own_frozen_part_and_is_told_where_it_is_another_one(tmp_path: Path) -> None:
    same = script_job(tmp_path, BEGIN + SCRIPT.format(value=0.25), threads(2), model=filled).run()
    assert [row["admitted"] for row in same.rows] == [2, 2]
    assert same.rows[0]["bytes_up"] == 2 * 4 * NUM_TRAINED
    with pytest.raises(ClientFailed, match=r"this script sends: tensor 'first.weight' is frozen and has other values"):
        script_job(tmp_path, BEGIN + SCRIPT.format(value=0.125), threads(2), model=filled).run()


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_a_model_with_adapters_begins_as_the_one_it_adapts_and_merges_into_what_it_became() -> None:
    torch.manual_seed(4)
    plain, inputs = Plain(), torch.randn(5, 7)
    before, names = plain(inputs), list(plain.state_dict())
    net = lora(plain, rank=3, alpha=6.0, targets=["first", "sec*"])
    assert torch.equal(net(inputs), before)
    a, b = net.first.lora_a, net.first.lora_b
    with torch.no_grad():
        b.normal_()
        hidden = inputs @ net.first.weight.T + net.first.bias + 6.0 / 3 * (inputs @ a.T) @ b.T
    torch.testing.assert_close(net.first(inputs), hidden)
    after = net(inputs)
    merged = merge_lora(net)
    assert not any(isinstance(part, LoRALinear) for part in merged.modules())
    assert list(merged.state_dict()) == names
    torch.testing.assert_close(merged(inputs), after)


def test_adapters_are_float32_beside_a_half_base() -> None:
    net = lora(Plain().to(torch.bfloat16), rank=1, targets=["first"])
    assert net.first.lora_a.dtype is torch.float32
    out = net(torch.randn(5, 7).bfloat16())
    assert out.dtype is torch.bfloat16
    out.sum().backward()
    assert net.first.lora_b.grad is not None
    assert net.first.weight.grad is None


def test_a_target_that_fits_nothing_and_a_model_without_anything_to_train_are_named() -> None:
    with pytest.raises(ConfigError, match="'q' fits no linear layer of Plain; it has first, second"):
        lora(Plain(), targets=["q"])
    with pytest.raises(ConfigError, match="rank must be a whole number"):
        lora(Plain(), rank=0)
    with pytest.raises(LayoutError, match="every parameter of Plain is frozen"):
        Layout.of(Plain().requires_grad_(False))
