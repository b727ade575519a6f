"""Open invitations, and who may take part in a run."""

import contextlib
import os
import threading
from pathlib import Path

import pytest

from roundelay.deployment.trust import members
from roundelay.deployment.trust.doors import Doors
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import IdentityError

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
KEYS = [bytes([i] * 32) for i in range(9)]


def roster_in(folder: Path) -> Roster:
    return Roster(folder / "roster.json")


def test_an_open_door_has_seats_for_names_and_each_is_given_once(tmp_path: Path) -> None:
    token = roster_in(tmp_path).open_door(["a", "b", "c"], seats=2, valid_s=DAY_S, now_s=NOW_S).reveal()
    assert token not in (tmp_path / "roster.json").read_text()
    assert roster_in(tmp_path).enrol(token, KEYS[0], NOW_S, "b") == "b"
    roster = roster_in(tmp_path)  # each time as after a restart
    assert roster.enrol(token, KEYS[0], NOW_S, "b") == "b", "the answer may have been lost"
    assert roster.enrol(token, KEYS[0], NOW_S) == "b", "also where it did not care"
    with pytest.raises(IdentityError, match="name is taken"):
        roster.enrol(token, KEYS[1], NOW_S, "b")
    with pytest.raises(IdentityError, match="other clients than 'x'; expected a, b, c"):
        roster.enrol(token, KEYS[1], NOW_S, "x")
    assert roster.enrol(token, KEYS[1], NOW_S) == "a", "the first that is free"
    for client in (None, "c"):
        with pytest.raises(IdentityError, match="all seats"):
            roster_in(tmp_path).enrol(token, KEYS[2], NOW_S, client)
    assert roster_in(tmp_path).enrol(token, KEYS[1], NOW_S + 2 * DAY_S) == "a", "who has a seat keeps it"
    assert [roster.public_key(client) for client in "ab"] == [KEYS[1], KEYS[0]]


def test_a_name_that_is_taken_elsewhere_is_not_given(tmp_path: Path) -> None:
    roster = roster_in(tmp_path)
    token = roster.open_door(["a", "b", "gone"], seats=3, valid_s=DAY_S, now_s=NOW_S).reveal()
    assert roster.enrol(token, KEYS[0], NOW_S, taken=["a"]) == "b"
    assert roster.enrol(token, KEYS[1], NOW_S) == "a"
    for wrong in ("../x", "", "-x"):
        with pytest.raises(IdentityError, match="for other clients than"):
            roster.enrol(token, KEYS[2], NOW_S, wrong)
    with pytest.raises(IdentityError, match="name is taken"):
        roster.enrol(token, KEYS[2], NOW_S, "gone", taken=["gone"])
    assert roster.clients() == ["a", "b"]


def test_several_invitations_hold_until_they_run_out(tmp_path: Path) -> None:
    roster = roster_in(tmp_path)
    first = roster.open_door(["a", "b"], 2, DAY_S, NOW_S).reveal()
    second = roster_in(tmp_path).open_door(["a", "b"], 2, 3 * DAY_S, NOW_S).reveal()
    roster = roster_in(tmp_path)
    assert roster.enrol(first, KEYS[0], NOW_S) == "a"
    assert roster.enrol(second, KEYS[1], NOW_S) == "b"
    with pytest.raises(IdentityError, match="all names"):
        roster.enrol(second, KEYS[2], NOW_S)
    with pytest.raises(IdentityError, match="ran out 2 days ago"):
        roster.enrol(first, KEYS[2], NOW_S + 3 * DAY_S, "a")
    roster.open_door(["a"], 1, DAY_S, NOW_S + 40 * DAY_S)  # what ran out long ago is forgotten
    with pytest.raises(IdentityError, match="not one that the server"):
        roster.enrol(first, KEYS[2], NOW_S + 40 * DAY_S)
    for seats, names, valid_s in ((0, ["a"], DAY_S), (1, [], DAY_S), (1, ["a"], 0.0), (1, ["a/b"], DAY_S)):
        with pytest.raises(IdentityError):
            roster.open_door(names, seats, valid_s, NOW_S)


