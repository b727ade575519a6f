"""The floor of the benchmarks: FedAvg written by hand for one machine, with no framework in between.

One process a core is forked once and lives for the whole run. The data are inherited; the parameters, the running sums
and the cohort are memory the processes share. So nothing is pickled; a round costs two semaphore operations a worker.
The arithmetic is plain PyTorch: the module's forward, `F.cross_entropy`, `loss.backward`, `torch.optim.SGD`. What a
framework takes beyond this is its overhead. POSIX only: it forks.

    python benchmarks/floor.py [NAMES] [--rounds N] [--warmup N] [--serial]

Clients go to whichever worker is free, so the sums are added in another order each time: two runs agree to rounding,
not to the bit, except with --serial.
"""

import mmap
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.synchronize import Semaphore
from typing import Annotated, Any

import psutil
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import LEARNING_RATE, SEED, WORKLOADS, Workload

POLL_S = 1.0  # how often a waiting process looks whether the others are still there
FLAT_GRADIENT_LIMIT = 1_000_000  # parameters; see _Trainer
# Parameters above which the workers average, a slice each. With two workers it gains nothing, they wait for the same
# memory; it is there because the parent's share grows with their number.
PARALLEL_AVERAGE_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Floor:
    """What one run took; the memory is read after the last round, while the workers still live.

    `server_rss_bytes` counts the data and the shared vectors in full; `total_pss_bytes`, over all processes, counts
    every page once. `params` is the final global model as one float32 vector.
    """

    workload: Workload
    num_workers: int
    seconds_per_round: list[float]
    server_rss_bytes: int
    total_pss_bytes: int
    params: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """What all processes see. C: clients of a cohort, W: workers, D: parameters."""

    params_D: Tensor
    sums_WD: Tensor  # of num_examples * parameters, over the clients a worker took in this round
    num_examples_W: Tensor
    cohort_C: Tensor
    round_and_phase: Tensor
    next_position: Any  # multiprocessing.Value("l"), whose type is private: how many of cohort_C are taken


class _Trainer:
    """One worker's model, as views into one flat vector, so that loading and adding up are one call each.

    A small model has one flat gradient too: autograd adds into it, and the optimizer sees a single parameter. A large
    one lets autograd hand over the gradients it allocates, which saves a pass over memory that a cache does not hold.
    """

    def __init__(self, workload: Workload, x: Tensor, y: Tensor) -> None:
        self.workload, self.x, self.y = workload, x, y
        self.model = workload.make_model()
        params = list(self.model.parameters())
        sizes = [p.numel() for p in params]
        self.flat = torch.cat([p.detach().flatten() for p in params])
        for p, part in zip(params, self.flat.split(sizes), strict=True):
            p.data = part.view_as(p)
        self.flat_grad: Tensor | None = None
        if self.flat.numel() <= FLAT_GRADIENT_LIMIT:
            self.flat_grad = torch.zeros_like(self.flat)
            for p, part in zip(params, self.flat_grad.split(sizes), strict=True):
                p.grad = part.view_as(p)
            params = [nn.Parameter(self.flat)]
            params[0].grad = self.flat_grad
        self.optimizer = torch.optim.SGD(params, lr=LEARNING_RATE)
        self.batch_x, self.batch_y = (torch.empty_like(whole[: workload.examples_per_client]) for whole in (x, y))

    def train(self, params_D: Tensor, client: int, seed: int) -> Tensor:
        """Return the client's parameters after one epoch from `params_D`, in a vector that the next call overwrites.

        `seed` decides the order of the examples and the dropout.
        """
        num_examples = self.workload.examples_per_client
        torch.default_generator.manual_seed(seed)
        self.flat.copy_(params_D)
        rows = torch.randperm(num_examples).add_(client * num_examples)
        torch.index_select(self.x, 0, rows, out=self.batch_x)
        torch.index_select(self.y, 0, rows, out=self.batch_y)
        batch_size = self.workload.batch_size
        for x, y in zip(self.batch_x.split(batch_size), self.batch_y.split(batch_size), strict=True):
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            if self.flat_grad is None:
                self.optimizer.zero_grad(set_to_none=True)
            else:
                self.flat_grad.zero_()
        return self.flat


