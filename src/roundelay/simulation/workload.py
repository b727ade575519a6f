"""How much work a task is, known before anything is trained: the samples that it goes through."""

from dataclasses import dataclass, field

from roundelay.errors import DataError
from roundelay.learner import LocalSGD
from roundelay.messages import Task
from roundelay.stages.uplink import for_training
from roundelay.trainer import Work


@dataclass(frozen=True, slots=True)
class Workload:
    """The examples of an epoch times the epochs, or those of so many batches; for scripts and a user's own function,
    which train in ways of their own, one epoch. A client whose data only its script knows counts as one sample.
    """

    work: Work
    _sizes: dict[str, int] = field(default_factory=dict)

    def size(self, client: str) -> int:
        """Return how many examples a client has."""
        if client not in self._sizes:
            try:
                self._sizes[client] = self.work.data.size(client)
            except DataError:
                self._sizes[client] = 1
        return self._sizes[client]

    def samples(self, task: Task) -> int:
        learner, size = self.work.learner, self.size(task.client)
        if not isinstance(learner, LocalSGD):
            return size
        learner = learner.configured(for_training(task))
        if learner.local_batches is not None:
            return learner.local_batches * min(size, learner.batch_size if learner.batch_size > 0 else size)
        return size * (learner.local_epochs or 1)
