"""How a model's parameters travel: half ones in their own dtype, beside those of full precision.

Algorithms, folds and the server's model know one vector "params" in the layout's float dtype. On its way it is cut at
the layout's stretches: what is of full precision keeps the name, the others are "params.bfloat16" and "params.float16".
Every other vector of an algorithm is no part of the model, and travels as it is.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from roundelay.layout.layout import Layout
from roundelay.messages import Payload

PARAMS = "params"


def forms(layout: Layout, lengths: Mapping[str, int]) -> dict[str, tuple[int, torch.dtype]]:
    """Return the length and dtype of each vector that travels where vectors of these ``lengths`` are sent."""
    found = dict[str, tuple[int, torch.dtype]]()
    for name, length in lengths.items():
        if name == PARAMS and length == layout.num_params:
            found |= {_name(layout, dtype): (size, dtype) for dtype, size in layout.stretches}
        else:
            found[name] = (length, layout.dtype)
    return found


def packed(layout: Layout, payload: Payload) -> Payload:
    """Return values as they travel: half parameters rounded to the nearest of their own dtype. Without any, this is
    ``payload`` itself.
    """
    params = payload.vectors.get(PARAMS)
    if not layout.has_halves or params is None or params.shape != (layout.num_params,):
        return payload
    parts = torch.split(params, [size for _, size in layout.stretches])
    vectors = dict[str, Tensor]()
    for name, vector in payload.vectors.items():
        if name == PARAMS:
            own = zip(layout.stretches, parts, strict=True)
            vectors |= {_name(layout, dtype): part.to(dtype) for (dtype, _), part in own}
        else:
            vectors[name] = vector
    return replace(payload, vectors=vectors)


def opened(layout: Layout, payload: Payload) -> Payload:
    """Return what travelled as algorithms know it, "params" in memory of its own; what did not travel so is as it was.

    The names, lengths and dtypes are those of ``forms``: an update's have been checked by the guard.
    """
    if not layout.has_halves:
        return payload
    names = [_name(layout, dtype) for dtype, _ in layout.stretches]
    if names[-1] not in payload.vectors:  # the last stretch is always a half one
        return payload
    params = torch.empty(layout.num_params, dtype=layout.dtype, device=payload.vectors[names[0]].device)
    for name, part in zip(names, torch.split(params, [size for _, size in layout.stretches]), strict=True):
        part.copy_(payload.vectors[name])
    vectors = dict[str, Tensor]()
    for name, vector in payload.vectors.items():
        vectors[PARAMS if name in names else name] = params if name in names else vector
    return replace(payload, vectors=vectors)


def _name(layout: Layout, dtype: torch.dtype) -> str:
    return PARAMS if dtype is layout.dtype else f"{PARAMS}.{str(dtype).removeprefix('torch.')}"
