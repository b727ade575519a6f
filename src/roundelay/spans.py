"""Long vectors in spans, a thread for each core: for what is done element by element, and for sums of spans in order.
Where a span begins follows from the length alone, so the bits are the same on any number of cores.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from torch import Tensor

from roundelay.load import available_cores

SPAN = 2**21
"""So many elements are one thread's at a time, which takes it some milliseconds. A shorter vector is one span."""

Given = TypeVar("Given")
Part = TypeVar("Part")


def in_spans(work: Callable[..., Part], *vectors: Tensor) -> list[Part]:
    """Call ``work`` with each span of vectors of one length; return what it returned, in their order."""
    length = vectors[0].shape[0]  # len() of a tensor goes through Python
    if length <= SPAN:
        return [work(*vectors)]
    spans = [slice(start, start + SPAN) for start in range(0, length, SPAN)]
    return on_cores(lambda span: work(*(vector[span] for vector in vectors)), spans)


def on_cores(work: Callable[[Given], Part], given: Sequence[Given]) -> list[Part]:
    """Call ``work`` with each of what is given, in threads; return what it returned, in their order. ``work`` calls
    torch or numpy, which let other threads run meanwhile, and never ``on_cores``.
    """
    return list(_threads().map(work, given)) if len(given) > 1 else [work(one) for one in given]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_cores(), "roundelay-span")


os.register_at_fork(after_in_child=_threads.cache_clear)  # no thread lives on in a fork
