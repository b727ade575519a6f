"""A small causal transformer over characters; whole, and with low-rank adapters on a frozen one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roundelay.models import lora


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm1(x)
        q, k, v = (
            layer(seen).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharTransformer(nn.Module):
    """Input int64 (B, L) with L up to ``length``; output logits (B, L, vocabulary_size), of each next character."""

    def __init__(
        self, vocabulary_size: int = 90, width: int = 96, num_layers: int = 3, num_heads: int = 4, length: int = 80
    ) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(vocabulary_size, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(num_layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary_size)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters) + self.places.weight[: characters.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def whole(base: str = "base.pt", **sizes: int) -> nn.Module:
    """Return the pre-trained model, all of which is trained."""
    net = CharTransformer(**sizes)
    net.load_state_dict(torch.load(base, weights_only=True))
    return net


def adapted(base: str = "base.pt", rank: int = 4, alpha: float = 8.0, **sizes: int) -> nn.Module:
    """Return the pre-trained model, frozen, with adapters beside its queries and values."""
    return lora(whole(base, **sizes), rank=rank, alpha=alpha, targets=["q", "v"])
