"""Half models travel in their own dtype and are folded in float32, over a float32 model on the server."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployments import require_same
from networks import Plain, federated, small_job
from torch import Tensor, nn
from uplinks import served

import roundelay as rd
from roundelay.deployment.running import asking
from roundelay.errors import ConfigError
from roundelay.guard import Expected, Guard, Reason
from roundelay.layout import Layout
from roundelay.layout.travel import opened, packed
from roundelay.messages import Payload, Task, Update
from roundelay.simulation.executors.processes import Processes

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_PARAMS = 7 * 13 + 13 + 13 * 3 + 3


class Half(nn.Module):
    """A network all of whose parameters are half, between inputs and logits that are not."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.net, self.dtype = Plain().to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.to(self.dtype)).float()
        return logits


class Mixed(nn.Module):
    """Half and full precision in turns, and BatchNorm, whose statistics are float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(7, 13).bfloat16(), nn.BatchNorm1d(13)
        self.second, self.third = nn.Linear(13, 5).half(), nn.Linear(5, 3).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x.bfloat16()).float()))
        logits: Tensor = self.third(self.second(hidden.half()).bfloat16()).float()
        return logits


def half16() -> nn.Module:
    return Half(torch.float16)


def job(**changes: Any) -> rd.Job:  # Any: a job's fields
    learner = rd.LocalSGD(lr=0.1, batch_size=0)
    settings = {"model": Half, "data": lambda: federated(2), "clients_per_round": 2, "learner": learner}
    return small_job(**{**settings, **changes})


def one_step(module: nn.Module, client: str) -> None:
    """What LocalSGD does with the full batch, in plain PyTorch."""
    part = federated(2).train(client)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(part.inputs), part.targets).backward()
    optimizer.step()


def by_hand(given: rd.Job, num_rounds: int, server_lr: float, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Two clients that train in half precision; ``kept`` is what the server keeps of a mean, the float32 master."""
    module = given.prepared().work.initial_module()
    first = {name: value.clone() for name, value in module.state_dict().items()}
    master = {name: value.float() for name, value in first.items()}
    for _ in range(num_rounds):
        ends = []
        for client in ("c0", "c1"):
            module.load_state_dict({name: value.to(first[name].dtype) for name, value in master.items()})
            one_step(module, client)
            ends.append({name: value.float() for name, value in module.state_dict().items()})
        for name, value in master.items():
            mean = torch.lerp(ends[0][name], ends[1][name], 12 / 22)
            master[name] = kept(mean if server_lr == 1.0 else torch.lerp(value, mean, server_lr))
    return {name: value.to(first[name].dtype) for name, value in master.items()}


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Half, half16], ids=["bfloat16", "float16"])
def test_rounds_are_a_float32_fold_of_half_values_to_the_bit(model: Callable[[], nn.Module]) -> None:
    given = job(model=model)
    state, expected = given.run().model.state_dict(), by_hand(given, 3, 1.0, lambda mean: mean)
    for name, value in expected.items():
        assert state[name].dtype is value.dtype
        assert torch.equal(state[name], value), name


def test_one_client_is_plain_training_in_half_precision_to_the_bit() -> None:
    given = job(data=lambda: federated(1), clients_per_round=1)
    module = given.prepared().work.initial_module()
    for _ in range(3):
        one_step(module, "c0")
    for name, value in given.run().model.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_small_steps_add_up_in_the_servers_float32_model() -> None:
    given = job(algorithm=rd.FedAvg(server_lr=0.01), num_rounds=12)
    state = given.run().model.state_dict()
    master = by_hand(given, 12, 0.01, lambda mean: mean)
    rounded = by_hand(given, 12, 0.01, lambda mean: mean.bfloat16().float())
    for name, value in master.items():
        assert torch.equal(state[name], value), name
    assert any(not torch.equal(rounded[name], value) for name, value in master.items()), "the steps are not small"


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_dtypes() -> None:
    whole, half = job(model=Plain).run().rows, job().run().rows
    for before, after in zip(whole, half, strict=True):
        assert before["bytes_down"] == before["bytes_up"] == 2 * 4 * NUM_PARAMS
        assert after["bytes_down"] == after["bytes_up"] == 2 * 2 * NUM_PARAMS
    halves, full, statistics = 7 * 13 + 13 + 13 * 5 + 5 + 5 * 3 + 3, 2 * 13, 2 * 13 * 4 + 8
    for row in job(model=Mixed).run().rows:
        assert row["bytes_down"] == row["bytes_up"] == 2 * (2 * halves + 4 * full + statistics)