TRAIN, AVERAGE = 0, 1


def run_floor(workload: Workload, rounds: int, warmup: int = 2, serial: bool = False) -> Floor:
    """Run `warmup + rounds` rounds and time the last `rounds`; nothing is evaluated.

    Raises:
        RuntimeError: a worker ended before its round did.
    """
    num_threads = torch.get_num_threads()
    # A child of fork has only the forking thread: it would wait for ever for an OpenMP team the parent had started.
    torch.set_num_threads(1)
    try:
        num_workers = 1 if serial else min(workload.cohort, len(os.sched_getaffinity(0)))
        torch.manual_seed(SEED)
        params_D = _share(nn.utils.parameters_to_vector(workload.make_model().parameters()).detach())
        x, y = workload.make_data()
        context = multiprocessing.get_context("fork")
        shared = _Shared(
            params_D=params_D,
            sums_WD=_shared_zeros((num_workers, params_D.numel()), torch.float32),
            num_examples_W=_shared_zeros((num_workers,), torch.int64),
            cohort_C=_shared_zeros((workload.cohort,), torch.int64),
            round_and_phase=_shared_zeros((2,), torch.int64),
            next_position=context.Value("l", 0),
        )
        open_pool = _serial_pool(workload, x, y, shared) if serial else _pool(context, workload, x, y, shared)
        with open_pool as run_phase:
            seconds = _run_rounds(workload, warmup + rounds, shared, run_phase)[warmup:]
            process = psutil.Process()
            processes = [process, *process.children()]
            return Floor(
                workload,
                num_workers,
                seconds,
                process.memory_info().rss,
                sum(p.memory_full_info().pss for p in processes),
                shared.params_D.clone(),
            )
    finally:
        torch.set_num_threads(num_threads)


def _run_rounds(workload: Workload, rounds: int, shared: _Shared, run_phase: Callable[[int], None]) -> list[float]:
    generator = torch.Generator().manual_seed(SEED)
    seconds = []
    for number in range(rounds):
        start = time.perf_counter()
        shared.cohort_C.copy_(torch.randperm(workload.num_clients, generator=generator)[: workload.cohort])
        shared.next_position.value = 0
        shared.round_and_phase[0] = number
        run_phase(TRAIN)
        if shared.params_D.numel() > PARALLEL_AVERAGE_LIMIT:
            run_phase(AVERAGE)
        else:
            _average(shared, slice(None))
        seconds.append(time.perf_counter() - start)
    return seconds


def _train_clients(trainer: _Trainer, shared: _Shared, worker: int) -> None:
    """Take clients off the cohort until none is left, and leave their weighted sum in `sums_WD[worker]`."""
    sum_D = shared.sums_WD[worker]
    cohort = shared.cohort_C.tolist()
    first_seed = SEED + int(shared.round_and_phase[0]) * trainer.workload.num_clients
    weight = trainer.workload.examples_per_client
    total = 0
    while (position := _take(shared.next_position)) < len(cohort):
        client = cohort[position]
        params_D = trainer.train(shared.params_D, client, first_seed + client)
        if total == 0:
            torch.mul(params_D, weight, out=sum_D)  # as good as clearing the sum first, and one pass fewer
        else:
            sum_D.add_(params_D, alpha=weight)
        total += weight
    shared.num_examples_W[worker] = total


def _take(counter: Any) -> int:
    with counter.get_lock():
        position = counter.value
        counter.value = position + 1
    return position


def _average(shared: _Shared, part: slice) -> None:
    """Write `part` of the new global model; a worker that came too late for any client left an old sum, not counted."""
    num_examples = shared.num_examples_W.tolist()
    sums = [shared.sums_WD[worker, part] for worker, n in enumerate(num_examples) if n]
    params = shared.params_D[part]
    if len(sums) == 1:
        params.copy_(sums[0])
    else:
        torch.add(sums[0], sums[1], out=params)
    for other in sums[2:]:
        params.add_(other)
    params.div_(sum(num_examples))


