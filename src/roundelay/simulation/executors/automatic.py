"""``executor = "auto"``: which executor trains a job's clients, by a rule that looks at the job and at nothing else.

Never at the clock, at how many cores there are or at what memory is free: a run's bits must not hang on how busy a
machine is, and "vectorized" has bits of its own. Where the numbers come from: docs/decisions/0023-auto.md.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from roundelay import seeds
from roundelay.client.launch import ScriptLearner
from roundelay.learner.local_sgd import LocalSGD
from roundelay.learner.protocol import on_device
from roundelay.learner.stacked import obstacle
from roundelay.stacking import StackTrainer
from roundelay.trainer import Trainer

MIN_TOGETHER = 16
"""Of fewer clients side by side, a step costs more than what it saves."""

MAX_PARAMS = 2**16
"""Beyond, on a CPU: the rows of a block no longer lie in its cache."""

MAX_FLOPS_A_CALL = 100_000
"""Beyond, on a CPU: arithmetic takes most of the time, whoever calls it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rule looks at.

    ``at_once`` is how many clients may be under way at the same time, ``together`` how many are asked to train from one
    model in one go; ``alone`` says why clients cannot train side by side, or is None. ``rows`` are the clients that
    fit into a block. ``flops_a_call`` counts the floating-point operations (of products and convolutions, two for each
    multiplication and addition) in the forward pass of a batch, over the calls of torch that it takes; infinite where
    it was not counted, since more parameters than ``MAX_PARAMS`` decide it. ``measures`` says whether clients evaluate
    models on their own data.
    """

    scripts: bool = False
    device: str = "cpu"
    at_once: int = 1
    together: int = 1
    measures: bool = False
    alone: str | None = None
    num_params: int = 0
    rows: int = 0
    flops_a_call: float = math.inf


@dataclass(frozen=True, slots=True)
class Choice:
    """An executor's name, and why it is the one."""

    executor: str
    reason: str


def choose(facts: Facts) -> Choice:
    if facts.scripts:
        return Choice("processes", "clients are scripts, each in a process of its own")
    if facts.at_once == 1 and not facts.measures:
        return Choice("serial", "one client trains at a time")
    if facts.alone is not None:
        return Choice("processes", facts.alone)
    beside = min(facts.together, facts.rows)
    if beside < MIN_TOGETHER:
        what = "are asked together" if facts.together <= facts.rows else "fit into a block (simulation.block_mib)"
        return Choice("processes", f"{beside} clients {what}, and side by side pays from {MIN_TOGETHER} on")
    if facts.device != "cpu":
        return Choice("vectorized", f"{beside} clients fit side by side on the {facts.device} device")
    if facts.num_params > MAX_PARAMS:
        return Choice("processes", f"the model has {facts.num_params:,} parameters, and side by side pays up to "
                                   f"{MAX_PARAMS:,}")  # fmt: skip
    pace = f"a call of torch does {facts.flops_a_call:,.0f} floating-point operations"
    if facts.flops_a_call > MAX_FLOPS_A_CALL:
        return Choice("processes", f"{pace}, and side by side pays up to {MAX_FLOPS_A_CALL:,}")
    fits = f"{facts.num_params:,} parameters a client fit into the cache"
    return Choice("vectorized", f"{pace}, less than the call itself costs, and {fits}")


def examine(
    trainer: Trainer, *, device: str, block_bytes: int, at_once: int, together: int,
    own_settings: bool, measures: bool,
) -> Facts:  # fmt: skip
    """Return the facts of a job. Of its data, the first client's first batch is looked at.

    ``own_settings``: whether tasks have settings of their own; such a task is trained alone.
    """
    learner, bound = trainer.work.learner, trainer.bound
    if isinstance(learner, ScriptLearner):
        return Facts(scripts=True)
    alone = obstacle(bound.module, trainer.layout, learner)
    if alone is None and own_settings:
        alone = "client_config gives tasks settings of their own, which are trained alone"
    if alone is not None:
        return Facts(False, device, at_once, together, measures, alone.partition(";")[0])
    num_params, pace = trainer.layout.num_params, math.inf
    if device == "cpu" and num_params <= MAX_PARAMS:
        pace = _flops_a_call(trainer)
    rows = block_bytes // StackTrainer(trainer).bytes_a_client()
    return Facts(False, device, at_once, together, measures, None, num_params, rows, pace)


def _flops_a_call(trainer: Trainer) -> float:
    work = trainer.work
    assert isinstance(work.learner, LocalSGD)
    part = work.data.train(work.data.clients[0])
    size = min(len(part), work.learner.size(len(part)))
    inputs, _ = next(iter(part.batches(torch.arange(size), size)))
    module = copy.deepcopy(trainer.bound.module).train()  # as it trains: some layers evaluate in one fused call
    calls, flops = _Calls(), FlopCounterMode(display=False)
    with seeds.preserved_globals(), torch.no_grad(), flops, calls:
        module(on_device(inputs, trainer.bound.device))
    return flops.get_total_flops() / max(1, calls.count)


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of torch's operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))
