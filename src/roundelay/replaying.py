"""What the journal of a run on devices tells of its course, for a simulation that keeps to it."""

from collections.abc import Mapping
from pathlib import Path

from roundelay.course import ADMITTED, Ask, Course, End, ask_of
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Fate, KeptTask, Received, TaskState
from roundelay.deployment.running.told import ARRIVAL, FINISHED, LOADS, read_loads
from roundelay.errors import ConfigError
from roundelay.load import Load
from roundelay.tracking.run_folder import JOURNAL


def course_of(run_folder: Path) -> Course:
    """Return how the run in ``run_folder`` went, as far as it got.

    Raises:
        ConfigError: it did not run on devices, or has not finished a round.
        JournalError: its journal cannot be read, or its server is at work.
    """
    if not (run_folder / JOURNAL).is_dir():
        raise ConfigError(f"{run_folder} is no run on real devices, which alone has a journal to replay")
    with Journal(run_folder / JOURNAL, None) as journal:
        updates = {received.task_id: received for received in journal.updates()}
        tasks = {kept.task.id: kept for kept in journal.tasks.all()}
        told: list[Ask] = []
        loads: list[Mapping[str, Load]] = []
        num_rounds = 0
        for answer in journal.recorded():
            if answer.kind == LOADS:
                loads.append(read_loads(answer.content))
                continue
            assert isinstance(answer.content, int)
            if answer.kind == ARRIVAL:
                told.append(ask_of(tasks[answer.content].task))
            elif answer.kind == FINISHED:
                num_rounds = answer.content
    if not num_rounds:
        raise ConfigError(f"the run in {run_folder} has finished no round yet: there is nothing to replay")
    ends = {ask_of(kept.task): _end(kept, updates.get(task_id)) for task_id, kept in tasks.items()}
    return Course(ends, told, num_rounds, loads)


def _end(kept: KeptTask, received: Received | None) -> End:
    if kept.state is TaskState.LOST:
        return End("lost", kept.reason, kept.traceback)
    if received is None or received.fate is Fate.LATE:
        return End("late")
    if received.fate is Fate.REFUSED:
        return End("refused", received.reason)
    return ADMITTED
