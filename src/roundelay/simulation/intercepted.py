"""An executor whose answers pass through hostile hands on their way to the server.

It sits below the network's model: what it does to an answer depends on the tasks that were submitted together, never on
the order in which their results are asked for. Memory: where clients collude, the honest answers of a round are held
until each has been asked for, and once more while the colluders look at them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from roundelay.attacks.faults import Drop, strikes
from roundelay.attacks.protocol import Colludes, Lies
from roundelay.attacks.roles import Roles, is_honest
from roundelay.fold import starting_point
from roundelay.guard import all_finite
from roundelay.layout import Layout
from roundelay.layout.travel import opened, packed
from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.seeds import generator
from roundelay.simulation.executors.protocol import Executor, Result
from roundelay.stages.decoding import Decoder
from roundelay.stages.triggers import Always
from roundelay.stages.uplink import apart, coded
from roundelay.trainer import Answer, Work


@dataclass(slots=True)
class _Batch:
    """Tasks that were submitted together, without those that are dropped, in order of client id; ``kept`` holds honest
    answers until they are asked for.
    """

    tasks: Sequence[Task]
    received: Payload
    memories: Mapping[str, Memory]
    looked: bool = False
    kept: dict[int, Result] = field(default_factory=dict)
    chosen: dict[int, Tensor] = field(default_factory=dict)  # by the colluding attack's identity: the step to send


class Intercepted:
    def __init__(self, inner: Executor, roles: Roles, lengths: Mapping[str, int], work: Work, layout: Layout) -> None:
        """``lengths`` are those of the algorithm's uplink vectors, in their order."""
        self._inner, self._roles, self._lengths, self._seed = inner, roles, lengths, work.seed
        self._uplink, self._layout = work.uplink, layout
        self._batches: dict[int, tuple[Task, _Batch]] = {}
        self._dropped: set[int] = set()

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        dropped = {task.id for task in tasks if task.kind != "evaluate" and self._drops(task)}
        self._dropped |= dropped
        answered = [task for task in tasks if task.id not in dropped]
        self._inner.submit(answered, received, memories, all_needed=all_needed)
        if tasks and tasks[0].kind != "evaluate":
            in_order = sorted(answered, key=lambda task: (task.client, task.id))
            batch = _Batch(in_order, opened(self._layout, received), memories)
            self._batches.update({task.id: (task, batch) for task in tasks})

    def result(self, task_id: int) -> Result:
        if task_id not in self._batches:
            return self._inner.result(task_id)
        task, batch = self._batches[task_id]
        if task_id in self._dropped:
            return Lost(task, f"the answer of client {task.client!r} is lost on its way, as attacks.Drop says")
        if not batch.looked:
            self._look_at(batch)
        answer = batch.kept.pop(task_id) if task_id in batch.kept else self._inner.result(task_id)
        return self._tampered(answer, batch) if isinstance(answer, Answer) else answer

    def release(self, task_id: int) -> None:
        self._forget(task_id)
        self._inner.release(task_id)

    def cancel(self, task_ids: Sequence[int]) -> None:
        self._inner.cancel([task_id for task_id in task_ids if not self._forget(task_id)])

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._batches.clear()
        self._inner.close()

    def _forget(self, task_id: int) -> bool:
        """Drop what is held of a task; return whether the inner executor has been done with it before."""
        _, batch = self._batches.pop(task_id, (None, None))
        kept = batch is not None and batch.kept.pop(task_id, None) is not None
        if task_id in self._dropped:
            self._dropped.remove(task_id)
            return True
        return kept

    def _drops(self, task: Task) -> bool:
        drops = (role for role in self._roles.get(task.client, ()) if isinstance(role, Drop))
        return any(strikes(drop, self._seed, task) for drop in drops)

    def _look_at(self, batch: _Batch) -> None:
        """Let each colluding attack choose its step. The honest updates that would be refused do not count."""
        batch.looked = True
        played = [role for task in batch.tasks for role in self._roles.get(task.client, ())]
        colluding = {id(role): role for role in played if isinstance(role, Colludes)}
        if not colluding:
            return
        rows = []
        for task in batch.tasks:
            roles = self._roles.get(task.client, ())
            if not is_honest(roles) or any(isinstance(role, Lies) for role in roles):
                continue
            answer = self._inner.result(task.id)
            if isinstance(answer, Answer):
                answer = _copied(answer)
                opened = self._opened(answer, batch)
                if opened is not None:
                    step = self._points(opened) - self._base(batch)
                    if all_finite(step):
                        rows.append(step)
            self._inner.release(task.id)
            batch.kept[task.id] = answer
        if rows:
            honest = torch.stack(rows)
            for role in colluding.values():
                num_hostile = sum(any(own is role for own in self._roles.get(t.client, ())) for t in batch.tasks)
                batch.chosen[id(role)] = role.collude(honest, num_hostile)

    def _tampered(self, answer: Answer, batch: _Batch) -> Answer:
        update = answer.update
        task, payload = update.task, update.payload
        roles = [role for role in self._roles.get(task.client, ()) if isinstance(role, Lies | Colludes)]
        opened = self._opened(answer, batch) if roles else None
        if opened is None:
            return answer
        base = self._base(batch)
        step = self._points(opened) - base
        for number, role in enumerate(roles):
            if isinstance(role, Lies):
                step = role.lie(step, generator(self._seed, task.round, task.attempt, task.client, f"lie-{number}"))
            elif id(role) in batch.chosen:  # with no honest client to look at, it sends what it has
                step = batch.chosen[id(role)]
        vectors = dict(zip(self._lengths, torch.split(base + step, list(self._lengths.values())), strict=True))
        return self._sealed(replace(answer, update=replace(update, payload=replace(payload, vectors=vectors))), batch)

    def _opened(self, answer: Answer, batch: _Batch) -> Payload | None:
        """Return what an answer says, or None where it says nothing: who keeps silent does not lie."""
        update, uplink = answer.update, self._uplink
        if uplink is None or update.task.kind != "train":
            return opened(self._layout, update.payload)
        if update.silent:
            return None
        client = update.task.client
        _, beside = apart(batch.memories.get(client, {}))
        decoder = Decoder(uplink, self._lengths, self._base(batch).dtype, batch.received, {client: beside})
        return decoder.decode(update).update.payload if _is_encoded(update.payload) else update.payload

    def _sealed(self, answer: Answer, batch: _Batch) -> Answer:
        """Return a lie as it travels. It has no residual of its own; what the server goes on from, its client does
        too.
        """
        update, uplink = answer.update, self._uplink
        if uplink is None or update.task.kind != "train":
            return replace(answer, update=replace(update, payload=packed(self._layout, update.payload)))
        followed = uplink.feedback == "ef21"
        liars = replace(uplink, trigger=Always(), feedback="ef21" if followed else "none")
        _, beside = apart(batch.memories.get(update.task.client, {})) if followed else ({}, {})
        sent = coded(liars, self._seed, update.task, batch.received, update.payload, beside)
        memory = {**answer.memory, **sent.memory}
        return Answer(replace(update, payload=sent.payload, fresh=sent.fresh), memory)

    def _points(self, payload: Payload) -> Tensor:
        return torch.cat([payload.vectors[name] for name in self._lengths])

    def _base(self, batch: _Batch) -> Tensor:
        return starting_point(self._lengths, self._lengths, batch.received)


def _is_encoded(payload: Payload) -> bool:
    """Whether no vector had to travel as it is because its values have no encoding."""
    return any(vector.dtype == torch.uint8 for vector in payload.vectors.values())


def _copied(answer: Answer) -> Answer:
    memory = {name: value.clone() for name, value in answer.memory.items()}
    return Answer(replace(answer.update, payload=answer.update.payload.copy()), memory)
