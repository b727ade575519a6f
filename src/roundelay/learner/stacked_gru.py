"""A GRU for many clients at once, each with weights of its own, which torch has no stacked form of.

K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", EMNLP
2014, in the form of ``torch.nn.GRU``, with r, z, n from the input a = W_i x + b_i and the state b = W_h h + b_h:

    r = sigmoid(a_r + b_r)    z = sigmoid(a_z + b_z)    n = tanh(a_n + r * b_n)    h' = n + z * (h - n)

C clients, B examples, L positions, I inputs, H hidden; gates (3H) stand in torch's order r, z, n.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from roundelay.errors import ConfigError


class StackableGRU(nn.Module):
    """Stands in for a ``nn.GRU`` of one layer and one direction, with its parameters under their names, in a module
    that is called under ``vmap``.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        for name, parameter in gru.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.batch_first, self.hidden_size, self.bias = gru.batch_first, gru.hidden_size, gru.bias

    def forward(self, inputs: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take and return what ``nn.GRU`` does, of a batch of sequences."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 3:
            raise ConfigError("a GRU is trained side by side on batches of sequences (B, L, I), not on packed ones or "
                              'single ones; set simulation.executor = "processes"')  # fmt: skip
        inputs_BLI = inputs if self.batch_first else inputs.transpose(0, 1)
        state_BH = inputs.new_zeros(len(inputs_BLI), self.hidden_size) if first is None else first[0]
        names = ["weight_ih_l0", "weight_hh_l0"] + ["bias_ih_l0", "bias_hh_l0"] * self.bias
        weights: list[Tensor] = [getattr(self, name) for name in names]  # under a functional call, no Parameters
        if not self.bias:
            weights += [inputs.new_zeros(3 * self.hidden_size)] * 2
        outputs: Tensor = _Unwrapped.apply(inputs_BLI, state_BH, *weights)  # type: ignore[no-untyped-call]
        last = outputs[:, -1][None]
        return (outputs if self.batch_first else outputs.transpose(0, 1)), last


def stackable(module: nn.Module) -> nn.Module:
    """Return a module that shares the parameters of ``module``, and whose GRUs can be called under ``vmap``."""
    if not any(isinstance(part, nn.GRU) for part in module.modules()):
        return module
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, kept)
    if isinstance(twin, nn.GRU):
        return StackableGRU(twin)
    for part in list(twin.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.GRU):
                setattr(part, name, StackableGRU(child))
    return twin


class _Unwrapped(torch.autograd.Function):
    """Is called under ``vmap`` only, and hands whole stacks on: C in front of everything."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:  # Any: torch's own
        stacks = [tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
                  for tensor, dim in zip(tensors, in_dims, strict=True)]  # fmt: skip
        return _GRU.apply(*stacks), 0  # type: ignore[no-untyped-call]

    @staticmethod
    def forward(*tensors: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # Any: torch's own
        raise NotImplementedError


class _GRU(torch.autograd.Function):
    """One call for all positions, so that the way back makes weights' gradients in one product, not in L."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, first: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> Tensor:  # Any: torch's own
        (num_clients, batch, length, _), hidden = inputs.shape, first.shape[-1]
        inputs_CNI = inputs.transpose(1, 2).reshape(num_clients, length * batch, -1)  # N = L * B, position by position
        gates_CNG = torch.baddbmm(bias_ih[:, None], inputs_CNI, weight_ih.transpose(1, 2))
        gates_CLBG = gates_CNG.view(num_clients, length, batch, 3 * hidden)
        back_CHG, states, kept = weight_hh.transpose(1, 2).contiguous(), [first], []
        for at in range(length):
            state, given = states[-1], gates_CLBG[:, at]
            own = torch.baddbmm(bias_hh[:, None], state, back_CHG)
            open_rz = torch.sigmoid_(given[..., : 2 * hidden] + own[..., : 2 * hidden])
            reset, update, from_state = open_rz[..., :hidden], open_rz[..., hidden:], own[..., 2 * hidden :]
            new = torch.addcmul(given[..., 2 * hidden :], reset, from_state).tanh_()
            states.append(torch.lerp(new, state, update))
            kept.append((reset, update, new, from_state))
        ctx.save_for_backward(inputs_CNI, weight_ih, weight_hh)
        ctx.states, ctx.kept = states, kept
        return torch.stack(states[1:], 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # Any: torch's own
        inputs_CNI, weight_ih, weight_hh = ctx.saved_tensors
        num_clients, batch, length, hidden = grad.shape
        into_state = grad.new_empty(num_clients, length, batch, 3 * hidden)
        into_new, grad_CLBH = grad.new_empty(num_clients, length, batch, hidden), grad.transpose(1, 2)
        behind = grad.new_zeros(num_clients, batch, hidden)
        for at in reversed(range(length)):
            reset, update, new, from_state = ctx.kept[at]
            behind = behind + grad_CLBH[:, at]
            into = into_state[:, at]
            plain = behind * (1 - update) * (1 - new * new)
            into_new[:, at] = plain
            torch.mul(plain, reset, out=into[..., 2 * hidden :])
            torch.mul(plain * from_state, reset * (1 - reset), out=into[..., :hidden])
            torch.mul(behind * (ctx.states[at] - new), update * (1 - update), out=into[..., hidden : 2 * hidden])
            behind = torch.baddbmm(behind * update, into, weight_hh)
        into_state = into_state.view(num_clients, length * batch, 3 * hidden)
        states_CNH = torch.stack(ctx.states[:-1], 1).view(num_clients, length * batch, hidden)
        grad_hh, grad_bias_hh = torch.bmm(into_state.transpose(1, 2), states_CNH), into_state.sum(1)
        into_input = into_state
        into_input[..., 2 * hidden :] = into_new.view(num_clients, length * batch, hidden)
        grad_ih, grad_bias_ih = torch.bmm(into_input.transpose(1, 2), inputs_CNI), into_input.sum(1)
        grad_inputs = torch.bmm(into_input, weight_ih).view(num_clients, length, batch, -1).transpose(1, 2)
        return grad_inputs, behind, grad_ih, grad_hh, grad_bias_ih, grad_bias_hh
