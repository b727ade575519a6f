"""An optimiser's steps for the rows of a matrix of parameters, (C, D): C clients, D parameters."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from roundelay.learner.local_sgd import LocalSGD

Rows = slice | Tensor
"""Some rows of a matrix: a stretch of them, whose part of a matrix is a view, or int64 numbers."""

ADAMS: dict[str, tuple[Callable[..., None], float]] = {"adam": (adam, 0.0), "adamw": (adamw, 1e-2)}
"""torch's own steps, and the weight decay that each class has by default."""

BETAS, EPS = (0.9, 0.999), 1e-8


class Descent:
    """Makes steps in place, on ``params`` (C, D). For Adam, the rows of a step have as many behind them."""

    def __init__(self, learner: LocalSGD, params: Tensor, lr: float) -> None:
        self._learner, self._params, self._lr = learner, params, lr
        self._kept = [torch.zeros_like(params) for _ in range(num_kept(learner))]

    def step(self, grad: Tensor, rows: Rows, steps: int) -> None:
        """``grad`` is that of ``rows``, which may be overwritten; they have made so many ``steps``."""
        wholes = (self._params, *self._kept)
        params, *kept = [taken(whole, rows) for whole in wholes]
        if is_adam(self._learner):
            self._adam(params, grad, kept[0], kept[1], steps)
        else:
            self._sgd(params, grad, kept)
        for whole, part in zip(wholes, (params, *kept), strict=True):
            put(whole, rows, part)

    def _sgd(self, params: Tensor, grad: Tensor, kept: list[Tensor]) -> None:
        if self._learner.weight_decay:
            grad = grad.add(params, alpha=self._learner.weight_decay)
        if kept:
            grad = kept[0].mul_(self._learner.momentum).add_(grad)
        params.add_(grad, alpha=-self._lr)

    def _adam(self, params: Tensor, grad: Tensor, first: Tensor, second: Tensor, steps: int) -> None:
        take, decay = ADAMS[str(self._learner.optimizer).lower()]
        betas = self._learner.optimizer_args.get("betas", BETAS)
        take(
            [params], [grad], [first], [second], [], [torch.tensor(float(steps))], foreach=False, fused=False,
            amsgrad=False, beta1=betas[0], beta2=betas[1], lr=self._lr,
            weight_decay=self._learner.weight_decay or self._learner.optimizer_args.get("weight_decay", decay),
            eps=self._learner.optimizer_args.get("eps", EPS), maximize=False, capturable=False, differentiable=False,
            grad_scale=None, found_inf=None, has_complex=False,
        )  # fmt: skip


def taken(whole: Tensor, rows: Rows) -> Tensor:
    """Return some rows of a matrix: a view where they are a stretch, else a copy."""
    return whole[rows] if isinstance(rows, slice) else whole.index_select(0, rows)


def put(whole: Tensor, rows: Rows, part: Tensor) -> None:
    """Write back what ``taken`` gave, after a change in place."""
    if not isinstance(rows, slice):
        whole.index_copy_(0, rows, part)


def num_kept(learner: LocalSGD) -> int:
    """Return how many numbers an optimiser keeps for each parameter."""
    return 2 if is_adam(learner) else int(bool(learner.momentum))


def is_adam(learner: LocalSGD) -> bool:
    return str(learner.optimizer).lower() in ADAMS
