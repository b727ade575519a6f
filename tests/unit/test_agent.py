"""The agent against a real front with a real journal: what it does with tasks, memory, models, and the end of a run."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from agents import Party, answer_in, answered, beside, model, over, payload, sha256, tensors, until
from fronts import RUN, Place, briefing_for, place, within

from roundelay.client.exchange import Answered, Scalar
from roundelay.deployment.board import Phase
from roundelay.deployment.device import agent
from roundelay.deployment.device.agent import Agent
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.shelves import Models
from roundelay.deployment.device.trouble import Unreachable
from roundelay.deployment.journal.records import Fate, TaskState
from roundelay.deployment.protocol import Briefing, Offer
from roundelay.errors import DeviceError
from roundelay.load import Load
from roundelay.messages import Task


def test_a_task_is_done_and_its_answer_is_in_the_journal_and_nowhere_else(tmp_path: Path) -> None:
    with place() as here:
        party = Party.of(here, tmp_path)
        here.open_round(model=model())

        async def script() -> None:
            await answered(here, 1)
            over(here)

        assert within(beside(party.take_part(), script)) == "the run has ended: it is done"
        answer = answer_in(here, 1)
    assert answer.payload is not None
    assert torch.equal(answer.payload.vectors["params"], 2 * payload().vectors["params"])
    assert (answer.task_id, answer.num_examples, answer.memory) == (1, 10.0, {})
    assert party.hands.begun == [Task(1, "a", 1)]
    assert party.hands.num_closed == 1
    assert party.briefings == [briefing_for("a")]
    with Device(tmp_path) as device:
        assert device.answers.of(RUN) == ()
        assert tensors(device.memories.read(RUN, 1)) == {"num_done": 1.0}


# ---- memory ---------------------------------------------------------------------------------------------------------


def check_memory(folder: Path) -> None:
    """Three trainings: the second begins as if the first had not been, since nobody said that it counts."""
    with place(members="a") as here:
        party = Party.of(here, folder)
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await answered(here, 1)
            here.open_round(2, "a", 2, model(value=2.5))
            await answered(here, 2)
            here.journal.settle(2, Fate.ADMITTED)
            here.journal.commit([2])
            digest = here.journal.blobs.put(model(value=3.5))
            here.journal.tasks.open([Task(3, "a", 2, kind="evaluate")], digest)
            here.journal.tasks.open([Task(4, "a", 2, kind="submit")], digest, here.journal.committed())
            here.board.post("a")
            await answered(here, 3, 4)
            over(here)

        within(beside(party.take_part(), script))
    assert party.hands.memories == [{}, {}, {}, {"num_done": 1.0}], party.said
    with Device(folder) as device:
        kept = [tensors(device.memories.read(RUN, task)) for task in (1, 2, 3, 4)]
        assert kept == [None, {"num_done": 1.0}, None, {"num_done": 2.0}]


def test_memory_goes_forward_only_when_a_later_offer_names_it(tmp_path: Path) -> None:
    check_memory(tmp_path)


def test_an_agent_that_goes_on_from_what_it_did_last_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    honest = Agent._remembered

    def last(self: Agent, offer: object) -> object:
        for task in (3, 2, 1):
            memory = self._device.memories.read(RUN, task)
            if memory is not None:
                return memory
        return honest(self, offer)  # type: ignore[arg-type]

    monkeypatch.setattr(Agent, "_remembered", last)
    with pytest.raises(AssertionError):
        check_memory(tmp_path)


def test_a_memory_that_was_lost_is_said_to_be_so(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await answered(here, 1)
            here.journal.settle(1, Fate.ADMITTED)
            here.journal.commit([1])
            (tmp_path / "memory" / RUN / "1").write_bytes(b"damaged")
            digest = here.journal.blobs.put(model(value=3.5))
            here.journal.tasks.open([Task(2, "a", 1, kind="submit")], digest, here.journal.committed())
            here.board.post("a")
            await answered(here, 2)
            over(here)

        within(beside(party.take_part(), script))
    assert party.hands.memories == [{}, {}]
    assert party.heard("what this client remembered of task 1 is not in")


# ---- loads ----------------------------------------------------------------------------------------------------------


def test_a_device_tells_its_own_load_and_nothing_of_it_is_remembered(tmp_path: Path) -> None:
    loads = iter([Load(cpu_percent=97.5, memory_percent=40.0), Load()])
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.load = lambda: next(loads)
        digest = here.journal.blobs.put(model(0))
        here.journal.tasks.open([Task(1, "a", 1, kind="load"), Task(2, "a", 1, kind="load")], digest)

        async def script() -> None:
            await answered(here, 1, 2)
            here.open_round(1, "a", 3, model())
            await answered(here, 3)
            over(here)

        within(beside(party.take_part(), script))
        answers = [answer_in(here, task) for task in (1, 2)]
    assert [answer.metrics for answer in answers] == [{"cpu_percent": 97.5, "memory_percent": 40.0}, {}]
    assert [answer.payload for answer in answers] == [None, None]
    assert [task.kind for task in party.hands.begun] == ["train"], "hands know nothing of loads"
    assert party.heard("load, round 1: cpu_percent 97.5, memory_percent 40")
    assert party.heard("pip install 'roundelay[load]'"), "where nothing is known it is said why"
    with Device(tmp_path) as device:
        assert [tensors(device.memories.read(RUN, task)) for task in (1, 2, 3)] == [None, None, {"num_done": 1.0}]


# ---- models ---------------------------------------------------------------------------------------------------------


def test_a_model_that_is_here_is_not_fetched_again_and_a_damaged_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    put = Models.put

    def counted(self: Models, digest: str) -> None:
        fetched.append(digest)
        put(self, digest)

    monkeypatch.setattr(Models, "put", counted)
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        digest = here.open_round(1, "a", 1, model())

        async def script() -> None:
            await answered(here, 1)
            here.open_round(2, "a", 2, model())
            await answered(here, 2)
            assert fetched == [digest]
            path = tmp_path / "models" / digest
            path.write_bytes(bytes(path.stat().st_size))
            here.open_round(3, "a", 3, model())
            await answered(here, 3)
            assert fetched == [digest, digest]
            for number, value in ((4, 2.5), (5, 3.5), (6, 4.5)):
                here.open_round(number, "a", number, model(value=value))
                await answered(here, number)
            over(here)

        within(beside(party.take_part(), script))
        first, third = (answer_in(here, task).payload for task in (1, 3))
    assert first is not None
    assert third is not None
    assert torch.equal(first.vectors["params"], third.vectors["params"])
    assert len(fetched) == 5
    assert len(list((tmp_path / "models").iterdir())) == 2, "others than the last ones are not kept"


def test_a_model_that_was_cut_off_with_its_offer_is_asked_for_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    poll = Link.poll

    async def cut(self: Link, doing: Sequence[int], wait_s: float, having: Sequence[str] | None = None) -> Any:
        asked.append(having is not None)
        came = await poll(self, doing, wait_s, having)
        if came is not None and came[0].enclosed:
            raise Unreachable("cut in the middle")
        return came

    monkeypatch.setattr(Link, "poll", cut)
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), script))
    assert asked[:2] == [True, False]


def test_a_blob_that_is_no_model_is_a_task_that_cannot_be_done(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, b"no frame at all")

        async def script() -> None:
            await until(lambda: _state(here, 1) is TaskState.LOST, "the loss")
            over(here)

        within(beside(party.take_part(), script))
        kept = here.journal.tasks.get(1)
    assert kept is not None
    assert "what the server sent as a model is none" in kept.reason
    assert party.hands.begun == []


# ---- tasks that come to nothing -------------------------------------------------------------------------------------


def _state(here: Place, task: int) -> TaskState | None:
    kept = here.journal.tasks.get(task)
    return None if kept is None else kept.state


def test_a_task_that_cannot_be_done_is_told_with_its_traceback_and_the_next_one_is_done(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.hands.fails = "no such column"
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await until(lambda: _state(here, 1) is TaskState.LOST, "the loss")
            party.hands.fails = ""
            here.open_round(2, "a", 2, model())
            await answered(here, 2)
            over(here)

        within(beside(party.take_part(), script))
        kept = here.journal.tasks.get(1)
    assert kept is not None
    assert (kept.reason, kept.traceback) == ("no such column", "Traceback: here")


def test_a_task_that_is_over_is_left_in_the_midst_of_training(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.hands.gate.clear()
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await until(party.hands.inside.is_set, "training")
            here.journal.rounds.close(1, 0, [])
            here.board.post("a")
            await until(lambda: party.heard("nobody waits for it"), "the end of the task")
            party.hands.gate.set()
            here.open_round(2, "a", 2, model())
            await answered(here, 2)
            over(here)

        within(beside(party.take_part(), script))
        assert here.journal.update(1) is None
    assert party.hands.num_interrupts >= 1
    with Device(tmp_path) as device:
        assert device.memories.read(RUN, 1) is None


def test_an_answer_that_comes_too_late_is_forgotten_with_its_memory(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.clock.sleep = _no_beats(party)  # type: ignore[method-assign]
        party.hands.gate.clear()
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await until(party.hands.inside.is_set, "training")
            assert party.agent is not None
            party.agent._pulse._due_s = math.inf  # nor is there one between training and answer
            here.journal.rounds.close(1, 0, [])
            party.hands.gate.set()
            await until(lambda: party.heard("does not count (late)"), "the verdict")
            over(here)

        within(beside(party.take_part(), script))
    with Device(tmp_path) as device:
        assert device.memories.read(RUN, 1) is None
        assert device.answers.of(RUN) == ()


def _no_beats(party: Party) -> object:
    async def sleep(seconds: float) -> None:
        await asyncio.Event().wait()

    return sleep


def test_numbers_that_a_script_logs_arrive_with_their_round_and_before_the_answer(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.hands.gate.clear()
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await until(party.hands.inside.is_set, "training")
            assert party.agent is not None
            for step in range(3):
                party.agent.log("a", 1, Scalar("loss", 0.5 * step, step))
            party.agent.log("a", 1, Scalar("odd", float("nan"), 3))
            party.hands.gate.set()
            await answered(here, 1)
            assert [what[:3] + what[4:] for what in here.scalars] == [
                ("a", 1, "loss", 0), ("a", 1, "loss", 1), ("a", 1, "loss", 2), ("a", 1, "odd", 3)
            ]  # fmt: skip
            over(here)

        within(beside(party.take_part(), script))


# ---- the run --------------------------------------------------------------------------------------------------------


def test_whoever_is_shut_out_is_told_so_and_stops(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.hands.gate.clear()
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await until(party.hands.inside.is_set, "training")
            here.roster.revoke("a")

        with pytest.raises(DeviceError, match="takes nothing that this device signs as 'a'"):
            within(beside(party.take_part(), script))
    assert party.hands.num_interrupts >= 1
    assert party.hands.num_closed == 1


def test_another_run_takes_the_place_of_the_first_and_its_answers_are_dropped(tmp_path: Path) -> None:
    device_folder = tmp_path / "device"
    with place(root=tmp_path, members="a") as here:
        party = Party.of(here, device_folder)
        keys = here.keys
        here.open_round(1, "a", 1, model())
        with Device(device_folder) as device:  # one that was kept, and whose server is gone
            offer = _offer(model())
            device.answers.keep("older", offer, Answered(9, 1, True, {}).frame())

        async def first() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), first))
    assert party.heard("1 finished answers for other runs than 'one' were dropped")

    with place(root=tmp_path, members="a", run="two", keys=keys, briefing=_briefing_two) as here:
        party.url = here.url
        here.open_round(1, "a", 1, model())

        async def second() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), second))
    assert [one.run for one in party.briefings] == ["one", "two"]
    with Device(device_folder) as device:
        assert device.memories.read("one", 1) is not None, "a server may go back to a run"


def _briefing_two(client: str) -> Briefing:
    return briefing_for(client).model_copy(update={"run": "two"})


def _offer(data: bytes) -> Offer:
    return Offer(id=9, round=1, attempt=0, kind="train", config={}, sent=sha256(data), size=len(data), memory=None)


def test_a_server_of_another_protocol_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PROTOCOL", 99)
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        with pytest.raises(DeviceError, match="speaks version 3 of the protocol, this device 99; install roundelay"):
            within(party.take_part())


def test_a_run_that_has_ended_already_is_over_at_once(tmp_path: Path) -> None:
    with place(members="a", phase=Phase.ENDED) as here:
        assert within(Party.of(here, tmp_path).take_part()) == "the run has ended"


def test_who_is_not_taken_into_a_run_is_told_why(tmp_path: Path) -> None:
    with place(members="a") as first:
        party = Party.of(first, tmp_path)
        keys = first.keys
    with place(members="", keys={}, clients="b") as here:
        here.roster.admit("a", keys["a"].public)
        party.url = here.url
        with pytest.raises(DeviceError, match="none of the 1 clients of this run"):
            within(party.take_part())
