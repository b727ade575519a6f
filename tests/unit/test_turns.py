"""Long bodies take turns: a few in each turn of the loop, who came first is first, and nobody who hung up counts."""

import asyncio

import pytest

from roundelay.deployment.front.turns import Turns


def course(num_pieces: int, per_turn: int, gone: tuple[int, ...] = ()) -> list[int]:
    """Return in which turn of the loop each of these got its own, in the order in which they came."""

    async def go() -> list[int]:
        turns, at, now = Turns(per_turn), dict[int, int](), 0

        async def one(number: int) -> None:
            await turns.turn()
            at[number] = now

        tasks = [asyncio.create_task(one(number)) for number in range(num_pieces)]
        await asyncio.sleep(0)
        for number in gone:
            tasks[number].cancel()
        while not all(task.done() for task in tasks):
            now += 1
            await asyncio.sleep(0)
        return [at[number] for number in range(num_pieces) if number not in gone]

    return asyncio.run(go())


def check_turns() -> None:
    """The contract: at most so many in each turn of the loop, in the order in which they came, and none is lost."""
    for num_pieces, gone in ((3, ()), (20, ()), (20, (5, 6, 19))):
        when = course(num_pieces, 4, gone)
        assert when == sorted(when)
        assert all(when.count(turn) <= 4 for turn in when)
        assert when[-1] <= 2 * (-(-num_pieces // 4))


def test_so_many_go_on_in_each_turn_of_the_loop() -> None:
    check_turns()


def test_the_check_of_turns_catches_everybody_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Turns) -> None: ...

    monkeypatch.setattr(Turns, "turn", at_once)
    with pytest.raises(AssertionError):
        check_turns()


def test_the_check_of_turns_catches_the_last_who_are_first(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Turns.__init__

    class Stack(list[asyncio.Future[None]]):
        def popleft(self) -> "asyncio.Future[None]":
            return self.pop()

    def planted(self: Turns, per_turn: int) -> None:
        init(self, per_turn)
        self._waiting = Stack()  # type: ignore[assignment]

    monkeypatch.setattr(Turns, "__init__", planted)
    with pytest.raises(AssertionError):
        check_turns()
