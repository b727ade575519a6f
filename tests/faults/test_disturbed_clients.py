"""Clients that are killed, stopped for seconds and cut off: each round closes at its deadline, who was killed is back
soon, nothing is lost or counted twice, and the server has no error to tell of.
"""

from pathlib import Path
from typing import Any

import pytest
from disturbed import CLIENTS, DEADLINE_S, LONG, SHORT, Size
from figures import Figures
from played import note_updates, seen_in

SLACK_S, BACK_S = 1.0, 5.0


def check(seen: Any, size: Size) -> None:
    """Where the machine itself wakes a process late that has nothing to do, nothing can be earlier."""
    assert not seen["errors"], seen["errors"]
    for which, took_s in seen["took_s"].items():
        allowed_s = DEADLINE_S + SLACK_S + seen["machine_late_s"][which]
        assert took_s <= allowed_s, f"round {which} closed {took_s - DEADLINE_S:.2f} s after its deadline"
    assert max(seen["back_s"]) <= BACK_S, "a client that was killed was long away"
    assert (seen["kills"], seen["stops"], seen["cut"]) == (size.kills, size.stops, size.cuts)
    assert (seen["lost"], seen["double"]) == (0, 0)


def note(figures: Figures, seen: Any) -> None:
    for name in ("kills", "stops", "cut"):
        figures({"cut": "cut connections"}.get(name, name), seen[name])
    figures("clients", len(CLIENTS))
    figures("rounds, with those that were drawn again", len(seen["took_s"]))
    figures("rounds that closed at their deadline", sum(took >= DEADLINE_S for took in seen["took_s"].values()))
    figures("after its deadline a round closed, at most", max(seen["took_s"].values()) - DEADLINE_S, "s")
    figures("meanwhile an idle process woke late, at most", max(seen["machine_late_s"].values()), "s")
    back = sorted(seen["back_s"])
    figures("a client that was killed was back, median", back[len(back) // 2], "s")
    figures("a client that was killed was back, at most", back[-1], "s")
    figures("lines of errors in the server's log", len(seen["errors"].splitlines()))
    note_updates(figures, seen)


def test_clients_that_come_and_go_hold_up_no_round(tmp_path: Path, figures: Figures) -> None:
    seen = seen_in(tmp_path, "disturbed", "short", 0)
    note(figures, seen)
    check(seen, SHORT)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_forty_kills_ten_stops_and_twenty_cuts_hold_up_no_round(
    tmp_path: Path, figures: Figures, chaos_seed: int
) -> None:
    seen = seen_in(tmp_path, "disturbed", "long", chaos_seed)
    note(figures, seen)
    check(seen, LONG)


PLANTED = {
    "waits_for_everybody": "after its deadline",
    "minds_who_hangs_up": "a connection was lost",
    "comes_back_late": "long away",
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_the_check_catches(bug: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=PLANTED[bug]):
        check(seen_in(tmp_path, "disturbed", bug, 0), SHORT)