def _run_phase(trainer: _Trainer, shared: _Shared, worker: int) -> None:
    if shared.round_and_phase[1] == TRAIN:
        _train_clients(trainer, shared, worker)
    else:
        num_params, num_workers = shared.params_D.numel(), len(shared.num_examples_W)
        _average(shared, slice(worker * num_params // num_workers, (worker + 1) * num_params // num_workers))


@contextmanager
def _serial_pool(workload: Workload, x: Tensor, y: Tensor, shared: _Shared) -> Iterator[Callable[[int], None]]:
    trainer = _Trainer(workload, x, y)

    def run_phase(phase: int) -> None:
        shared.round_and_phase[1] = phase
        _run_phase(trainer, shared, 0)

    yield run_phase


@contextmanager
def _pool(
    context: ForkContext, workload: Workload, x: Tensor, y: Tensor, shared: _Shared
) -> Iterator[Callable[[int], None]]:
    """Yield a function that has every worker run one phase, and returns when all have; at the end, end the workers."""
    # A start each: from a common one, a fast worker could take the token of a slow one as well.
    starts = [context.Semaphore(0) for _ in shared.num_examples_W]
    done = context.Semaphore(0)
    workers = [
        context.Process(target=_work, args=(workload, x, y, shared, worker, start, done), daemon=True)
        for worker, start in enumerate(starts)
    ]

    def run_phase(phase: int) -> None:
        shared.round_and_phase[1] = phase
        for start in starts:
            start.release()
        for _ in workers:
            while not done.acquire(timeout=POLL_S):
                _check_alive(workers)

    try:
        for process in workers:
            process.start()
        yield run_phase
    finally:
        started = [process for process in workers if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _check_alive(workers: list[ForkProcess]) -> None:
    for process in workers:
        if process.exitcode is not None:
            raise RuntimeError(f"{process.name} of the floor ended with exit code {process.exitcode} inside a round")


def _work(
    workload: Workload, x: Tensor, y: Tensor, shared: _Shared, worker: int, start: Semaphore, done: Semaphore
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the parent ends us
    torch.set_num_threads(1)
    parent = os.getppid()
    trainer = _Trainer(workload, x, y)
    while True:
        while not start.acquire(timeout=POLL_S):
            if os.getppid() != parent:  # it was killed and could not end us
                return
        _run_phase(trainer, shared, worker)
        done.release()


def _share(tensor: Tensor) -> Tensor:
    return _shared_zeros(tensor.shape, tensor.dtype).copy_(tensor)


def _shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that children of fork share; anonymous, so a killed run leaves nothing in /dev/shm."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Workloads; all when left out.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed rounds, in place of the workload's own.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before the timed ones.")] = 2,
    serial: Annotated[bool, typer.Option("--serial", help="One process, one thread, no workers.")] = False,
) -> None:
    """Time the floor. `ms/client` is the time of a round over the size of its cohort, on all workers together."""
    unknown = sorted(set(names or ()) - set(WORKLOADS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(WORKLOADS)}")
    print(f"$ {' '.join(sys.argv)}")
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, ", end="")
    print(f"PyTorch {torch.__version__}")
    print(f"{'workload':<10}{'workers':>8}{'rounds':>8}{'s/round':>11}{'ms/client':>11}{'rounds/s':>10}{'memory':>10}")
    for name in names or WORKLOADS:
        workload = WORKLOADS[name]
        floor = run_floor(workload, rounds or workload.rounds, warmup, serial)
        median = statistics.median(floor.seconds_per_round)
        print(
            f"{name:<10}{floor.num_workers:>8}{len(floor.seconds_per_round):>8}{median:>11.4f}"
            f"{median / workload.cohort * 1e3:>11.3f}{1 / median:>10.2f}{floor.total_pss_bytes / 2**20:>6.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
