"""A job inside an event loop that already runs, as every notebook has one."""

import asyncio

import pytest
import torch
from networks import small_job

import roundelay as rd

SIMULATIONS = [rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)]


@pytest.mark.parametrize("simulation", SIMULATIONS, ids=["serial", "processes"])
def test_a_job_runs_inside_a_running_event_loop_to_the_same_bits(simulation: rd.Simulation) -> None:
    async def cell() -> tuple[str, list[int]]:
        whole = small_job(simulation=simulation).run()
        return whole.sha256, [finished.number for finished in small_job(simulation=simulation).rounds()]

    assert asyncio.run(cell()) == (small_job().run().sha256, [1, 2, 3])


def test_the_callers_loop_keeps_running_between_rounds_and_its_clock_is_not_the_virtual_one() -> None:
    def slow(client: str, task: rd.Task) -> float:
        return 1e6

    async def cell() -> list[int]:
        turns: list[int] = []
        loop = asyncio.get_running_loop()
        before = loop.time()
        for finished in small_job(simulation=rd.Simulation(executor="serial", duration=slow)).rounds():
            loop.call_soon(turns.append, finished.number)
            await asyncio.sleep(0)
            assert asyncio.get_running_loop() is loop
        assert finished.row["virtual_s"] == 3e6
        assert loop.time() - before < 1e4
        return turns

    assert asyncio.run(cell()) == [1, 2, 3]


def test_two_jobs_can_take_turns_in_one_cell() -> None:
    async def cell() -> tuple[list[int], list[int]]:
        pairs = zip(small_job(seed=7).rounds(), small_job(seed=8).rounds(), strict=True)
        first, second = zip(*((a.number, b.number) for a, b in pairs), strict=True)
        return list(first), list(second)

    assert asyncio.run(cell()) == ([1, 2, 3], [1, 2, 3])


def test_two_jobs_that_take_turns_give_the_bits_of_each_alone() -> None:
    alone = [small_job(seed=seed).run().sha256 for seed in (7, 8)]
    runs = [small_job(seed=seed).start() for seed in (7, 8)]
    for _ in zip(*runs, strict=True):
        torch.rand(1)
    assert [run.history().sha256 for run in runs] == alone


def test_leaving_the_loop_in_a_cell_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    for finished in small_job().rounds():
        if finished.number == 1:
            break
    assert torch.get_num_threads() == before
