"""Brings an algorithm's gradient correction into a user's own loop, and counts the steps that it takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roundelay.algorithms.protocol import Fit
from roundelay.errors import ClientError
from roundelay.layout import Kind, Layout
from roundelay.learner import accumulation


@dataclass(slots=True)
class Steps:
    """The steps of one fit: how many, at which learning rates, and the momentum where it is plain SGD (NaN if not)."""

    num_steps: int = 0
    momentum: float = math.nan
    rates: list[float] = field(default_factory=list)

    def count(self, lr: float, momentum: float) -> None:
        self.momentum = momentum if not self.num_steps or momentum == self.momentum else math.nan
        self.num_steps += 1
        self.rates.append(lr)

    @property
    def lr_sum(self) -> float:
        """The sum of the rates of plain gradient steps; NaN where it would mean nothing."""
        if self.momentum != 0.0:
            return math.nan
        return self.num_steps * self.rates[0] if self._constant else math.fsum(self.rates)

    def a_norm(self, pull: float) -> float:
        """See ``Fitted.a_norm``."""
        if math.isnan(self.momentum) or not self._constant:
            return math.nan
        return accumulation(self.num_steps, self.momentum, self.rates[0] * pull)

    @property
    def _constant(self) -> bool:
        return all(rate == self.rates[0] for rate in self.rates)


def patch(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | None,
    layout: Layout,
    at: Callable[[], tuple[Fit | None, Steps]],
) -> None:
    """Have every step of ``optimizer`` corrected and counted; ``at()`` tells the fit that the script is at.

    Raises:
        ClientError: the optimizer's parameters are not the model's, in its order; or, when a step is taken, they are
            not and only their values show it, or the step computes gradients of its own.
    """
    shared = _shared(optimizer, model, layout)
    flat = torch.empty(0)

    def before_step(_: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        nonlocal flat
        ask, steps = at()
        if ask is None:
            return  # the script trains on its own account
        steps.count(*_plain(optimizer))
        if ask.correct is None:
            return
        if any(given is not None for given in (*args[1:], kwargs.get("closure"))):  # args begin with the optimizer
            raise ClientError("a patched optimizer's step() takes no closure: gradients that are computed within it "
                              "cannot be corrected before it; call backward() first, then step()")  # fmt: skip
        if steps.num_steps == 1:  # a new fit: the vectors of the correction are where the algorithm has them
            if model is None:
                _check_order(shared, ask.start)
            flat = torch.empty(layout.num_params, dtype=layout.dtype)
        _correct(ask, shared, flat)

    optimizer.register_step_pre_hook(before_step)


@torch.no_grad()
def _check_order(shared: list[Tensor], start: Tensor) -> None:
    """Refuse parameters of which two stand in each other's place: only their values tell, where shapes are equal."""
    own = [p.reshape(-1).to(start) for p in shared]
    wanted = torch.split(start, [p.numel() for p in shared])
    moved = [i for i in range(len(own)) if not torch.equal(own[i], wanted[i])]
    for i in moved:
        for j in moved:
            if i < j and torch.equal(own[i], wanted[j]) and torch.equal(own[j], wanted[i]):
                raise _disordered(f"the optimizer's parameters {i} and {j} are each other's")


@torch.no_grad()
def _correct(ask: Fit, shared: list[Tensor], flat: Tensor) -> None:
    """Call ``ask.correct`` on flat vectors (D,); a parameter without a gradient takes part with zeros."""
    assert ask.correct is not None
    views = torch.split(flat, [p.numel() for p in shared])
    for view, p in zip(views, shared, strict=True):
        if p.grad is None:
            view.zero_()
        else:
            view.copy_(p.grad.reshape(-1))
    ask.correct(flat, torch.cat([p.detach().reshape(-1).to(flat) for p in shared]))
    for view, p in zip(views, shared, strict=True):
        corrected = view.view(p.shape)
        if p.grad is None:
            p.grad = corrected.to(p, copy=True)
        else:
            p.grad.copy_(corrected)


def _shared(optimizer: torch.optim.Optimizer, model: nn.Module | None, layout: Layout) -> list[Tensor]:
    """Return the parameters that the algorithm knows, in the layout's order."""
    specs = layout.of_kind(Kind.PARAMETER)
    if model is not None:
        named = dict(model.named_parameters(remove_duplicate=False))
        return [named[spec.name] for spec in specs]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    if [tuple(p.shape) for p in own] == [spec.shape for spec in specs]:
        return own
    raise _disordered(f"the optimizer's {len(own)} parameters are not the model's {len(specs)} shared ones")


def _disordered(what: str) -> ClientError:
    return ClientError(f"fl.patch(optimizer): {what}, in the model's order; say which model they belong to: "
                       "fl.patch(optimizer, net)")  # fmt: skip


def _plain(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Return the learning rate and the momentum where this is plain SGD, else a momentum of NaN."""
    groups: list[dict[str, Any]] = optimizer.param_groups  # Any: each optimiser has its own settings
    rates = {float(group["lr"]) for group in groups}
    rate = next(iter(rates))
    if len(rates) > 1 or type(optimizer) is not torch.optim.SGD:
        return rate, math.nan
    momenta = {math.nan if g["nesterov"] or g["dampening"] or g["maximize"] else float(g["momentum"]) for g in groups}
    return rate, momenta.pop() if len(momenta) == 1 else math.nan
