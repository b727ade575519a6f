"""Low-rank adapters for fine-tuning a frozen model.

E. J. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen, "LoRA: Low-Rank Adaptation of Large
Language Models", ICLR 2022 (arXiv 2106.09685), eq. 3: h = W0 x + (alpha / r) B A x, with W0 frozen, A Gaussian and B
zero at first, so that the model begins as the one that it adapts.

    W0       weight, bias            frozen, under the names that they had
    A, B     lora_a, lora_b          (r, inputs), (outputs, r); trained, float32 whatever the dtype of W0
    r        rank
"""

import fnmatch
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roundelay.errors import ConfigError


class LoRALinear(nn.Module):
    """A linear layer with an adapter beside it: input (..., inputs), output (..., outputs) in the layer's own dtype."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        inputs, outputs, device = base.in_features, base.out_features, base.weight.device
        self.lora_a = nn.Parameter(torch.randn(rank, inputs, device=device) * inputs**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        base = F.linear(x, self.weight, self.bias)
        step = F.linear(F.linear(x.to(self.lora_a.dtype), self.lora_a), self.lora_b)
        return base + (self.scale * step).to(base.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the plain layer that this one comes to: its weight is W0 + (alpha / r) B A, rounded to W0's dtype."""
        plain = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None,
                          device=self.weight.device, dtype=self.weight.dtype)  # fmt: skip
        plain.weight.copy_(self.weight.to(self.lora_b.dtype) + self.scale * (self.lora_b @ self.lora_a))
        if self.bias is not None:
            plain.bias.copy_(self.bias)
        return plain


def lora(model: nn.Module, rank: int = 4, alpha: float = 8.0, targets: Sequence[str] = ("*",)) -> nn.Module:
    """Freeze ``model``, put an adapter beside each linear layer that ``targets`` name, and return it.

    A target is the last part of a layer's name ("q"), or a pattern over its whole name ("blocks.*.q"). In a federated
    job only the adapters travel; every side has the rest from the model's factory, which loads it from a file.

    >>> net = lora(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), rank=2, targets=["0"])
    >>> [(name, p.numel()) for name, p in net.named_parameters() if p.requires_grad]
    [('0.lora_a', 128), ('0.lora_b', 128)]

    Raises:
        ConfigError: the rank is not a whole number above 0, or a target fits no linear layer; lists those that are
            there.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"lora rank must be a whole number of at least 1, got {rank!r}")
    linear = {name: part for name, part in model.named_modules() if name and type(part) is nn.Linear}
    chosen = list[str]()
    for target in targets:
        fitting = [name for name in linear if name.rpartition(".")[2] == target or fnmatch.fnmatchcase(name, target)]
        if not fitting:
            raise ConfigError(f"lora target {target!r} fits no linear layer of {type(model).__name__}; it has "
                              f"{', '.join(linear) or 'none'}")  # fmt: skip
        chosen += [name for name in fitting if name not in chosen]
    model.requires_grad_(False)
    for name in linear:
        if name in chosen:
            _put(model, name, LoRALinear(linear[name], rank, alpha))
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Put in place of every layer with an adapter the plain one that it comes to, and return ``model``: its state dict
    has the names that it had before ``lora``.
    """
    for name, part in list(model.named_modules()):
        if isinstance(part, LoRALinear):
            _put(model, name, part.merged())
    return model


def _put(model: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, part)
