"""FedPer and FedBN: what ``keep_local`` names stays on each client, and the rest is averaged as ever."""

from pathlib import Path

import pytest
import torch
from networks import Awkward, federated, small_job
from torch import nn

import roundelay as rd
from roundelay.errors import ConfigError, LayoutError
from roundelay.layout import Layout
from roundelay.trainer import one_thread

# the full batch, so that nothing is shuffled; no dropout, so that nothing is drawn
LEARNER = rd.LocalSGD(lr=0.1, batch_size=0, local_epochs=2)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(7, 13), nn.BatchNorm1d(13), nn.Linear(13, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.first(x))))


def job(keep_local: list[str], **changes: object) -> rd.Job:
    settings = {"model": Normed, "learner": LEARNER, "clients_per_round": 2, "data": lambda: federated(2)}
    return small_job(**{**settings, "keep_local": keep_local, **changes})


def by_hand(shared: list[str], num_rounds: int) -> tuple[dict[str, torch.Tensor], list[nn.Module]]:
    """Two clients as two modules that never lose their own part; the shared part is averaged in plain PyTorch."""
    modules = [job([]).prepared().work.initial_module() for _ in range(2)]
    parts = [federated(2).train(client) for client in ("c0", "c1")]
    for _ in range(num_rounds):
        for module, part in zip(modules, parts, strict=True):
            module.train()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(part.inputs), part.targets).backward()
                optimizer.step()
        states = [module.state_dict() for module in modules]
        total = sum(len(part) for part in parts)
        for name in shared:
            mean = torch.lerp(states[0][name], states[1][name], len(parts[1]) / total)
            for state in states:
                state[name].copy_(mean)
    return {name: modules[0].state_dict()[name] for name in shared}, modules


@pytest.mark.parametrize(
    ("keep_local", "shared"),
    [(["head.*", "norm.*"], ["first.weight", "first.bias"]),
     (["@batch_norm"], ["first.weight", "first.bias", "head.weight", "head.bias"])],
    ids=["FedPer", "FedBN"],
)  # fmt: skip
def test_the_shared_part_equals_a_loop_by_hand(keep_local: list[str], shared: list[str]) -> None:
    with one_thread():
        expected, _ = by_hand(shared, num_rounds=3)
    last = list(job(keep_local).rounds())[-1].state_dict()
    assert last.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(last[name], value, rtol=0, atol=1e-6)


def test_clients_evaluate_with_their_own_part() -> None:
    _, modules = by_hand(["first.weight", "first.bias"], num_rounds=3)
    right = 0
    for module, client in zip(modules, ("c0", "c1"), strict=True):
        part = federated(2).train(client)
        module.eval()
        right += int((module(part.inputs).argmax(1) == part.targets).sum())
    rows = job(["head.*", "norm.*"], evaluation=rd.Evaluation(clients_every=1)).run().rows
    assert rows[-1]["client_accuracy"] == pytest.approx(right / (10 + 12))


def test_only_what_is_shared_travels() -> None:
    row = job(["head.*", "norm.*"]).run().rows[0]
    assert row["bytes_up"] == row["bytes_down"] == 2 * 4 * (7 * 13 + 13)


@pytest.mark.parametrize("workflow", [rd.Rounds(), rd.Buffered(buffer_size=2)], ids=["rounds", "buffered"])
def test_the_same_bits_in_every_executor_and_after_a_resume(workflow, tmp_path: Path) -> None:
    settings = {"model": Awkward, "learner": rd.LocalSGD(lr=0.1, batch_size=4), "data": federated, "num_rounds": 4,
                "clients_per_round": 4, "workflow": workflow, "evaluation": rd.Evaluation(clients_every=1)}  # fmt: skip
    whole = job(["@batch_norm"], **settings).run()
    pooled = job(["@batch_norm"], **settings, simulation=rd.Simulation(num_workers=2)).run()
    tracked = job(["@batch_norm"], **settings, tracking=rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0))
    for finished in tracked.rounds():
        if finished.number == 2:
            break
    resumed = tracked.run(resume=tmp_path / "run")
    assert len({whole.sha256, pooled.sha256, resumed.sha256}) == 1
    losses = [[row["client_loss"] for row in history.rows] for history in (whole, pooled, resumed)]
    assert losses[0] == losses[1] == losses[2]


def test_what_fits_nothing_or_leaves_nothing_is_an_error() -> None:
    with pytest.raises(LayoutError, match=r"keep_local: 'tail\.\*' fits no tensor of this model; it has first.weight"):
        job(["tail.*"]).run()
    with pytest.raises(LayoutError, match="leaves Normed nothing to share"):
        job(["*"]).run()
    with pytest.raises(ConfigError, match="Ditto gives clients whole models of their own"):
        job(["head.*"], algorithm=rd.Ditto(strength=0.1)).run()


def test_the_layout_puts_shared_before_local_and_names_what_is_local() -> None:
    layout = Layout.of(Normed(), ["first.*"])
    assert [spec.name for spec in layout.specs][:4] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert layout.local_names == ("first.weight", "first.bias")
    assert layout.num_params == 13 + 13 + 39 + 3
