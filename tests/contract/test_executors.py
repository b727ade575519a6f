"""Executors differ in speed and never in bits: compared per client, before averaging, and by the final hash."""

import pytest
import torch
from networks import Awkward, small_job

import roundelay as rd
from roundelay import seeds
from roundelay.algorithms.protocol import rehearse
from roundelay.messages import Payload, Task
from roundelay.simulation.executors.protocol import Executor
from roundelay.trainer import Answer, Trainer, one_thread

POOLS = [rd.Simulation(num_workers=workers) for workers in (1, 2, 5)]


def answers(simulation: rd.Simulation, job: rd.Job) -> dict[str, list[torch.Tensor]]:
    """Let every client answer one task, in an order that is not the clients'; return each client's tensors."""
    work = job.prepared().work
    server = Trainer(work)
    start = server.bound.params().clone()
    rehearsal = rehearse(work.algorithm, start, 6)
    received = Payload({"params": start}, server.bound.buffers().clone(), server.bound.integers().clone())
    tasks = [Task(i, client, 1) for i, client in enumerate(work.data.clients)]
    executor: Executor = simulation.start(work, server, rehearsal)
    came = {}
    try:
        executor.submit(tasks, received, {})
        for task in reversed(tasks):
            answer = executor.result(task.id)
            assert isinstance(answer, Answer)
            payload = answer.update.payload
            came[task.client] = [t.clone() for t in (payload.vectors["params"], payload.buffers, payload.integers)]
            executor.release(task.id)
    finally:
        executor.close()
    return came


@pytest.mark.parametrize("pool", POOLS, ids=["1", "2", "5"])
def test_every_client_gives_the_same_bits_with_batchnorm_and_dropout(pool: rd.Simulation) -> None:
    with one_thread():
        one_by_one = answers(rd.Simulation(executor="serial"), small_job())
    pooled = answers(pool, small_job())
    assert one_by_one.keys() == pooled.keys()
    for client, tensors in one_by_one.items():
        for a, b in zip(tensors, pooled[client], strict=True):
            assert torch.equal(a, b), client
    first, second = (one_by_one[c][0] for c in ("c0", "c1"))
    assert not torch.equal(first, second)  # swapped clients would show


@pytest.mark.parametrize("algorithm", [rd.FedAvg(), rd.FedProx(mu=0.1)])
def test_whole_runs_end_in_the_same_sha256(algorithm: rd.FedAvg) -> None:
    hashes = {
        small_job(algorithm=algorithm, simulation=s).run().sha256 for s in (rd.Simulation(executor="serial"), *POOLS)
    }
    assert len(hashes) == 1


def test_the_order_of_arrival_changes_no_bit_and_the_callers_random_state_stays() -> None:
    def backwards(client: str, task: Task) -> float:
        return 10.0 - int(client[1:])

    before = torch.get_rng_state()
    plain = small_job().run().sha256
    turned = small_job(simulation=rd.Simulation(executor="serial", duration=backwards)).run().sha256
    assert plain == turned
    assert torch.equal(before, torch.get_rng_state())


def test_a_seed_of_the_job_reaches_the_model_the_cohorts_and_the_shuffles() -> None:
    assert small_job(seed=7).run().sha256 != small_job(seed=8).run().sha256


def test_a_deadline_closes_a_round_and_a_goal_closes_it_earlier() -> None:
    def slow(client: str, task: Task) -> float:
        return 1.0 + int(client[1:])

    settings = {"clients_per_round": 6, "num_rounds": 1, "simulation": rd.Simulation(executor="serial", duration=slow)}
    late = small_job(workflow=rd.Rounds(deadline_s=3.0), **settings).run()
    assert (late.rows[0]["admitted"], late.rows[0]["late"], late.rows[0]["virtual_s"]) == (3, 3, 3.0)
    goal = small_job(workflow=rd.Rounds(goal=2), **settings).run()
    assert (goal.rows[0]["admitted"], goal.rows[0]["late"], goal.rows[0]["virtual_s"]) == (2, 4, 2.0)


def test_a_round_in_which_nobody_answers_keeps_the_old_model() -> None:
    job = small_job(
        num_rounds=1, workflow=rd.Rounds(deadline_s=0.5),
        simulation=rd.Simulation(executor="serial", duration=lambda client, task: 1.0),
    )  # fmt: skip
    history = job.run()
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(7, 0, 0, "", "model"))
        initial = Awkward()
    for name, value in initial.state_dict().items():
        assert torch.equal(history.model.state_dict()[name], value)
