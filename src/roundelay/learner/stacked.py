"""``LocalSGD`` for a stack of clients at once: parameters are a matrix (C, D), a row a client, and a step is one call.

Each client takes its own steps in its own order; those whose next batches are of one size take theirs together. So
nothing is padded, and what a client comes to is what it would come to alone, up to the rounding of sums in another
order. A gradient is one walk back from the sum of all losses: no row's loss hangs on another row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from roundelay.algorithms.protocol import Correct, Fit, Fitted
from roundelay.data.examples import Examples
from roundelay.data.text_windows import IGNORED
from roundelay.layout import Kind, Layout, Scope
from roundelay.learner.local_sgd import LocalSGD, accumulation
from roundelay.learner.protocol import Context, LossFunction, on_device
from roundelay.learner.stacked_batches import Batches, planned
from roundelay.learner.stacked_descent import ADAMS, Descent, Rows, is_adam, num_kept, taken
from roundelay.learner.stacked_gru import stackable

ELSEWHERE = 'set simulation.executor = "processes" (or "serial")'


@dataclass(slots=True)
class Kept:
    """What clients' models hold beside the parameters that an algorithm sees, a row a client: ``params`` (C, L), which
    stay at home; float ``buffers`` (C, F) and ``integers`` (C, I), those that are shared before those that stay.
    Training changes them in place.
    """

    params: Tensor
    buffers: Tensor
    integers: Tensor


class Stack:
    """A module as a function of flat vectors, trained for many clients side by side."""

    def __init__(self, module: nn.Module, layout: Layout, learner: LocalSGD, device: torch.device) -> None:
        """``learner`` and module are such that ``obstacle`` finds none."""
        self._plain, self._module, self._learner, self.device = module, stackable(module), learner, device
        self._specs = [[*layout.of_kind(kind), *layout.of_kind(kind, Scope.LOCAL)] for kind in Kind]
        self._sizes = [[spec.numel for spec in specs] for specs in self._specs]
        self._num_shared = layout.num_params
        self._outputs = vmap(self._output, randomness="different")

    def fit(
        self, ask: Fit, kept: Kept, parts: Sequence[Examples], contexts: Sequence[Context]
    ) -> tuple[Fitted, list[float]]:
        """Train a client a row; ``ask.start`` is (D,) for all, or (C, D). Return with the fit each client's mean loss
        over what it was trained on.
        """
        learner, device, lengths = self._learner, self.device, [len(part) for part in parts]
        lr, sizes = learner.lr * learner.schedule(contexts[0].task.round), [learner.size(n) for n in lengths]
        whole = torch.cat([ask.start.expand(len(parts), self._num_shared), kept.params], 1)
        orders = [list(learner.orders(n, context)) for n, context in zip(lengths, contexts, strict=True)]
        epochs = len(orders[0])
        batches, descent = Batches(parts, orders, sizes), Descent(learner, whole, lr)
        losses = torch.zeros(len(parts), dtype=torch.float64, device=device)
        self._module.train()
        for step in planned(lengths, sizes, epochs, is_adam(learner)):
            rows = step.rows if isinstance(step.rows, slice) else step.rows.to(device)
            inputs, targets = (on_device(value, device) for value in batches.take(step))
            leaf = taken(whole, rows).detach().requires_grad_()
            loss = self._losses(learner.loss, leaf, kept, rows, inputs, targets)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            if ask.correct is not None:
                _correct(ask.correct, grad, whole, rows, self._num_shared)
            if learner.clip_norm is not None:
                grad *= (learner.clip_norm / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
            descent.step(grad, rows, step.behind)
            losses[rows] += loss.detach().double() * step.size
        means = [loss / (epochs * n) for loss, n in zip(losses.tolist(), lengths, strict=True)]
        kept.params = whole[:, self._num_shared :]
        num_steps = [epochs * math.ceil(n / size) for n, size in zip(lengths, sizes, strict=True)]
        return self._fitted(ask, whole[:, : self._num_shared], lengths, num_steps, lr), means

    @torch.no_grad()
    def losses(
        self, models: Tensor, kept: Kept, parts: Sequence[Examples], loss: LossFunction, batch_size: int
    ) -> Tensor:
        """Return what each of ``models`` (K, D) costs each client, (C, K): the mean over its examples, in their order
        and in evaluation mode. Buffers are left as they were.
        """
        self._module.eval()
        lengths, sizes = [len(part) for part in parts], [batch_size] * len(parts)
        found = torch.zeros(len(parts), len(models), dtype=torch.float64)
        for number, model in enumerate(models):
            own = Kept(kept.params, kept.buffers.clone(), kept.integers.clone())
            whole = torch.cat([model.expand(len(parts), self._num_shared), kept.params], 1)
            batches = Batches(parts, [[torch.arange(n)] for n in lengths], sizes)
            for step in planned(lengths, sizes, 1, False):
                rows = step.rows if isinstance(step.rows, slice) else step.rows.to(self.device)
                inputs, targets = (on_device(value, self.device) for value in batches.take(step))
                costs = self._losses(loss, taken(whole, rows), own, rows, inputs, targets)
                found[step.rows, number] += costs.double().cpu() * step.size
        return (found / torch.tensor(lengths)[:, None]).to(models)

    def bytes_a_client(self, part: Examples) -> int:
        """Return about how much memory a client takes while it trains: its row of everything that is kept for each
        parameter, and what a batch leaves behind in every layer for the way back.
        """
        learner, left = self._learner, 0

        def count(layer: nn.Module, inputs: object, outputs: object) -> None:
            nonlocal left
            found = outputs if isinstance(outputs, tuple) else (outputs,)
            size = sum(one.nbytes for one in found if isinstance(one, Tensor))
            left += size * (GATES if isinstance(layer, nn.GRU) else 1)

        layers = [layer for layer in self._plain.modules() if not list(layer.children())]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        size = min(len(part), learner.size(len(part)))
        inputs, _ = next(iter(part.batches(torch.arange(size), size)))
        try:
            with torch.no_grad():
                self._plain.eval()(on_device(inputs, self.device))
        finally:
            for hook in hooks:
                hook.remove()
        rows = 5 + num_kept(learner)
        itemsize = next(self._plain.parameters()).element_size()
        return rows * sum(self._sizes[0]) * itemsize + 2 * (left + inputs.nbytes)

    def _fitted(self, ask: Fit, params: Tensor, lengths: Sequence[int], num_steps: Sequence[int], lr: float) -> Fitted:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=params.dtype, device=self.device)[:, None]

        momentum, reports = self._learner.momentum, self._learner.reports
        return Fitted(
            params=params,
            num_examples=column([float(n) for n in lengths]).double(),
            num_steps=column([float(count) for count in num_steps]),
            lr_sum=column([count * lr for count in num_steps]) if "lr_sum" in reports else math.nan,
            a_norm=column([accumulation(count, momentum, lr * ask.pull) for count in num_steps])
            if "a_norm" in reports
            else math.nan,
        )

    def _losses(
        self, loss: LossFunction, params: Tensor, kept: Kept, rows: Rows, inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """Return each row's loss at its ``params`` (R, D); buffers move as they do in the module's mode."""
        moving = self._moving(kept, rows)
        outputs = self._outputs(params, moving, inputs)
        if moving:
            self._moved(kept, rows, moving)
        if loss is F.cross_entropy and targets.ndim == outputs.ndim - 1:  # in one call: under vmap it is many
            each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1), reduction="none")
            counted = (targets != IGNORED).flatten(1).sum(1)
            return each.view(len(targets), -1).sum(1) / counted
        return vmap(loss, randomness="different")(outputs, targets)

    def _moving(self, kept: Kept, rows: Rows) -> dict[str, Tensor]:
        """Return copies of the rows' buffers by name, one after another in memory each: of what is not, torch's stacked
        BatchNorm changes a copy.
        """
        state = {}
        for whole, specs, sizes in zip((kept.buffers, kept.integers), self._specs[1:], self._sizes[1:], strict=True):
            if specs:
                parts = zip(specs, torch.split(taken(whole, rows), sizes, 1), strict=True)
                state.update({spec.name: part.clone(memory_format=torch.contiguous_format).view(-1, *spec.shape)
                              for spec, part in parts})  # fmt: skip
        return state

    def _moved(self, kept: Kept, rows: Rows, moving: Mapping[str, Tensor]) -> None:
        for whole, specs in zip((kept.buffers, kept.integers), self._specs[1:], strict=True):
            if specs:
                whole[rows] = torch.cat([moving[spec.name].view(-1, spec.numel) for spec in specs], 1)

    def _output(self, params: Tensor, buffers: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return one client's output; what leads back through a split is one concatenation."""
        parts = zip(self._specs[0], torch.split(params, self._sizes[0]), strict=True)
        state = {**{spec.name: part.view(spec.shape) for spec, part in parts}, **buffers}
        outputs: Tensor = functional_call(self._module, state, (inputs,))
        return outputs


