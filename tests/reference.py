"""Plain PyTorch to compare with: no layout, no protocol, no executor. Vectors are float64: sums in another order then
agree to ten digits, and nothing is left to tolerance.

And a problem with two parameters whose every step can be written down: F_i(x) = sum of a_ij / 2 * (x_j - b_ij)^2.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from networks import Plain, small_job
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import roundelay as rd
from roundelay import seeds
from roundelay.data import TensorExamples

SEED = 7  # that of small_job


class Smooth(Plain):
    """A small network in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def flat(state: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in state.values()])


def initial() -> Tensor:
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(SEED, 0, 0, "", "model"))
        return parameters_to_vector(Smooth().parameters()).detach()


def train(
    start: Tensor,
    data: TensorExamples,
    round: int,
    client: str,
    *,
    correct: Callable[[Tensor, Tensor], Tensor] | None = None,
    epochs: int = 2,
    batch: int = 4,
    lr: float = 0.1,
    momentum: float = 0.0,
    fit: int = 0,
) -> tuple[Tensor, int]:
    """Return the end point and the number of steps; ``correct(gradient, params)`` gives the gradient to use instead."""
    model = Smooth()
    vector_to_parameters(start.clone(), model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    shuffle = seeds.generator(SEED, round, 0, client, f"shuffle-{fit}" if fit else "shuffle")
    num_steps = 0
    for _ in range(epochs):
        for picked in torch.randperm(len(data), generator=shuffle).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.inputs[picked]), data.targets[picked]).backward()
            if correct is not None:
                params = parameters_to_vector(model.parameters()).detach()
                gradient = correct(torch.cat([p.grad.reshape(-1) for p in model.parameters()]), params)
                sizes = [p.numel() for p in model.parameters()]
                for p, part in zip(model.parameters(), gradient.split(sizes), strict=True):
                    p.grad = part.view_as(p)
            optimizer.step()
            num_steps += 1
    return parameters_to_vector(model.parameters()).detach(), num_steps


@torch.no_grad()
def loss_of(params: Tensor, data: TensorExamples) -> Tensor:
    model = Smooth()
    vector_to_parameters(params.clone(), model.parameters())
    return nn.functional.cross_entropy(model(data.inputs), data.targets)


def weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def assert_follows(finished: rd.Round, expected: Tensor) -> None:
    torch.testing.assert_close(flat(finished.state_dict()), expected, rtol=1e-9, atol=1e-11)


# ---- two parameters -------------------------------------------------------------------------------------------------


class Point(nn.Module):
    """Two parameters, at (1, -2) at first. An input is (b_1, b_2, a_1, a_2)."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        target, curvature = x.double().split(2, dim=1)
        return curvature.sqrt() * (self.at - target)


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().sum(1).mean() / 2


def point(b: Sequence[float], a: Sequence[float] = (1.0, 1.0), num_examples: int = 1) -> TensorExamples:
    """A client whose every example is the same; its gradient is a * (x - b)."""
    inputs = torch.tensor([[*b, *a]], dtype=torch.float64).repeat(num_examples, 1)
    return TensorExamples(inputs, torch.zeros(num_examples, dtype=torch.int64))


def point_job(
    clients: Mapping[str, TensorExamples], algorithm: object, *, steps: int = 1, lr: float = 0.1, **changes: object
) -> rd.Job:
    learner = rd.LocalSGD(lr=lr, batch_size=0, local_batches=steps, loss=half_squares)
    settings = {
        "model": Point,
        "data": rd.FederatedData.from_datasets(dict(clients)),
        "algorithm": algorithm,
        "learner": learner,
        "clients_per_round": len(clients),
        "num_rounds": 1,
        "evaluation": rd.Evaluation(every=0, measures=()),
    }
    return small_job(**{**settings, **changes})


def end_of(job: rd.Job) -> list[float]:
    return job.run().model.state_dict()["at"].tolist()
