"""The client API: a few words that make a training script take part in a federation.

    import roundelay.client as fl

    fl.init()
    while fl.is_running():
        model = fl.receive()
        net.load_state_dict(model.params)
        ...  # the ordinary training loop
        fl.send(fl.FLModel(params=net.state_dict(), metrics={"loss": loss}, num_examples=len(data)))

The script runs unchanged as a process of the simulator (``roundelay run --script``) and in a thread of it. A script
without the loop (init, receive, train, send, end) is started again for each task. Between ``receive`` and ``send`` the
random generators of torch, numpy and ``random`` are those of this round and this client, so that a run repeats to the
bit; what a script keeps in variables from one round to the next lasts as long as its process, ``fl.state`` for good.
"""

import os
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from roundelay import metrics
from roundelay.channel import Channel, connect
from roundelay.client.exchange import Scalar
from roundelay.client.patch import patch as _patch
from roundelay.client.session import Session
from roundelay.errors import ClientError
from roundelay.messages import FLModel, ParamsType
from roundelay.wire import Frame

__all__ = [
    "FLModel",
    "ParamsType",
    "SummaryWriter",
    "get_config",
    "get_job_id",
    "get_site_name",
    "init",
    "is_evaluate",
    "is_running",
    "is_submit_model",
    "is_train",
    "log",
    "patch",
    "receive",
    "send",
    "shutdown",
    "state",
    "system_info",
]

ADDRESS, ALLOWED = "ROUNDELAY_AGENT", "ROUNDELAY_ALGORITHMS"
"""Environment variables by which whoever starts a script tells it where its agent listens, and which algorithms beyond
our own it may run ("module:Name", separated by commas).
"""


class _Here(threading.local):
    """The session of this thread, where scripts run as threads; else that of the process."""

    session: Session | None = None
    channel: Channel | None = None
    allowed: tuple[str, ...] = ()


_here = _Here()
_process: list[Session] = []


def attach(channel: Channel, allowed: tuple[str, ...]) -> None:
    """Have ``init`` in this thread talk to an agent through ``channel``; for whoever runs scripts in threads."""
    _here.channel, _here.allowed, _here.session = channel, allowed, None


def init(rank: int | str | None = None) -> None:
    """Join the federation that this script was started for.

    With several processes to a client (torchrun), only rank 0 talks; ``rank`` is that of the environment unless given.

    Raises:
        ClientError: nobody started this script as a client.
    """
    if str(rank if rank is not None else os.environ.get("RANK", "0")) != "0":
        return
    if _here.session is not None or (_process and _here.channel is None):
        raise ClientError("fl.init() was called twice; once is enough")
    if _here.channel is not None:
        _here.session = Session(_here.channel, _here.allowed)
        return
    address = os.environ.get(ADDRESS)
    if address is None:
        raise ClientError(
            "this script is a federated client, and nobody has started it as one; try: "
            "roundelay run --script THIS_SCRIPT --clients 2 --rounds 2 --model model:Net"
        )
    allowed = os.environ.get(ALLOWED, "")
    _process.append(Session(connect(address), tuple(name for name in allowed.split(",") if name)))


def report_failure(trace: str) -> None:
    """Tell the agent that the script of this process raised; for whoever runs the script."""
    if _process:
        _process[0].fail(trace)
    else:
        connect(os.environ[ADDRESS]).send(Frame("failed", {"traceback": trace}, {}))


def shutdown() -> None:
    """Leave the federation early; what was sent before counts."""
    _session().leave()


def is_running() -> bool:
    """Wait for the next task; return False when nothing is left to do."""
    return _session().is_running()


def receive() -> FLModel | None:
    """Return the model of the next task, or None when nothing is left to do.

    ``params`` is a state dict for ``load_state_dict``; ``current_round`` counts from 0.
    """
    return _session().receive()


def send(model: FLModel, clear_cache: bool = True) -> None:
    """Answer the task with ``params`` (a state dict, or a difference with ``params_type="DIFF"``), ``num_examples`` and
    ``metrics``; to an evaluation, with ``metrics``.

    Without ``num_examples`` all clients weigh the same. ``clear_cache`` is taken for the sake of scripts that give it.

    Raises:
        ClientError: nothing is to be answered, or the answer lacks what was asked for.
        LayoutError: ``params`` is another model than the one that was received; names the tensor.
        MetricError: a metric is not one number.
    """
    _session().send(model)


