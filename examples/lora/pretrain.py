"""Train the base in one place: python pretrain.py FOLDER [NUM_STEPS] writes base.pt."""

import sys

import torch
from roles import public

from roundelay.learner import sequence_cross_entropy

from model import CharTransformer

BATCH, WARMUP, LR = 32, 50, 2e-3


def main(folder: str = "data/shakespeare", num_steps: int = 900, path: str = "base.pt") -> float:
    """Return the mean loss of the last 50 steps."""
    torch.manual_seed(1)
    net, examples = CharTransformer(), public(folder).train("all")
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    losses = []
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / WARMUP) * (1.0 - step / num_steps)
        positions = torch.randint(len(examples), (BATCH,))
        ((inputs, targets),) = examples.batches(positions, BATCH)
        loss = sequence_cross_entropy(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"step {step + 1}: loss {sum(losses[-50:]) / 50:.3f}")
    torch.save(net.state_dict(), path)
    return sum(losses[-50:]) / len(losses[-50:])


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
