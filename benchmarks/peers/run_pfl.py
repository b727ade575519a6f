"""The workloads in pfl-research: its FedAvg on its SimulatedBackend, in as many processes as torchrun starts.

    torchrun --nproc-per-node 2 benchmarks/peers/run_pfl.py WORKLOAD --rounds N --folder DIR

As its guide to fast simulations advises: a process a core, which share a cohort and reduce their sums; data in memory.
Clients are evaluated in its first round only, which it always does; that one is not timed.
"""

import os
import sys
from functools import partial
from importlib.metadata import version

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from runner import Asked, first_model, now, rows_of
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import LEARNING_RATE, Workload


class Measured(nn.Module):
    """A module as pfl wants one: with its loss, and its metrics, of which there are none to speak of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.train()
        return F.cross_entropy(self.network(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        self.eval()
        return {"loss": Weighted(F.cross_entropy(self.network(x), y, reduction="sum").item(), len(y))}


class Clock(TrainingProcessCallback):
    def __init__(self) -> None:
        self.ended = list[float]()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ended.append(now())
        return False, Metrics()


def user(inputs: Tensor, targets: Tensor, workload: Workload, client: int) -> PyTorchTensorDataset:
    rows = rows_of(client, workload)
    return PyTorchTensorDataset((inputs[rows], targets[rows]), user_id=str(client))


def main() -> None:
    asked = Asked.read()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    network = Measured(first_model(asked.workload))
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    sampler = get_user_sampler("minimize_reuse", list(range(asked.workload.num_clients)))
    clients = FederatedDataset(partial(user, *asked.data(), asked.workload), sampler)
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=asked.rounds, evaluation_frequency=10**9,
            train_cohort_size=asked.workload.cohort, val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=clients, val_data=clients, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=asked.workload.batch_size
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=asked.workload.batch_size),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        asked.tell(network, clock.ended, {"pfl": version("pfl")})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
