"""kill -9 of the server and of its clients, at any moment of a served run: nothing is lost, nothing counts twice, and
the run ends in the bits of its simulation.
"""

from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from played import note_updates, seen_in

PLANTED = {
    "acknowledged_before_it_is_written": "was asked again for task",
    "forgotten_before_it_is_acknowledged": "which it had finished",
    "remembers_what_it_did_last": "another model came out",
}


def check_kills(folder: Path, seed: int) -> Any:
    kills = seen_in(folder, "killed", "kills", seed)
    num_of_server, num_of_clients = split(kills)
    assert num_of_server >= 10, "the run ended before the server was killed as often"
    assert num_of_clients >= 10, "the run ended before the clients were killed as often"
    assert 0 < kills["from_journal"] < num_of_server, "the server must go on from a checkpoint, and from beyond one"
    return kills


def split(kills: Any) -> tuple[int, int]:
    """Return how often the server was killed, and how often its clients."""
    num_of_server = len(kills["kills"]["server"])
    return num_of_server, sum(map(len, kills["kills"].values())) - num_of_server


def note(figures: Figures, kills: Any) -> None:
    for name, count in zip(("kills of the server", "kills of clients"), split(kills), strict=True):
        figures(name, count)
    note_updates(figures, kills)
    ready = sorted(kills["ready_after_s"])
    for name, at in (("median", len(ready) // 2), ("90th percentile", len(ready) * 9 // 10), ("most", -1)):
        figures(f"from a kill to an open port, {name}", ready[at], "s")


def test_ten_kills_of_a_server_and_ten_of_its_clients_change_nothing(tmp_path: Path, figures: Figures) -> None:
    note(figures, check_kills(tmp_path, 1))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_sixty_kills_of_a_server_over_thirty_rounds_change_nothing(
    tmp_path: Path, figures: Figures, chaos_seed: int
) -> None:
    kills = seen_in(tmp_path, "killed", "server_kills", chaos_seed)
    note(figures, kills)
    assert split(kills) == (60, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_kills_at_many_more_moments_change_nothing(tmp_path: Path, seed: int) -> None:
    check_kills(tmp_path, seed)


def test_the_check_catches_planted_bugs(tmp_path: Path) -> None:
    said = seen_in(tmp_path, "killed", "caught", 0)
    assert said.keys() == PLANTED.keys()
    for name, words in PLANTED.items():
        assert words in said[name], f"{name}: {said[name] or 'nothing was noticed'}"