def is_train() -> bool:
    """Tell whether the model at hand is to be trained."""
    return _kind() == "train"


def is_evaluate() -> bool:
    """Tell whether the model at hand is to be evaluated: send metrics, no parameters."""
    return _kind() == "evaluate"


def is_submit_model() -> bool:
    """Tell whether this client's best model is asked for, to be measured on every client's data: send it."""
    return _kind() == "submit"


def get_site_name() -> str:
    """Return this client's name."""
    return _session().site.name


def get_job_id() -> str:
    """Return the name of the run."""
    return _session().site.job_id


def get_config() -> Mapping[str, Any]:  # Any: whatever the job says
    """Return what the job says to this client: "partition" (its part of the data), and the settings of the task.

    "partition" holds "client", this client's name, "number" and "num_clients", and with a split "file", a file that
    ``rd.Split.load`` reads: ``rd.Split.load(partition["file"])[partition["client"]]`` are its positions.
    """
    session = _session()
    return {**session.site.config, **(session.task.config if session.task else {})}


def system_info() -> dict[str, str]:
    """Return "site_name" and "job_id"."""
    return {"site_name": get_site_name(), "job_id": get_job_id()}


def log(key: str, value: float, data_type: object = None, global_step: int | None = None) -> None:
    """Send a number to the server's tracker, where it stands under this client's name.

    ``global_step`` counts whatever the script counts; rounds unless it is given. ``data_type`` is taken for the sake of
    scripts that give it: what is sent is a scalar.

    Raises:
        MetricError: ``value`` is not one number.
    """
    session = _session()
    if global_step is None:
        global_step = session.last_round - 1
    session.log(Scalar(key, metrics.scalar(key, value), int(global_step)))


class SummaryWriter:
    """Takes the place of TensorBoard's: its scalars go to the server's tracker, under this client's name."""

    def add_scalar(self, tag: str, scalar: float, global_step: int | None = None, **ignored: object) -> None:
        log(tag, scalar, global_step=global_step)

    def add_scalars(self, main_tag: str, tag_scalar_dict: Mapping[str, float], global_step: int | None = None) -> None:
        for name, value in tag_scalar_dict.items():
            log(f"{main_tag}/{name}", value, global_step=global_step)

    def flush(self) -> None:
        """Nothing waits: each number is sent as it comes."""

    def close(self) -> None:
        """Nothing is held."""


def patch(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> None:
    """Have the algorithm correct the gradients of every step of ``optimizer`` (FedProx, SCAFFOLD, FedDyn), and count
    the steps (FedNova, SCAFFOLD). Call it once for each optimizer; it lasts over rounds, and again changes nothing.

    ``model`` says whose parameters they are, where the optimizer does not hold all of them in the model's order.
    """
    session = _session()
    if optimizer not in session.patched:
        _patch(optimizer, model, session.site.layout, lambda: session.fit)
        session.patched.add(optimizer)


class _State(MutableMapping[str, Any]):  # Any: tensors and numbers
    """Names the session's state, whichever session is the caller's."""

    def __getitem__(self, name: str) -> Any:
        return _session().state[name]

    def __setitem__(self, name: str, value: Any) -> None:
        _session().state[name] = value

    def __delitem__(self, name: str) -> None:
        del _session().state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_session().state)

    def __len__(self) -> int:
        return len(_session().state)

    def __repr__(self) -> str:
        return repr(_session().state)


state: MutableMapping[str, Any] = _State()
"""Tensors and numbers that the framework keeps for this client between its tasks, whether or not its process lives on.
A change counts once the update that it came with was taken in: a refused or late client is as it was before.
"""


def _session() -> Session:
    if _here.session is not None:
        return _here.session
    if not _process:
        raise ClientError("call fl.init() first, and with several processes to a client talk in rank 0 only")
    return _process[0]


def _kind() -> str | None:
    task = _session().task
    return task.kind if task else None
