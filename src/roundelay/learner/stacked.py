"""``LocalSGD`` for a stack of clients at once: parameters are a matrix (C, D), a row a client, and a step is one call.

Each client takes its own steps in its own order; those whose next batches are of one size take theirs together. So
nothing is padded, and what a client comes to is what it would come to alone, up to the rounding of sums in another
order.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from roundelay.algorithms.protocol import Correct, Fit, Fitted
from roundelay.data.examples import Examples, TensorExamples
from roundelay.data.images.pixels import PixelExamples, normalised
from roundelay.layout import Kind, Layout
from roundelay.learner.local_sgd import LocalSGD, accumulation
from roundelay.learner.protocol import Context, on_device

ADAMS: dict[str, tuple[Callable[..., None], float]] = {"adam": (adam, 0.0), "adamw": (adamw, 1e-2)}
"""torch's own steps, and the weight decay that each class has by default."""

BETAS, EPS = (0.9, 0.999), 1e-8
ELSEWHERE = 'set simulation.executor = "processes" (or "serial")'


class Stack:
    """A module as a function of flat parameters, trained for many clients side by side."""

    def __init__(self, module: nn.Module, layout: Layout, learner: LocalSGD, device: torch.device) -> None:
        """``learner`` and module are such that ``obstacle`` finds none."""
        self._module, self._learner, self.device = module, learner, device
        specs = layout.of_kind(Kind.PARAMETER)
        self._names, self._shapes = [spec.name for spec in specs], [spec.shape for spec in specs]
        self._sizes = [spec.numel for spec in specs]
        self._step = vmap(grad_and_value(self._loss), randomness="different")

    def fit(self, ask: Fit, parts: Sequence[Examples], contexts: Sequence[Context]) -> tuple[Fitted, list[float]]:
        """Train a client a row; ``ask.start`` is (D,) for all, or (C, D). Return with the fit each client's mean loss
        over what it was trained on.
        """
        learner, device = self._learner, self.device
        lr = learner.lr * learner.schedule(contexts[0].task.round)
        params = ask.start.expand(len(parts), sum(self._sizes)).clone()
        batches = Batches(learner, parts, contexts)
        losses = torch.zeros(len(parts), dtype=torch.float64, device=device)
        descent = Descent(learner, params, lr)
        self._module.train()
        while (rows := batches.ready()) is not None:
            at = None if len(rows) == len(parts) else torch.tensor(rows, device=device)
            inputs, targets = batches.take(rows)
            stood = params if at is None else params.index_select(0, at)
            grad, loss = self._step(stood, on_device(inputs, device), on_device(targets, device))
            if ask.correct is not None:
                _correct(ask.correct, grad, params, at)
            if learner.clip_norm is not None:
                grad *= (learner.clip_norm / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
            descent.step(grad, at, batches.steps[rows[0]])
            batches.steps_done(rows)
            weighted = loss.detach().double() * targets.shape[1]
            losses = losses + weighted if at is None else losses.index_add(0, at, weighted)
        means = [loss / seen for loss, seen in zip(losses.tolist(), batches.seen, strict=True)]
        return self._fitted(ask, params, parts, batches.steps, lr), means

    def bytes_a_client(self, part: Examples) -> int:
        """Return about how much memory a client takes while it trains: its row of everything that is kept for each
        parameter, and what a batch leaves behind in every layer for the way back.
        """
        learner, left = self._learner, 0

        def count(layer: nn.Module, inputs: object, outputs: object) -> None:
            nonlocal left
            left += outputs.nbytes if isinstance(outputs, Tensor) else 0

        layers = [layer for layer in self._module.modules() if not list(layer.children())]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        size = min(len(part), learner.size(len(part)))
        inputs, _ = next(iter(part.batches(torch.arange(size), size)))
        try:
            with torch.no_grad():
                self._module.eval()(on_device(inputs, self.device))
        finally:
            for hook in hooks:
                hook.remove()
        rows = 5 + num_kept(learner)
        itemsize = next(self._module.parameters()).element_size()
        return rows * sum(self._sizes) * itemsize + 2 * (left + inputs.nbytes)

    def _fitted(self, ask: Fit, params: Tensor, parts: Sequence[Examples], steps: Sequence[int], lr: float) -> Fitted:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=params.dtype, device=self.device)[:, None]

        momentum, reports = self._learner.momentum, self._learner.reports
        return Fitted(
            params=params,
            num_examples=column([float(len(part)) for part in parts]).double(),
            num_steps=column([float(count) for count in steps]),
            lr_sum=column([count * lr for count in steps]) if "lr_sum" in reports else math.nan,
            a_norm=column([accumulation(count, momentum, lr * ask.pull) for count in steps])
            if "a_norm" in reports
            else math.nan,
        )

    def _loss(self, params: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return one client's loss at ``params`` (D,); what leads back through a split is one concatenation."""
        parts = zip(self._names, torch.split(params, self._sizes), self._shapes, strict=True)
        outputs = functional_call(self._module, {name: part.view(shape) for name, part, shape in parts}, (inputs,))
        return self._learner.loss(outputs, targets)


class Batches:
    """Every client's batches, in its own order, and whose next ones are taken together."""

    def __init__(self, learner: LocalSGD, parts: Sequence[Examples], contexts: Sequence[Context]) -> None:
        self._parts, self.steps, self.seen = parts, [0] * len(parts), [0] * len(parts)
        self._in_step = _is_adam(learner)
        self._orders: list[list[Tensor]] = []
        self._base = _common_base(parts)
        first = parts[0]
        self._pixels = first if self._base is not None and isinstance(first, PixelExamples) else None
        for part, context in zip(parts, contexts, strict=True):
            size, epochs = learner.size(len(part)), list(learner.orders(len(part), context))
            stored = _stored(part)
            if self._base is not None and stored is not None and stored.indices is not None:
                epochs = [stored.indices.index_select(0, order) for order in epochs]
            self._orders.append([batch for order in epochs for batch in torch.split(order, size)])
        self._sizes = [[len(batch) for batch in orders] for orders in self._orders]

    def ready(self) -> list[int] | None:
        """Return the rows that take a step together, as many as there are with next batches of one size (and as many
        steps behind them, where the optimiser counts these); None where all are through.
        """
        waiting = {row: (sizes[step], step if self._in_step else 0)
                   for row, (sizes, step) in enumerate(zip(self._sizes, self.steps, strict=True))
                   if step < len(sizes)}  # fmt: skip
        if not waiting:
            return None
        chosen = max(Counter(waiting.values()).items(), key=lambda one: (one[1], one[0]))[0]
        return [row for row, kind in waiting.items() if kind == chosen]

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (rows, batch, ...) inputs and targets."""
        orders = [self._orders[row][self.steps[row]] for row in rows]
        if self._base is not None:
            positions, shape = torch.cat(orders), (len(rows), len(orders[0]))
            inputs, targets = (whole.index_select(0, positions) for whole in (self._base.inputs, self._base.targets))
            if self._pixels is not None:
                inputs = normalised(inputs, self._pixels.mean, self._pixels.std)
            return inputs.view(*shape, *inputs.shape[1:]), targets.view(*shape, *targets.shape[1:])
        read = [
            next(iter(self._parts[row].batches(order, len(order)))) for row, order in zip(rows, orders, strict=True)
        ]
        return torch.stack([inputs for inputs, _ in read]), torch.stack([targets for _, targets in read])

    def steps_done(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.seen[row] += self._sizes[row][self.steps[row]]
            self.steps[row] += 1


class Descent:
    """An optimiser's steps for rows of ``params`` (C, D), in place. For Adam, the rows of a step have as many behind
    them.
    """

    def __init__(self, learner: LocalSGD, params: Tensor, lr: float) -> None:
        self._learner, self._params, self._lr = learner, params, lr
        self._kept = [torch.zeros_like(params) for _ in range(num_kept(learner))]

    def step(self, grad: Tensor, at: Tensor | None, steps: int) -> None:
        """``at`` names the rows; None: all of them."""
        params, kept = self._params, self._kept
        if at is not None:
            params, kept = params.index_select(0, at), [one.index_select(0, at) for one in kept]
        if _is_adam(self._learner):
            self._adam(params, grad, kept, steps)
        else:
            self._sgd(params, grad, kept)
        if at is not None:
            for whole, rows in zip((self._params, *self._kept), (params, *kept), strict=True):
                whole.index_copy_(0, at, rows)

    def _sgd(self, params: Tensor, grad: Tensor, kept: Sequence[Tensor]) -> None:
        if self._learner.weight_decay:
            grad = grad.add(params, alpha=self._learner.weight_decay)
        if kept:
            grad = kept[0].mul_(self._learner.momentum).add_(grad)
        params.add_(grad, alpha=-self._lr)

    def _adam(self, params: Tensor, grad: Tensor, kept: Sequence[Tensor], steps: int) -> None:
        take, decay = ADAMS[str(self._learner.optimizer).lower()]
        betas = self._learner.optimizer_args.get("betas", BETAS)
        take(
            [params], [grad], [kept[0]], [kept[1]], [], [torch.tensor(float(steps))], foreach=False, fused=False,
            amsgrad=False, beta1=betas[0], beta2=betas[1], lr=self._lr,
            weight_decay=self._learner.weight_decay or self._learner.optimizer_args.get("weight_decay", decay),
            eps=self._learner.optimizer_args.get("eps", EPS), maximize=False, capturable=False, differentiable=False,
            grad_scale=None, found_inf=None, has_complex=False,
        )  # fmt: skip


def num_kept(learner: LocalSGD) -> int:
    """Return how many numbers an optimiser keeps for each parameter."""
    return 2 if _is_adam(learner) else int(bool(learner.momentum))


def _is_adam(learner: LocalSGD) -> bool:
    return str(learner.optimizer).lower() in ADAMS


def obstacle(module: nn.Module, layout: Layout, learner: object) -> str | None:
    """Return why clients cannot be trained side by side, and what to do instead; None where they can."""
    if not isinstance(learner, LocalSGD):
        return f"its learner is a {type(learner).__name__}, whose own loop trains one client at a time; {ELSEWHERE}"
    if learner.local_batches is not None or learner.augment is not None:
        which = "local_batches" if learner.local_batches is not None else "augment"
        return f"learner.{which} goes through each client's batches by itself; {ELSEWHERE}"
    name = str(learner.optimizer).lower() if isinstance(learner.optimizer, str) else "a factory of your own"
    if name not in ("sgd", *ADAMS) or (name == "sgd" and learner.optimizer_args):
        return f"its optimizer is {name}, of which only SGD, Adam and AdamW are stacked; {ELSEWHERE}"
    if set(learner.optimizer_args) - {"betas", "eps", "weight_decay"}:
        return f"optimizer_args beside betas, eps and weight_decay are not stacked; {ELSEWHERE}"
    for path, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) or list(part.buffers(recurse=False)):
            return f"layer {path or 'the model itself'!r} ({type(part).__name__}) has buffers; {ELSEWHERE}"
        if isinstance(part, nn.RNNBase):
            return f"layer {path!r} ({type(part).__name__}) has no stacked form in torch; {ELSEWHERE}"
    if not all(p.requires_grad for p in module.parameters()):
        return f"some of its parameters are frozen; {ELSEWHERE}"
    if layout.local_names:
        return f"keep_local keeps {layout.local_names[0]!r} on each client; {ELSEWHERE}"
    if layout.has_halves:
        return f"its parameters are of half precision, and clients side by side train in float32; {ELSEWHERE}"
    dtypes = {spec.dtype for spec in layout.specs}
    return f"its tensors are of several dtypes; {ELSEWHERE}" if len(dtypes) > 1 else None


def _correct(correct: Correct, grad: Tensor, params: Tensor, at: Tensor | None) -> None:
    """Correct the gradients of some rows; what corrects them is made for all."""
    if at is None:
        correct(grad, params)
        return
    whole = torch.zeros_like(params).index_copy_(0, at, grad)
    correct(whole, params)
    grad.copy_(whole.index_select(0, at))


def _common_base(parts: Sequence[Examples]) -> TensorExamples | None:
    """Return what all parts are views of, where they are views of one; pixels are then normalised alike."""
    first, whole = parts[0], _stored(parts[0])
    if whole is None:
        return None
    for part in parts:
        stored = _stored(part)
        if stored is None or stored.inputs is not whole.inputs or stored.targets is not whole.targets:
            return None
        if _scale(part) != _scale(first):
            return None
    return whole


def _stored(part: Examples) -> TensorExamples | None:
    """Return the tensors that a part is a view of."""
    stored = part.pixels if isinstance(part, PixelExamples) else part
    return stored if isinstance(stored, TensorExamples) else None


def _scale(part: Examples) -> tuple[object, ...]:
    return (part.mean, part.std) if isinstance(part, PixelExamples) else ()
