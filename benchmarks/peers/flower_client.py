"""Flower's client, in a module that its workers import: what is kept here outlives a message."""

from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from runner import Asked, resolved, rows_of, train
from torch import Tensor, nn
from workloads import Workload


@cache
def kept(name: str, check: bool, folder: str) -> tuple[Workload, nn.Module, Tensor, Tensor]:
    """Return what a worker keeps from one client to the next."""
    torch.set_num_threads(1)
    workload = resolved(name, check)
    return workload, workload.make_model(), *Asked(workload, 0, Path(folder), check).data()


def client_app(asked: Asked) -> ClientApp:
    app, key = ClientApp(), (asked.workload.name, asked.check, str(asked.folder))

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        workload, model, inputs, targets = kept(*key)
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        model.load_state_dict(arrays.to_torch_state_dict())
        rows = rows_of(int(context.node_config["partition-id"]), workload)
        train(model, inputs[rows], targets[rows], workload.batch_size)
        metrics = MetricRecord({"num-examples": len(rows)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app
