"""Where signs alone go wrong and error feedback does not (S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and
other Gradient Compression Schemes", ICML 2019): counter-examples 1 and 2, with what they come to in closed form.

    python examples/reproductions/error_feedback.py

1. f(x) = x/4 on [-1, 1], whose gradient is 4 with probability 1/4 and -1 otherwise: its mean is 1/4, but its sign is
   mostly -. Here in 64 coordinates at once, each with draws of its own: one value alone would travel as it is.
2. f(x) = (1/2)|x1 + x2| + |x1 - x2| from (1, 1): no sign of its subgradient ever changes x1 + x2, so that f stays at 1
   or above.
"""

import argparse
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import roundelay as rd

COORDINATES, STEP, EARLY = 64, 0.005, 100
"""``EARLY`` rounds in, no coordinate has been at the interval's ends yet."""

WAYS = {
    "as it is": rd.Uplink(),
    "signs": rd.Uplink(codec=rd.Sign()),
    "signs, error feedback": rd.Uplink(codec=rd.Sign(), feedback="error"),
    "signs, EF21": rd.Uplink(codec=rd.Sign(), feedback="ef21"),
}


class Point(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.clone())


def noisy(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    """Make one step of SGD on x/4, by a gradient that is mostly of the wrong sign."""
    with torch.no_grad():
        x = model.get_parameter("x")
        x -= STEP * torch.where(torch.rand(len(x)) < 1 / 4, 4.0, -1.0)
    return 1, {}


def kinked(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    """Make one step along the subgradient (1/2) sign(x1 + x2) (1, 1) + sign(x1 - x2) (1, -1), sign(0) being 1."""
    with torch.no_grad():
        x = model.get_parameter("x")
        along, across = (1.0 if value >= 0 else -1.0 for value in (x[0] + x[1], x[0] - x[1]))
        x -= STEP * torch.tensor([along / 2 + across, along / 2 - across])
    return 1, {}


def onto_the_interval(updates: rd.Updates) -> Tensor:
    return updates.points.mean(0).clamp(-1, 1)


def job(way: rd.Uplink, num_rounds: int) -> rd.Job:
    """The first problem; one client, as in the paper."""
    return rd.Job(
        model=Point(torch.zeros(COORDINATES)),
        data=rd.FederatedData.from_datasets({"worker": TensorDataset(torch.zeros(1, 1), torch.zeros(1))}),
        learner=noisy,
        aggregator=onto_the_interval,
        uplink=way,
        num_rounds=num_rounds,
        evaluation=rd.Evaluation(every=0),
        simulation=rd.Simulation(executor="serial"),
        tracking=None,
    )


def slopes() -> dict[str, float]:
    """Return by how much x grows in a round, in steps: minus the mean gradient, and minus the mean of what is sent for
    it, (1 + 3q)(2q - 1) for a share q of gradients that are 4, of mean 1/4 and variance 3/16D.
    """
    signs = -(6 * (1 / 16 + 3 / 16 / COORDINATES) - 1 / 4 - 1)
    return {"as it is": -1 / 4, "signs": signs, "signs, error feedback": -1 / 4}


def first(num_rounds: int) -> Table:
    table = Table("f(x) = x/4", "bytes a round", f"slope, first {EARLY}", "closed form", "x in the end", "+-")
    for name, way in WAYS.items():
        for done in job(way, num_rounds).rounds():
            if done.number == EARLY:
                slope = float(done.state_dict()["x"].mean()) / (STEP * EARLY)
        x, expected = done.state_dict()["x"], slopes().get(name)
        table.add_row(
            name, str(done.row["bytes_up"]), f"{slope:+.3f}", "" if expected is None else f"{expected:+.3f}",
            f"{x.mean():+.3f}", f"{x.std() / len(x) ** 0.5:.3f}",
        )  # fmt: skip
    return table


def second(num_rounds: int) -> Table:
    table = Table("f(x) = |x1 + x2|/2 + |x1 - x2|", "x1", "x2", "x1 + x2", "f in the end")
    for name, way in WAYS.items():
        point = replace(job(way, num_rounds), model=Point(torch.ones(2)), learner=kinked, aggregator=None)
        a, b = point.run().model.get_parameter("x").tolist()
        table.add_row(name, f"{a:.4f}", f"{b:.4f}", f"{a + b:.4f}", f"{abs(a + b) / 2 + abs(a - b):.4f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    num_rounds = 1000 if parser.parse_args().quick else 3000
    console = Console(width=120)
    console.print(first(num_rounds))
    console.print(second(num_rounds))


if __name__ == "__main__":
    main()
