"""A served run whose processes are asked to end: they end in order, and the same commands go on from there."""

from pathlib import Path

from played import played


def test_what_is_asked_to_end_does_so_in_order_and_the_same_command_goes_on(tmp_path: Path) -> None:
    played(tmp_path, "ended", tmp_path / "run")