GATES = 8
"""How many times its outputs a GRU keeps for the way back: gates and states, and the gates' gradients."""


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
        why = _unstackable(part)
        if why is not None:
            return f"layer {path or 'the model itself'!r} ({type(part).__name__}) {why}; {ELSEWHERE}"
    if not all(p.requires_grad for p in module.parameters()):
        return f"some of its parameters are frozen; {ELSEWHERE}"
    if layout.has_halves:
        return f"its parameters are of half precision, and clients side by side train in float32; {ELSEWHERE}"
    dtypes = {spec.dtype for spec in layout.specs if spec.kind is not Kind.INTEGER_BUFFER}
    integers = {spec.dtype for spec in layout.of_kind(Kind.INTEGER_BUFFER)} - {torch.int64}
    return f"its tensors are of several dtypes; {ELSEWHERE}" if dtypes - {layout.dtype} or integers else None


def _unstackable(part: nn.Module) -> str | None:
    """Return why a layer has no stacked form, or None where it has one."""
    if isinstance(part, nn.SyncBatchNorm):
        return "takes its statistics over processes, not over one client"
    if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats and part.momentum is None:
        return "has momentum None: its running statistics are a mean whose weight is a counter"
    if isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats:
        return "keeps running statistics of instances"
    if isinstance(part, nn.RNNBase) and not (type(part) is nn.GRU and part.num_layers == 1 and not part.bidirectional):
        return (
            "has no stacked form in torch, and none here: of recurrent layers, GRU of one layer and one direction has"
        )
    return None


def _correct(correct: Correct, grad: Tensor, params: Tensor, rows: Rows, num_shared: int) -> None:
    """Correct the gradients of some rows, in what is shared; what corrects them is made for all rows."""
    params, grad = params[:, :num_shared], grad[:, :num_shared]
    if len(grad) == len(params):
        correct(grad, params)
        return
    whole = torch.zeros_like(params)
    whole[rows] = grad
    correct(whole, params)
    grad.copy_(whole[rows])
