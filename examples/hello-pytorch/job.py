"""Two sites train together for two rounds, each in a process of its own that runs ``client_with_eval.py``."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import roundelay as rd

from model import Net


def main() -> None:
    args = arguments()
    client_args = ["--data", str(Path(args.data).resolve())] if args.data else []
    if args.limit is not None:
        client_args += ["--limit", str(args.limit)]
    job = rd.Job(
        model=Net,
        script=Path(__file__).with_name("client_with_eval.py"),
        script_args=client_args,
        num_rounds=args.rounds,
        workflow=rd.CrossSite() if args.cross_site else rd.Rounds(),
        stopping=rd.Stopping(metric="accuracy"),  # what best.pt is chosen by: the mean of what the sites measured
        tracking=rd.Tracking(tensorboard=True),
        name="hello-pytorch",
    )
    history = job.run(rd.Simulation(executor=args.executor, num_clients=args.clients))
    for row in history.rows:
        accuracy, loss = row["train_accuracy"], row["train_loss"]
        print(f"round {row['round']}: accuracy {accuracy:.3f} of the model received, loss {loss:.3f} in training it")
    if args.cross_site:
        show(history.records["cross_site"], "accuracy")
    best = history.best("train_accuracy")
    print(f"best model: {history.run_folder}/best.pt, which has {best:.3f}; the last one: last.pt")
    print(f"curves: tensorboard --logdir {history.run_folder}/tensorboard")
    print(f"sha256: {history.sha256}")


def show(table: Mapping[str, Any], metric: str) -> None:
    """Print the matrix: a row for each model, a column for each site on whose data it was measured."""
    print(f"{metric:<14}", *(f"{client:>8}" for client in table["clients"]))
    for model, row in zip(table["models"], table[metric], strict=True):
        print(f"{model:<14}", *("    lost" if value is None else f"{value:8.3f}" for value in row))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cross-site", action="store_true", help="every site's best model on every site's data")
    parser.add_argument("--executor", choices=["processes", "threads"], default="processes")
    parser.add_argument("--data", default=os.environ.get("ROUNDELAY_DATA"), help="folder of CIFAR-10's binary files")
    parser.add_argument("--limit", type=int, help="so many examples a site")
    return parser.parse_args()


if __name__ == "__main__":
    main()
