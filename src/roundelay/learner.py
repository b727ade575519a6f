"""What happens on a client's own data: local training, evaluation, and the protocol by which a user's own loop replaces
them.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from roundelay import metrics, seeds
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError
from roundelay.layout import Bound
from roundelay.messages import FLModel, Task

__all__ = ["Constant", "Cosine", "FunctionLearner", "LocalSGD", "Step", "accuracy"]
"""What a job file can name; the rest is for the framework."""

LossFunction = Callable[[Any, Any], Tensor]  # Any: whatever the user's model returns and the user's data holds
Metric = Callable[[Any, Any], Tensor]
"""``metric(outputs, targets)`` gives one value per example, of shape (B,)."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest output (B, classes) is the target (B,), else 0."""
    return (outputs.argmax(-1) == targets).float()


@dataclass(frozen=True, slots=True)
class Constant:
    """The same learning rate in every round."""

    def __call__(self, round: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Cosine:
    """Fall from 1 to ``final`` along half a cosine over ``num_rounds`` rounds, and stay there."""

    num_rounds: int
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.num_rounds < 1:
            raise ConfigError(f"schedule Cosine: num_rounds must be at least 1, got {self.num_rounds!r}")

    def __call__(self, round: int) -> float:
        done = min(round - 1, self.num_rounds) / self.num_rounds
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True)
class Step:
    """Multiply by ``factor`` after every ``every`` rounds."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"schedule Step: every must be at least 1, got {self.every!r}")

    def __call__(self, round: int) -> float:
        return float(self.factor ** ((round - 1) // self.every))


@dataclass(frozen=True, slots=True)
class Context:
    """What a learner may know beside model and data: the task, the job's seed, and which fit of the task it is."""

    task: Task
    seed: int
    index: int = 0

    def key(self, purpose: str) -> int:
        task = self.task
        return seeds.key(self.seed, task.round, task.attempt, task.client, self._purpose(purpose))

    def generator(self, purpose: str) -> torch.Generator:
        task = self.task
        return seeds.generator(self.seed, task.round, task.attempt, task.client, self._purpose(purpose))

    def _purpose(self, purpose: str) -> str:
        return f"{purpose}-{self.index}" if self.index else purpose


@runtime_checkable
class Learner(Protocol):
    """What trains on a client: ``LocalSGD``, or your own object with these three."""

    @property
    def corrects(self) -> bool:
        """Whether a gradient correction is applied; an algorithm that needs one is refused at start where it is not."""

    @property
    def reports(self) -> Set[str]:
        """Return which of "num_steps", "lr_sum" and "a_norm" a fit reports (see ``Fitted``), as those that an algorithm
        needs are refused at start where they are not.
        """

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        """Train ``bound.module``, which already stands at ``ask.start``, on one client's examples."""


