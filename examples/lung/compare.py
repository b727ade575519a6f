"""Death within a year, at 17 institutions: all patients in one place, FedAvg, and each institution by itself.

Each seed draws other test patients at every institution. Everything is measured on the test patients of all of them
together; an institution that trains alone is measured on its own. Run with: python examples/lung/compare.py --seeds 40
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import roundelay as rd
from roundelay.data import Examples, FederatedData, lung
from roundelay.learner import AUC, LocalSGD
from roundelay.models import MLP, Logistic

MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic regression": lambda: Logistic(7, 2),
    "MLP, 16 hidden units": lambda: MLP(7, [16], 2),
}


def trained(model: Callable[[], nn.Module], data: FederatedData, args: argparse.Namespace, seed: int) -> nn.Module:
    job = rd.Job(
        model=model,
        data=data,
        learner=LocalSGD(lr=args.lr, batch_size=8, local_epochs=args.local_epochs, weight_decay=args.weight_decay),
        num_rounds=args.rounds,
        seed=seed,
        evaluation=rd.Evaluation(every=args.rounds),
        simulation=rd.Simulation("serial"),
        tracking=None,
    )
    return job.run().model


def together(data: FederatedData) -> FederatedData:
    """Return what all institutions train on, in the hands of one."""
    parts = [whole(data.train(client)) for client in data.clients]
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return FederatedData.from_datasets({"all": (inputs, targets)}, data.held_out)


def whole(part: Examples) -> tuple[Tensor, Tensor]:
    (batch,) = part.batches(torch.arange(len(part)), len(part))
    return batch


def measured(pairs: Iterator[tuple[nn.Module, Examples]]) -> tuple[float, float]:
    """Return accuracy and AUC of all examples together, each part scored by its own model."""
    rows, hits = [], []
    with torch.no_grad():
        for model, part in pairs:
            inputs, targets = whole(part)
            outputs = model(inputs)
            rows.append(AUC().rows(outputs, targets))
            hits.append((outputs.argmax(1) == targets).double())
    return float(torch.cat(hits).mean()), AUC().result(torch.cat(rows))["auc"]


def compared(model: Callable[[], nn.Module], args: argparse.Namespace, seed: int) -> dict[str, tuple[float, float]]:
    data = lung(args.data, seed=seed)
    tests = {client: test for client in data.clients if (test := data.test(client)) is not None}
    federated, central = (trained(model, parts, args, seed) for parts in (data, together(data)))
    alone = {client: trained(model, data.among([client]), args, seed) for client in tests}
    return {
        "one place": measured((central, test) for test in tests.values()),
        "FedAvg": measured((federated, test) for test in tests.values()),
        "each alone": measured((alone[client], test) for client, test in tests.items()),
    }


def shown(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder with lung.csv; without it, the table inside lifelines")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    args = parser.parse_args()
    began_s = time.process_time()
    print(f"| model | trained | accuracy | AUC | (mean ± standard error over {args.seeds} seeds)")
    for name, model in MODELS.items():
        results = [compared(model, args, seed) for seed in range(args.first_seed, args.first_seed + args.seeds)]
        for how in results[0]:
            accuracies, areas = ([result[how][which] for result in results] for which in (0, 1))
            print(f"| {name} | {how} | {shown(accuracies)} | {shown(areas)} |", flush=True)
        gaps = [result["FedAvg"][1] - result["one place"][1] for result in results]
        print(f"| {name} | FedAvg less one place | | {shown(gaps)} |", flush=True)
    print(f"{time.process_time() - began_s:.0f} s of CPU time")


if __name__ == "__main__":
    main()
