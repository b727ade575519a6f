"""Partitioners that know what is on a photograph, beside those of ``partition.py``. By device is ``Natural()``: a
pooled data set's natural clients are its devices. By the class that an image has most of are ``Dirichlet`` and
``Shards``.

Shapes: N examples, C clients, K classes.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.detection import DetectionExamples
from roundelay.data.examples import Data
from roundelay.data.partition import Natural, check_alpha, check_count, check_enough, client_ids
from roundelay.data.split import Split
from roundelay.errors import ConfigError, DataError

__all__ = ["BoxDirichlet", "ByScene"]


@dataclass(frozen=True, slots=True)
class ByScene:
    """What was taken of one scene stays with one client: frames that follow each other show the same objects.

    An example's name, "device/stem", begins with its scene's: ``pattern`` is a regular expression, and what its first
    group matches is the scene. By default that is all but the last digit, so that ten frames of one device that follow
    each other are a scene. Whole scenes are dealt at random to ``num_clients``, the largest first and each to whoever
    has least; without it, each scene is a client of its own.
    """

    pattern: str = r"(.*)\d"
    num_clients: int | None = None

    def __post_init__(self) -> None:
        if self.num_clients is not None:
            check_count("num_clients", self.num_clients)
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ConfigError(f"pattern: {self.pattern!r} is no regular expression ({error})") from error
        if not groups:
            raise ConfigError(f"pattern: expected a group that is the scene, as in (.*)\\d, got {self.pattern!r}")

    def split(self, data: Data, seed: int) -> Split:
        scenes = [self._scene(name) for name in _photographs(data).names()]
        if self.num_clients is None:
            return Natural(scenes).split(data, seed)
        names, numbers, sizes = np.unique(scenes, return_inverse=True, return_counts=True)
        if len(names) < self.num_clients:
            raise ConfigError(f"num_clients: {self.num_clients} clients need as many scenes, {self.pattern!r} finds "
                              f"{len(names)}; give fewer, or a pattern that tells more apart")  # fmt: skip
        shuffled = torch.randperm(len(names), generator=_draws(seed)).numpy()
        held, holder = np.zeros(self.num_clients, dtype=np.int64), np.zeros(len(names), dtype=np.int64)
        for scene in shuffled[(-sizes[shuffled]).argsort(kind="stable")]:
            holder[scene] = held.argmin()
            held[holder[scene]] += sizes[scene]
        return Split.from_owners(client_ids(self.num_clients), torch.from_numpy(holder[numbers]))

    def _scene(self, name: str) -> str:
        found = re.match(self.pattern, name)
        if found is None or not found.group(1):
            raise ConfigError(f"pattern: {self.pattern!r} finds no scene in {name!r}")
        return found.group(1)


@dataclass(frozen=True, slots=True)
class BoxDirichlet:
    """Label skew of boxes: the boxes of each class go to the clients in proportions drawn from Dirichlet(``alpha``), as
    nearly as whole images allow.

    Proportions p_kc are drawn for each class k as in ``Dirichlet``, which gives every client a number of boxes of each
    class. Images, those with most boxes first, then go to whoever still lacks most of what they show; images without
    boxes, to whoever has fewest images. Drawn anew, at most 100 times, until each client has ``min_examples``.
    """

    num_clients: int
    alpha: float
    min_examples: int = 2

    def __post_init__(self) -> None:
        check_count("num_clients", self.num_clients)
        check_alpha(self.alpha)
        check_count("min_examples", self.min_examples)

    def split(self, data: Data, seed: int) -> Split:
        counts = _photographs(data).box_counts()
        check_enough("min_examples", self.min_examples, self.num_clients * self.min_examples, len(counts))
        shuffled = torch.randperm(len(counts), generator=_draws(seed))
        order = shuffled[counts[shuffled].sum(1).argsort(descending=True, stable=True)]
        draws = np.random.Generator(np.random.PCG64(seeds.key(seed, 0, 0, "", "partition")))
        for _ in range(MOST_DRAWS):
            shares = draws.dirichlet(np.full(self.num_clients, float(self.alpha)), size=counts.shape[1])
            owners = _dealt(order, counts, torch.from_numpy(shares.T) * counts.sum(0))
            if int(torch.bincount(owners, minlength=self.num_clients).min()) >= self.min_examples:
                return Split.from_owners(client_ids(self.num_clients), owners)
        raise ConfigError(f"min_examples: in {MOST_DRAWS} draws some client always had fewer than {self.min_examples} "
                          "images; raise alpha, or lower min_examples or num_clients")  # fmt: skip


MOST_DRAWS = 100


def _dealt(order: Tensor, counts: Tensor, lacking: Tensor) -> Tensor:
    """Return each image's client, (N,); ``lacking`` (C, K) are the boxes that each client is to have."""
    owners, held = torch.full((len(counts),), -1), torch.zeros(len(lacking), dtype=torch.int64)
    lacking = lacking.clone()
    for image in order.tolist():
        shown = counts[image].to(lacking)
        client = int((lacking @ shown).argmax()) if shown.any() else int(held.argmin())
        owners[image] = client
        held[client] += 1
        lacking[client] -= shown
    return owners


def _photographs(data: Data) -> DetectionExamples:
    if not isinstance(data.train, DetectionExamples):
        raise DataError(
            f"{data.name}: it has no boxes; expected photographs as voc or coco read them with pooled = true"
        )
    return data.train


def _draws(seed: int) -> torch.Generator:
    return seeds.generator(seed, 0, 0, "", "partition")