def test_a_token_of_ones_own_keeps_the_name_and_fits_no_other(tmp_path: Path) -> None:
    roster = roster_in(tmp_path)
    own = roster.invite("a", DAY_S, NOW_S).reveal()
    token = roster.open_door(["a", "b"], 2, 9 * DAY_S, NOW_S).reveal()
    with pytest.raises(IdentityError, match="a token of its own"):
        roster.enrol(token, KEYS[0], NOW_S, "a")
    assert roster.enrol(token, KEYS[0], NOW_S) == "b"
    with pytest.raises(IdentityError, match="made for client 'a', not for 'b'"):
        roster.enrol(own, KEYS[1], NOW_S, "b")
    assert roster.enrol(own, KEYS[1], NOW_S, "a") == "a"
    assert roster.enrol(own, KEYS[1], NOW_S) == "a"


def test_a_name_whose_own_token_ran_out_is_free(tmp_path: Path) -> None:
    roster = roster_in(tmp_path)
    roster.invite("a", DAY_S, NOW_S)
    token = roster.open_door(["a"], 1, 9 * DAY_S, NOW_S).reveal()
    assert roster.enrol(token, KEYS[0], NOW_S + 2 * DAY_S) == "a"


def test_the_first_key_that_came_over_a_dialled_connection_stands(tmp_path: Path) -> None:
    roster = roster_in(tmp_path)
    roster.bind("a", KEYS[0])
    roster_in(tmp_path).bind("a", KEYS[0])
    with pytest.raises(IdentityError, match="another key before"):
        roster_in(tmp_path).bind("a", KEYS[1])
    roster.revoke("a")
    roster.bind("a", KEYS[1])
    assert roster_in(tmp_path).public_key("a") == KEYS[1]


def rush(roster: Roster, token: str) -> list[str]:
    """Let eight devices come at once; return who got in."""
    barrier, inside = threading.Barrier(8), []

    def come(key: bytes) -> None:
        barrier.wait()
        try:
            inside.append(roster.enrol(token, key, NOW_S))
        except IdentityError:
            return

    threads = [threading.Thread(target=come, args=(key,)) for key in KEYS[:8]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return inside


def test_of_a_crowd_as_many_get_in_as_there_are_seats(tmp_path: Path) -> None:
    roster = roster_in(tmp_path)
    inside = rush(roster, roster.open_door("abcdefgh", 3, DAY_S, NOW_S).reveal())
    assert sorted(inside) == roster_in(tmp_path).clients() == ["a", "b", "c"]


def test_the_check_of_crowds_catches_a_roster_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = roster_in(tmp_path)
    token = roster.open_door("abcdefgh", 3, DAY_S, NOW_S).reveal()
    together = threading.Barrier(8)  # all have looked before one has written
    monkeypatch.setattr(roster._file, "changing", contextlib.nullcontext)
    monkeypatch.setattr(members, "write_members", lambda *_: together.wait(10))
    assert len(rush(roster, token)) == 8, "what the test above would have met"


def test_a_seat_that_could_not_be_written_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = roster_in(tmp_path)
    token = roster.open_door(["a"], 1, DAY_S, NOW_S).reveal()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            roster.enrol(token, KEYS[0], NOW_S)
    assert "a" not in roster
    assert roster.enrol(token, KEYS[1], NOW_S) == "a"


def test_doors_admit_the_clients_of_a_run() -> None:
    doors = Doors(("a", "b"))
    assert doors.admits("a")
    assert not doors.admits("x")
    assert doors.has_room(["a"])
    assert not doors.has_room(["a", "b"])
    assert "none of the 2 clients" in doors.refusal("x")
    with pytest.raises(IdentityError):
        Doors(("a/b",))
