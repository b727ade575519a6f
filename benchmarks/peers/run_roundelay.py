"""The workloads in roundelay, on the executor that it is told.

python benchmarks/peers/run_roundelay.py WORKLOAD --rounds N --folder DIR [--executor processes]
"""

import argparse
import sys
from functools import partial
from importlib.metadata import version

import torch
from runner import Asked, first_model, now
from workloads import LEARNING_RATE, SEED

import roundelay as rd


def federated(asked: Asked) -> rd.FederatedData:
    workload, (inputs, targets) = asked.workload, asked.data()
    owners = torch.arange(workload.num_clients).repeat_interleave(workload.examples_per_client)
    split = rd.Split.from_owners([f"{client:04d}" for client in range(workload.num_clients)], owners)
    return rd.FederatedData.from_split(rd.Data(rd.data.TensorExamples(inputs, targets)), split)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--executor", default="processes")
    chosen, rest = parser.parse_known_args()
    asked = Asked.read(rest)
    model, ended = first_model(asked.workload), list[float]()
    job = rd.Job(
        model=partial(first_model, asked.workload),
        data=partial(federated, asked),
        learner=rd.LocalSGD(lr=LEARNING_RATE, batch_size=asked.workload.batch_size, local_epochs=1),
        num_rounds=asked.rounds,
        clients_per_round=asked.workload.cohort,
        seed=SEED,
        evaluation=rd.Evaluation(every=0),
        simulation=rd.Simulation(chosen.executor),
        tracking=None,
    )
    run = job.start()
    for _ in run:
        ended.append(now())
    model.load_state_dict(run.history().model.state_dict())
    asked.tell(model, ended, {"roundelay": version("roundelay")})


if __name__ == "__main__":
    sys.exit(main())
