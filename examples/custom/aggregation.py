"""Your own aggregation rule: a function of a round's updates, here one that halves the way to each client in turn."""

import sys

from torch import Tensor

import roundelay as rd


def halfway(updates: rd.Updates) -> Tensor:
    out = updates.previous
    for client in updates.points:  # one row a client, in order of their ids
        out = (out + client) / 2
    return out


def main(num_rounds: int = 10) -> rd.History:
    job = rd.Job(
        model=rd.models.SmallCNN,
        data=rd.data.digits,
        partition=rd.IID(num_clients=20),
        learner=rd.LocalSGD(lr=0.05, batch_size=10, local_epochs=1),
        aggregator=halfway,  # rd.Robust() and its like go here too
        num_rounds=num_rounds,
        clients_per_round=5,
    )
    return job.run()


if __name__ == "__main__":
    print(f"accuracy {main(*map(int, sys.argv[1:])).metrics['accuracy']:.3f}")
