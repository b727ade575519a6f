"""Where simulated clients train. Executors differ in speed and never in bits."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.trainer import Answer, Evaluated

Result = Answer | Evaluated | Lost


class Executor(Protocol):
    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        """Start tasks that all begin from ``received``, in the order in which they will be asked for; more than the
        workers can take wait in line. Never blocks on training.

        ``memories`` holds what each client remembers; a client without an entry remembers nothing. ``all_needed``:
        every result will be asked for, so that it may pay to begin with another than the first.
        """

    def result(self, task_id: int) -> Result:
        """Block until one task's result is there. Its tensors are valid until ``release`` or the next ``result``."""

    def release(self, task_id: int) -> None:
        """Say that a result's tensors are no longer needed."""

    def cancel(self, task_ids: Sequence[int]) -> None:
        """Drop tasks whose results nobody will ask for."""

    def interrupt(self) -> None:
        """Make a blocked or later ``result`` raise KeyboardInterrupt; called from another thread."""

    def close(self) -> None:
        """Give back processes and memory; harmless when called twice."""


class BlockExecutor(Executor, Protocol):
    """One that can also train a block of clients side by side, as one piece of work under its first task's id."""

    def submit_block(self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory]) -> None: ...

    def block_result(self, task_id: int) -> list[Answer] | Lost:
        """Block until a block is done; return its answers in the order of its tasks, or why there are none. Their
        tensors are valid until the block is released.
        """
        ...
