"""Long vectors by spans: the bits of one go, on any number of cores, in a forked process too."""

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from roundelay import spans
from roundelay.fold import RunningMean
from roundelay.guard import all_finite

LENGTH = 5 * 2**10 + 3


@pytest.fixture(params=[1, 2, 7])
def short_spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN", 2**10)
    threads = ThreadPoolExecutor(request.param)
    monkeypatch.setattr(spans, "_threads", lambda: threads)


@pytest.mark.usefixtures("short_spans")
def test_a_mean_by_spans_has_the_bits_of_one_go() -> None:
    values = torch.randn(6, LENGTH, generator=torch.Generator().manual_seed(3))
    values[:, 7] = -0.0
    running, expected, weight = RunningMean(), values[0].clone(), 1.0
    running.add(values[0], 1.0)
    for number, value in enumerate(values[1:], start=2):
        running.add(value, float(number))
        weight += number
        expected.lerp_(value, number / weight)
    assert running.mean is not None
    assert torch.equal(running.mean.view(torch.int32), expected.view(torch.int32))  # -0.0 too


@pytest.mark.usefixtures("short_spans")
@pytest.mark.parametrize("place", [0, 2**10 - 1, 2**10, LENGTH - 1])
def test_a_value_that_is_not_finite_is_found_in_every_span(place: int) -> None:
    vector = torch.full((LENGTH,), 3e38)  # whose sum is infinite
    assert all_finite(vector)
    vector[place] = math.nan
    assert not all_finite(vector)


@pytest.mark.usefixtures("short_spans")
def test_what_a_span_raises_is_raised() -> None:
    def fails(part: torch.Tensor) -> None:
        if len(part) == 3:
            raise ArithmeticError("the last span")

    with pytest.raises(ArithmeticError, match="the last span"):
        spans.in_spans(fails, torch.zeros(LENGTH))


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN", 2**10)
    assert all_finite(torch.zeros(LENGTH))  # the threads are there
    child = os.fork()
    if not child:
        signal.alarm(30)  # a child that waits for threads that it has not got
        os._exit(0 if all_finite(torch.zeros(LENGTH)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