def test_what_is_not_the_models_travels_in_full() -> None:
    (row, *_) = job(algorithm=rd.Scaffold()).run().rows
    assert row["bytes_up"] == 2 * (2 + 4) * NUM_PARAMS


def test_workers_and_devices_are_handed_half_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[dict[str, torch.dtype]]()

    def noted(payload: Payload) -> None:
        seen.append({name: vector.dtype for name, vector in payload.vectors.items()})

    real, frame = Processes.submit, asking.model_frame

    def submit(self: Processes, tasks: Any, received: Payload, memories: Any, **how: bool) -> None:
        noted(received)
        real(self, tasks, received, memories, **how)
        answer = self.result(tasks[0].id)
        if tasks[0].kind == "train":
            noted(answer.update.payload)  # type: ignore[union-attr]

    def framed(payload: Payload) -> Any:
        noted(payload)
        return frame(payload)

    monkeypatch.setattr(Processes, "submit", submit)
    monkeypatch.setattr(asking, "model_frame", framed)
    given = job(evaluation=rd.Evaluation(clients_every=1), tracking=rd.Tracking(root=str(tmp_path)), num_rounds=1)
    given.run(rd.Simulation(num_workers=1))
    assert len(seen) == 3  # what was sent, what came, what was evaluated
    served(given)
    assert len(seen) > 4
    assert all(dtypes == {"params.bfloat16": torch.bfloat16} for dtypes in seen)


# ---- the same everywhere ---------------------------------------------------------------------------------------------

JOBS: dict[str, dict[str, Any]] = {
    "mixed, scaffold": {"model": Mixed, "algorithm": rd.Scaffold(), "evaluation": rd.Evaluation(clients_every=2)},
    "float16, cross-site": {"model": half16, "workflow": rd.CrossSite()},
    "ditto": {"algorithm": rd.Ditto(strength=0.1)},
    "encoded": {"uplink": rd.Uplink(codec=rd.TopK(fraction=0.1), feedback="error")},
    "encoded cross-site": {"uplink": rd.Uplink(codec=rd.QSGD(bits=4)), "workflow": rd.CrossSite()},
    "both links": {"uplink": rd.Uplink(codec=rd.FP16()), "downlink": rd.Downlink(codec=rd.Int8())},
    "median": {"model": Mixed, "aggregator": rd.CoordinateMedian()},
    "hierarchical": {"workflow": rd.Hierarchical(3, edge_rounds=2), "clients_per_round": 2},
    "batch norm at home": {"model": Mixed, "keep_local": ["@batch_norm"]},
}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name, marks=[pytest.mark.slow] * (not name.startswith("mixed")))
     for name, changes in JOBS.items()],
)  # fmt: skip
def test_a_pool_and_devices_end_in_the_bits_of_one_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = small_job(**{"model": Half, "tracking": rd.Tracking(root=str(tmp_path)), "num_rounds": 2, **changes})
    alone = given.run()
    require_same(alone, given.run(rd.Simulation(num_workers=2)))
    require_same(alone, served(given))


