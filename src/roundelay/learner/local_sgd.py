"""Local training by a torch optimiser."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.components import unknown_message
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError, DataError
from roundelay.layout import Bound
from roundelay.learner.cursor import EPOCH, LEFT, Cursor, Stretch
from roundelay.learner.protocol import Augment, Context, LossFunction, on_device
from roundelay.learner.schedules import Constant
from roundelay.messages import Task

WHEN_EXHAUSTED = ("continue", "stop", "skip")


@dataclass(frozen=True, slots=True)
class LocalSGD:
    """Mini-batch training on the client, a new optimiser for every task.

    ``local_epochs`` (1 unless given) or ``local_batches`` says how much; ``batch_size`` of 0 or less is the full batch.
    With ``local_batches`` a client goes on in its epoch where its last update that counted stopped, and
    ``when_exhausted`` says what happens where it has fewer batches left: "continue" begins its next epoch within the
    task; under "stop" and "skip" the task ends with the epoch, and a client that has no batch left ends the epoch for
    everybody, or is not asked until nobody has one. ``augment(inputs, targets, generator)`` changes each batch before
    it is trained on; what it draws is keyed by the task.
    ``optimizer`` is the name of a class in ``torch.optim`` or a factory ``(params, lr) -> optimizer``;
    ``optimizer_args`` go to the named class beside lr, momentum and weight_decay. ``schedule(round)`` scales lr, rounds
    count from 1. ``loss(outputs, targets)`` is a mean over the batch. A task's ``config`` may override any plain field.
    """

    lr: float
    batch_size: int = 32
    local_epochs: int | None = None
    local_batches: int | None = None
    when_exhausted: str = "continue"
    optimizer: str | Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = "SGD"
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)  # Any: each optimiser has its own
    clip_norm: float | None = None
    schedule: Callable[[int], float] = Constant()
    loss: LossFunction = F.cross_entropy
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"learner lr must be a positive number, got {self.lr!r}")
        if self.local_epochs is not None and self.local_batches is not None:
            raise ConfigError("give local_epochs or local_batches, not both: each says how long a client trains")
        for name in ("local_epochs", "local_batches"):
            amount = getattr(self, name)
            if amount is not None and amount < 1:
                raise ConfigError(f"learner {name} must be at least 1, got {amount!r}")
        given = self.when_exhausted
        if given not in WHEN_EXHAUSTED:
            raise ConfigError(unknown_message(f"learner when_exhausted {given!r}", str(given), WHEN_EXHAUSTED))
        if self.ends_together and self.local_batches is None:
            raise ConfigError(f'learner when_exhausted = "{given}" says what happens to an epoch that is '
                              "trained on a few batches at a time: give local_batches")  # fmt: skip
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"learner clip_norm must be positive, got {self.clip_norm!r}")
        if isinstance(self.optimizer, str):
            known = inspect.signature(_optimizer_class(self.optimizer)).parameters
            for name in self._arguments():
                if name not in known:
                    raise ConfigError(f"optimizer {self.optimizer!r} takes no {name!r}; it takes {sorted(known)}")

    @property
    def ends_together(self) -> bool:
        """Whether all clients begin and end an epoch together, not each its own."""
        return self.when_exhausted != "continue"

    @property
    def corrects(self) -> bool:
        return True

    @property
    def reports(self) -> Set[str]:
        if not self._is_sgd:
            return {"num_steps"}
        return {"num_steps", "a_norm"} if self.momentum else {"num_steps", "a_norm", "lr_sum"}

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        self = self.configured(context.task)
        lr = self.lr * self.schedule(context.task.round)
        module, device = bound.module, bound.device
        trained = [p for p in bound.parameters if p.requires_grad]
        step = self._step(trained, lr)
        losses: list[tuple[Tensor, int]] = []  # read when all steps are done: on an accelerator, reading waits
        stretches = self._stretches(len(examples), context)
        batches = self._batches(examples, stretches, context)
        if self.augment is not None:
            batches = itertools.starmap(partial(self.augment, generator=context.generator("augment")), batches)
        for inputs, targets in batches:
            for parameter in trained:
                parameter.grad = None
            loss = self.loss(module(on_device(inputs, device)), on_device(targets, device))
            loss.backward()  # type: ignore[no-untyped-call]
            if ask.correct is not None:
                bound.correct_gradients(ask.correct)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(trained, self.clip_norm)
            step()
            losses.append((loss.detach(), len(targets)))
        num_steps, num_seen = len(losses), sum(size for _, size in losses)
        metrics = {"train_loss": sum(loss.item() * size for loss, size in losses) / num_seen}
        end = Cursor(stretches[-1].epoch, stretches[-1].stop) if stretches else None
        if end is not None and self.ends_together:
            metrics[LEFT] = float(end.left(len(examples), self.size(len(examples))))
        return Fitted(
            params=bound.params(),
            num_examples=float(len(examples)),
            num_steps=float(num_steps),
            lr_sum=num_steps * lr if "lr_sum" in self.reports else math.nan,
            a_norm=accumulation(num_steps, self.momentum, lr * ask.pull) if self._is_sgd else math.nan,
            metrics=metrics,
            memory={} if end is None else end.memory(),
        )

    def configured(self, task: Task) -> "LocalSGD":
        """Return this learner with the task's own settings in place."""
        if not task.config:
            return self
        known = [f.name for f in fields(self) if f.name != "when_exhausted"]
        config = {name: value for name, value in task.config.items() if name != EPOCH or not self.ends_together}
        for name in config:
            if name not in known:
                raise ConfigError(
                    f"client {task.client!r}: configuration {name!r} is not a setting of LocalSGD; it has {known}"
                )
        if self.ends_together and "local_epochs" in config:
            raise ConfigError(f"client {task.client!r}: configuration 'local_epochs' would take it out of the epoch "
                              f'that all end together (when_exhausted = "{self.when_exhausted}")')  # fmt: skip
        changes: dict[str, Any] = config
        if "local_epochs" in changes or "local_batches" in changes:
            changes = {"local_epochs": None, "local_batches": None, **changes}
        return replace(self, **changes)

    def size(self, num_examples: int) -> int:
        """Return how many examples a batch has, but for the last one of an epoch."""
        return self.batch_size if self.batch_size > 0 else num_examples

    def orders(self, num_examples: int, context: Context) -> Iterator[Tensor]:
        """Yield the order of each whole epoch of a task, int64 positions."""
        generator = context.generator("shuffle")
        for _ in range(self.local_epochs or 1):
            yield torch.randperm(num_examples, generator=generator)

    def _stretches(self, num_examples: int, context: Context) -> Sequence[Stretch]:
        """Return the parts of epochs that this task goes through; none where it goes through whole epochs of its own.

        Raises:
            DataError: there is nothing to train on.
        """
        if self.local_batches is None:
            return ()
        cursor, epoch = Cursor.read(context.memory), context.task.config.get(EPOCH)
        if isinstance(epoch, int) and epoch > cursor.epoch:
            cursor = Cursor(epoch)
        wraps = not self.ends_together or context.task.kind == "submit"  # which is of no epoch: training is over
        stretches: Sequence[Stretch] = ()
        if num_examples:
            stretches = cursor.ahead(num_examples, self.size(num_examples), self.local_batches, wraps=wraps)
        if not stretches:
            raise DataError(f"client {context.task.client!r} was asked to train in epoch {cursor.epoch} and has none "
                            f"of its {num_examples} examples left")  # fmt: skip
        return stretches

    def _batches(
        self, examples: Examples, stretches: Sequence[Stretch], context: Context
    ) -> Iterator[tuple[Any, Any]]:  # Any: see Examples
        number, size = len(examples), self.size(len(examples))
        if not stretches:
            for order in self.orders(number, context):
                yield from examples.batches(order, size)
        for epoch, start, stop in stretches:
            order = torch.randperm(number, generator=context.shuffle(epoch))
            yield from examples.batches(order[start:stop], size)

    def _step(self, trained: list[nn.Parameter], lr: float) -> Callable[[], object]:
        """Return a function that makes one optimiser step on the gradients as they are then."""
        if not isinstance(self.optimizer, str):
            return self.optimizer(trained, lr).step
        if self._is_sgd:
            return _Descent(trained, lr, self.momentum, self.weight_decay)
        return _optimizer_class(self.optimizer)(trained, lr=lr, **self._arguments()).step

    @property
    def _is_sgd(self) -> bool:
        return isinstance(self.optimizer, str) and self.optimizer.lower() == "sgd" and not self.optimizer_args

    def _arguments(self) -> dict[str, Any]:  # Any: see optimizer_args
        """Return the named optimiser's arguments beside lr."""
        given = {name: getattr(self, name) for name in ("momentum", "weight_decay") if getattr(self, name)}
        return {**self.optimizer_args, **given}