@dataclass(frozen=True, slots=True)
class LocalSGD:
    """Mini-batch training on the client, a new optimiser for every task.

    ``local_epochs`` (1 unless given) or ``local_batches`` says how much; ``batch_size`` of 0 or less is the full batch.
    ``optimizer`` is the name of a class in ``torch.optim`` or a factory ``(params, lr) -> optimizer``;
    ``optimizer_args`` go to the named class beside lr, momentum and weight_decay. ``schedule(round)`` scales lr, rounds
    count from 1. ``loss(outputs, targets)`` is a mean over the batch. A task's ``config`` may override any plain field.
    """

    lr: float
    batch_size: int = 32
    local_epochs: int | None = None
    local_batches: int | None = None
    optimizer: str | Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = "SGD"
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)  # Any: each optimiser has its own
    clip_norm: float | None = None
    schedule: Callable[[int], float] = Constant()
    loss: LossFunction = F.cross_entropy

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"learner lr must be a positive number, got {self.lr!r}")
        if self.local_epochs is not None and self.local_batches is not None:
            raise ConfigError("give local_epochs or local_batches, not both: each says how long a client trains")
        for name in ("local_epochs", "local_batches"):
            amount = getattr(self, name)
            if amount is not None and amount < 1:
                raise ConfigError(f"learner {name} must be at least 1, got {amount!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"learner clip_norm must be positive, got {self.clip_norm!r}")
        if isinstance(self.optimizer, str):
            known = inspect.signature(_optimizer_class(self.optimizer)).parameters
            for name in self._arguments():
                if name not in known:
                    raise ConfigError(f"optimizer {self.optimizer!r} takes no {name!r}; it takes {sorted(known)}")

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
        for inputs, targets in self._batches(examples, context.generator("shuffle")):
            for parameter in trained:
                parameter.grad = None
            loss = self.loss(module(_to(inputs, device)), _to(targets, device))
            loss.backward()  # type: ignore[no-untyped-call]
            if ask.correct is not None:
                bound.correct_gradients(ask.correct)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(trained, self.clip_norm)
            step()
            losses.append((loss.detach(), len(targets)))
        num_steps, num_seen = len(losses), sum(size for _, size in losses)
        return Fitted(
            params=bound.params(),
            num_examples=float(len(examples)),
            num_steps=float(num_steps),
            lr_sum=num_steps * lr if "lr_sum" in self.reports else math.nan,
            a_norm=accumulation(num_steps, self.momentum, lr * ask.pull) if self._is_sgd else math.nan,
            metrics={"train_loss": sum(loss.item() * size for loss, size in losses) / num_seen},
        )

    def configured(self, task: Task) -> "LocalSGD":
        """Return this learner with the task's own settings in place."""
        if not task.config:
            return self
        known = [f.name for f in fields(self)]
        for name in task.config:
            if name not in known:
                raise ConfigError(
                    f"client {task.client!r}: configuration {name!r} is not a setting of LocalSGD; it has {known}"
                )
        changes: dict[str, Any] = dict(task.config)
        if "local_epochs" in changes or "local_batches" in changes:
            changes = {"local_epochs": None, "local_batches": None, **changes}
        return replace(self, **changes)

    def _batches(self, examples: Examples, generator: torch.Generator) -> Iterable[tuple[Any, Any]]:
        size = self.batch_size if self.batch_size > 0 else len(examples)
        left = self.local_batches
        epochs = self.local_epochs or 1 if left is None else math.ceil(left / math.ceil(len(examples) / size))
        for _ in range(epochs):
            for batch in examples.batches(torch.randperm(len(examples), generator=generator), size):
                if left is not None:
                    if left == 0:
                        return
                    left -= 1
                yield batch

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


Weights = Mapping[str, Any] | Sequence[Any]  # Any: tensors, or arrays of any kind
LocalFunction = Callable[
    [nn.Module, Examples, Task],
    tuple[float, Mapping[str, object]] | tuple[Weights, float, Mapping[str, object]] | FLModel,
]


@dataclass(frozen=True, slots=True)
class FunctionLearner:
    """A user's own local training: ``function(model, data, task) -> (num_examples, metrics)``, or an ``FLModel``, or
    ``(weights, num_examples, metrics)`` with a state dict, or a list of arrays in the order of the model's state dict.

    ``model`` is at the received parameters and is trained in place; ``data`` is the client's part, a map-style data set
    that ``torch.utils.data.DataLoader`` takes. The global random states of torch, numpy and ``random`` are seeded per
    task.
    """

    function: LocalFunction

    @property
    def corrects(self) -> bool:
        return False

    @property
    def reports(self) -> Set[str]:
        return frozenset()

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        returned = self.function(bound.module, examples, context.task)
        bound.adopt()
        weights: object = None
        match returned:
            case FLModel():
                weights, num_examples, reported = returned.params, returned.num_examples, returned.metrics
            case (num_examples, Mapping() as reported):
                pass
            case (weights, num_examples, Mapping() as reported):
                pass
            case _:
                raise ConfigError(
                    f"local training of client {context.task.client!r} returned {type(returned).__name__}; "
                    "expected (num_examples, metrics), (weights, num_examples, metrics) or an FLModel"
                )
        if weights is not None:
            bound.load(bound.layout.flatten(_state_dict(weights, bound.module)))
        count = metrics.scalar("num_examples", len(examples) if num_examples is None else num_examples)
        return Fitted(bound.params(), count, metrics=metrics.scalars(reported))


def _state_dict(weights: object, module: nn.Module) -> dict[str, Tensor]:
    names = list(module.state_dict())
    if isinstance(weights, Mapping):
        named = dict(weights)
    elif isinstance(weights, Sequence) and len(weights) == len(names):
        named = dict(zip(names, weights, strict=True))
    else:
        got = f"{len(weights)} arrays" if isinstance(weights, Sequence) else f"a {type(weights).__name__}"
        raise ConfigError(f"local training returned {got} as weights; expected a state dict, or one array for each of "
                          f"the {len(names)} entries of the model's state dict")  # fmt: skip
    return {name: torch.as_tensor(value) for name, value in named.items()}


@torch.no_grad()
def evaluate(
    bound: Bound, examples: Examples, loss: LossFunction, measures: Mapping[str, Metric], batch_size: int
) -> metrics.Sums:
    """Return the sums of "loss" and of every measure over ``examples``, in evaluation mode, in the examples' order."""
    bound.module.eval()
    totals: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in ("loss", *measures)}
    for inputs, targets in examples.batches(torch.arange(len(examples)), batch_size):
        inputs, targets = _to(inputs, bound.device), _to(targets, bound.device)
        outputs = bound.module(inputs)
        totals["loss"] += loss(outputs, targets).double().cpu() * len(targets)
        for name, measure in measures.items():
            totals[name] += measure(outputs, targets).double().sum().cpu()
    return metrics.Sums({name: total.item() for name, total in totals.items()}, len(examples))


def _to(value: Any, device: torch.device) -> Any:  # Any: a tensor, or whatever structure the user's data set yields
    return value.to(device) if isinstance(value, Tensor) and value.device != device else value


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    known = {
        n.lower(): c
        for n, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    if name.lower() not in known:
        raise ConfigError(f"optimizer {name!r} is not in torch.optim; it has {sorted(set(known) - {'optimizer'})}")
    return known[name.lower()]