def test_a_buffered_run_keeps_what_was_sent_in_half_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    tracking = rd.Tracking(root=str(tmp_path), checkpoint_every_s=0.0)

    def slower(client: str, task: Task) -> float:
        return 1.0 + int(client[1:])

    simulation = rd.Simulation(executor="serial", duration=slower)
    given = small_job(model=Mixed, workflow=rd.Buffered(buffer_size=2), simulation=simulation, tracking=tracking,
                      num_rounds=2)  # fmt: skip
    run = given.run().run_folder
    assert run is not None
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    assert content["state"]["params"].dtype is torch.float32
    for sent in content["sent"].values():
        assert {name: vector.dtype for name, vector in sent["vectors"].items()} == {
            "params": torch.float32, "params.bfloat16": torch.bfloat16, "params.float16": torch.float16,
        }  # fmt: skip
    longer = replace(given, num_rounds=5)
    resumed = longer.run(resume=run)
    assert resumed.sha256 == replace(longer, tracking=None).run().sha256
    assert max(row["staleness"] for row in resumed.rows) > 0


@pytest.mark.parametrize("attack", [rd.attacks.SignFlip(clients=("c0",)), rd.attacks.ALIE(clients=("c0",))],
                         ids=["lies", "colludes"])  # fmt: skip
def test_an_attack_speaks_of_the_whole_model(attack: Any) -> None:
    history = small_job(model=Mixed, attacks=(attack,), clients_per_round=6).run()
    assert all(row["refused"] == 0 for row in history.rows)
    assert history.sha256 != small_job(model=Mixed, clients_per_round=6).run().sha256


# ---- the form --------------------------------------------------------------------------------------------------------


def payload_of(module: nn.Module) -> tuple[Layout, Payload]:
    layout = Layout.of(module)
    vectors = layout.flatten(module.state_dict())
    return layout, Payload({"params": vectors.params}, vectors.buffers, vectors.integers)


def test_packing_is_exact_for_half_values_and_nothing_for_a_float32_model() -> None:
    layout, whole = payload_of(Mixed())
    there = packed(layout, whole)
    assert [(name, v.dtype, v.numel()) for name, v in there.vectors.items()] == [
        ("params", torch.float32, 26),
        ("params.bfloat16", torch.bfloat16, 104 + 18),
        ("params.float16", torch.float16, 70),
    ]
    assert torch.equal(opened(layout, there).vectors["params"], whole.vectors["params"])
    layout, whole = payload_of(Plain())
    assert packed(layout, whole) is whole
    assert opened(layout, whole) is whole


def test_the_guard_refuses_another_dtype_length_or_form() -> None:
    layout, whole = payload_of(Half())
    expected, task, there = Expected.of(layout, {"params": NUM_PARAMS}), Task(1, "c0", 1), packed(layout, whole)
    assert expected.num_bytes == 2 * NUM_PARAMS

    def reason(payload: Payload) -> Reason | None:
        refusal = Guard().check(Update(task, payload, 1.0), task, expected, answered=False)
        return None if refusal is None else refusal.reason

    values = there.vectors["params.bfloat16"]
    assert reason(there) is None
    assert reason(whole) is Reason.WRONG_VECTORS
    assert reason(replace(there, vectors={"params.bfloat16": values.float()})) is Reason.WRONG_DTYPE
    assert reason(replace(there, vectors={"params.bfloat16": values.half()})) is Reason.WRONG_DTYPE
    assert reason(replace(there, vectors={"params.bfloat16": values[:-1]})) is Reason.WRONG_LENGTH
    broken = torch.cat([values[:-1], values.new_tensor([float("inf")])])
    assert reason(replace(there, vectors={"params.bfloat16": broken})) is Reason.NOT_FINITE


def test_large_float16_values_whose_sum_overflows_are_finite() -> None:
    layout, whole = payload_of(half16())
    large = replace(whole, vectors={"params": torch.full((NUM_PARAMS,), 60000.0)})
    expected, task = Expected.of(layout, {"params": NUM_PARAMS}), Task(1, "c0", 1)
    assert Guard().check(Update(task, packed(layout, large), 1.0), task, expected, answered=False) is None


def test_clients_side_by_side_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="half precision"):
        job(simulation=rd.Simulation(executor="vectorized")).run()