def accumulation(num_steps: int, momentum: float, decay: float) -> float:
    """Return the L1 norm of the vector a with which an end point holds the gradients: start - end = lr * sum a_k g_k.

    The optimiser is SGD with ``momentum`` rho; a proximal term of strength ``decay`` / lr draws back to the start. In
    closed form, tau steps give tau; (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho); (1 - (1 - decay)^tau) / decay.

    >>> accumulation(3, 0.0, 0.0), accumulation(3, 0.5, 0.0), accumulation(3, 0.0, 0.5)
    (3.0, 4.25, 1.75)
    """
    if not (momentum or decay):
        return float(num_steps)
    total, velocity, moved = 0.0, 1.0, 1.0  # one gradient of 1, a step ago: how far has it led, two steps ago, ...
    for _ in range(num_steps):
        total += abs(moved)
        velocity = momentum * velocity - decay * moved
        moved += velocity
    return total


class _Descent:
    """``torch.optim.SGD``'s own arithmetic, to the bit, without what its class does around each step.

    Its profiler marks and hooks take a quarter of a client's time where the model is small.
    """

    def __init__(self, trained: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        self._trained, self._lr, self._momentum, self._weight_decay = trained, lr, momentum, weight_decay
        self._buffers: dict[Tensor, Tensor | None] = {}

    @torch.no_grad()
    def __call__(self) -> None:
        moved: list[Tensor] = [p for p in self._trained if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        if not (self._momentum or self._weight_decay):
            torch._foreach_add_(moved, gradients, alpha=-self._lr)
            return
        buffers = [self._buffers.get(p) for p in moved]
        sgd(
            moved, gradients, buffers, foreach=False, fused=False, lr=self._lr, momentum=self._momentum,
            weight_decay=self._weight_decay, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        if self._momentum:
            self._buffers.update(zip(moved, buffers, strict=True))


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    known = {
        n.lower(): c
        for n, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    if name.lower() not in known:
        raise ConfigError(f"optimizer {name!r} is not in torch.optim; it has {sorted(set(known) - {'optimizer'})}")
    return known[name.lower()]
