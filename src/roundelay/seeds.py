"""Keyed randomness: every draw is a pure function of (seed, round, attempt, client, purpose).

Nothing here keeps state, so nothing depends on the order of calls, the number of workers or the clock, and a resumed
run needs no saved generator. A client is named by its id string, never by an index: adding a client changes nobody
else's draws.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(seed: int, round: int, attempt: int, client: str, purpose: str) -> int:
    """Return a 128-bit integer that any change of the five arguments changes throughout.

    >>> key(7, 1, 0, "alice", "shuffle") == key(7, 1, 0, "alice", "shuffle")
    True
    >>> key(7, 1, 0, "alice", "shuffle") == key(7, 1, 0, "alice", "dropout")
    False
    """
    # repr of a tuple separates the fields: ("a", "bc") and ("ab", "c") differ.
    text = repr((int(seed), int(round), int(attempt), str(client), str(purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, round: int, attempt: int, client: str, purpose: str) -> torch.Generator:
    """Return a fresh CPU generator for one key.

    torch's Mersenne twister takes 32 bits of seed, which the mixing above spreads the whole key over. Two of 10,000
    keys share their stream with probability about 1 %: harmless for shuffles, not for privacy noise (use ``key``).
    """
    return torch.Generator().manual_seed(key(seed, round, attempt, client, purpose) & 0xFFFFFFFF)


def rng(seed: int, round: int, attempt: int, client: str, purpose: str) -> random.Random:
    """Return Python's generator, seeded with all 128 bits; for draws of a few integers, such as a cohort."""
    return random.Random(key(seed, round, attempt, client, purpose))


def uniform(seed: int, round: int, attempt: int, client: str, purpose: str) -> float:
    """Return one number in the open interval (0, 1)."""
    return ((key(seed, round, attempt, client, purpose) >> 76) + 0.5) / 2**52


def seed_globals(value: int) -> None:
    """Seed the global generators of torch (all devices), numpy and ``random`` with the low 32 bits of ``value``."""
    low = value & 0xFFFFFFFF
    torch.default_generator.manual_seed(low)
    if _cuda_is_used():
        torch.cuda.manual_seed_all(low)
    np.random.seed(low)
    random.seed(low)


@contextmanager
def preserved_globals() -> Iterator[None]:
    """Put the caller's global torch, numpy and ``random`` states back afterwards, whatever happened inside."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if _cuda_is_used() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
