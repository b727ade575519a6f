"""Local training by a user's own function."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roundelay import metrics
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError
from roundelay.layout import Bound
from roundelay.learner.protocol import Context
from roundelay.messages import FLModel, Task

Weights = Mapping[str, Any] | Sequence[Any]  # Any: tensors, or arrays of any kind
LocalFunction = Callable[
    [nn.Module, Examples, Task],
    tuple[float, Mapping[str, object]] | tuple[Weights, float, Mapping[str, object]] | FLModel,
]


@dataclass(frozen=True, slots=True)
class FunctionLearner:
    """A user's own local training: ``function(model, data, task) -> (num_examples, metrics)``, or an ``FLModel``, or
    ``(weights, num_examples, metrics)`` with a state dict, or a list of arrays in the order of the model's state dict.

    ``model`` is at the received parameters and is trained in place; ``data`` is the client's part, a map-style data set
    that ``torch.utils.data.DataLoader`` takes. The global random states of torch, numpy and ``random`` are seeded per
    task.
    """

    function: LocalFunction

    @property
    def corrects(self) -> bool:
        return False

    @property
    def reports(self) -> Set[str]:
        return frozenset()

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        returned = self.function(bound.module, examples, context.task)
        bound.adopt()
        weights: object = None
        match returned:
            case FLModel():
                weights, num_examples, reported = returned.params, returned.num_examples, returned.metrics
            case (num_examples, Mapping() as reported):
                pass
            case (weights, num_examples, Mapping() as reported):
                pass
            case _:
                raise ConfigError(
                    f"local training of client {context.task.client!r} returned {type(returned).__name__}; "
                    "expected (num_examples, metrics), (weights, num_examples, metrics) or an FLModel"
                )
        if weights is not None:
            named = _state_dict(weights, bound.module)
            bound.require_frozen(named)
            bound.load(bound.layout.flatten(named))
        count = metrics.scalar("num_examples", len(examples) if num_examples is None else num_examples)
        return Fitted(bound.params(), count, metrics=metrics.scalars(reported))


def _state_dict(weights: object, module: nn.Module) -> dict[str, Tensor]:
    names = list(module.state_dict())
    if isinstance(weights, Mapping):
        named = dict(weights)
    elif isinstance(weights, Sequence) and len(weights) == len(names):
        named = dict(zip(names, weights, strict=True))
    else:
        got = f"{len(weights)} arrays" if isinstance(weights, Sequence) else f"a {type(weights).__name__}"
        raise ConfigError(f"local training returned {got} as weights; expected a state dict, or one array for each of "
                          f"the {len(names)} entries of the model's state dict")  # fmt: skip
    return {name: torch.as_tensor(value) for name, value in named.items()}
