"""What changes the batches that are trained on draws for its task alone, whoever trains it."""

from dataclasses import dataclass, replace

import torch
from networks import Plain, federated, small_job
from torch import Tensor

import roundelay as rd


@dataclass(frozen=True)
class Noise:
    scale: float

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return inputs + self.scale * torch.randn(inputs.shape, generator=generator), targets


def job(scale: float, **changes: object) -> rd.Job:
    learner = rd.LocalSGD(lr=0.1, batch_size=4, local_epochs=2, augment=Noise(scale))
    return small_job(model=Plain, learner=learner, **changes)


def test_the_bits_do_not_depend_on_who_trains() -> None:
    serial, pool = job(0.5).run(), job(0.5, simulation=rd.Simulation(num_workers=2)).run()
    assert serial.sha256 == pool.sha256


def test_what_is_added_changes_training_and_nothing_else() -> None:
    plain = small_job(model=Plain, evaluation=rd.Evaluation(clients_every=1))
    assert replace(job(0.0), evaluation=plain.evaluation).run().sha256 == plain.run().sha256
    assert job(0.5).run().sha256 != plain.run().sha256
    before = {client: part[0][0].clone() for client in federated().clients for part in [federated().train(client)]}
    data = federated()
    small_job(model=Plain, data=data, learner=job(0.5).learner).run()
    assert all(torch.equal(data.train(client)[0][0], first) for client, first in before.items())


def test_every_round_and_client_draws_anew() -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Noted:
        def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            seen.append(torch.rand(3, generator=generator))
            return inputs, targets

    learner = rd.LocalSGD(lr=0.1, batch_size=100, augment=Noted())
    small_job(model=Plain, learner=learner, clients_per_round=6, num_rounds=2).run()
    assert len(seen) == 12
    assert len({tuple(draw.tolist()) for draw in seen}) == 12
