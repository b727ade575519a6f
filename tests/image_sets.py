"""What tests write in the forms that image sets come in."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def random_pixels(number: int, seed: int = 1) -> np.ndarray:
    """Images as CIFAR keeps them: uint8 (N, 3072), channel first."""
    return np.random.default_rng(seed).integers(0, 256, (number, 3072), dtype=np.uint8)


def write_table(file: Path, pixels: np.ndarray, **labels: list[int]) -> None:
    """Write what the Python version of CIFAR is made of, as Python 2 wrote it."""
    table = {b"data": pixels, b"batch_label": b"a batch", b"filenames": [b"a.png"] * len(pixels)}
    file.write_bytes(pickle.dumps({**table, **{name.encode(): values for name, values in labels.items()}}, protocol=2))


def write_leaf(file: Path, writers: dict[str, tuple[np.ndarray, list[int]]]) -> None:
    """Write LEAF's JSON; greys (N, 784) from 0 to 255 become its numbers from 0 to 1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "users": list(writers),
        "num_samples": [len(classes) for _, classes in writers.values()],
        "user_data": {name: {"x": (greys / 255).tolist(), "y": classes} for name, (greys, classes) in writers.items()},
    }
    file.write_text(json.dumps(document))
