"""Programs beside the tests that fork what they disturb, each in a process of its own.

Such a process has imported everything once, before it forks a server and its clients, which takes longer than a run.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from figures import Figures
from forked import TESTS, Forked

import roundelay


def played(folder: Path, program: str, *words: object) -> str:
    """Run ``program.py`` in ``folder``; return what it printed."""
    source = Path(roundelay.__file__).parents[1]
    with (
        tempfile.NamedTemporaryFile() as errors,
        Forked(
            folder, [str(TESTS / f"{program}.py"), *map(str, words)], path=[TESTS, source], errors=Path(errors.name)
        ) as process,
    ):
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said + Path(errors.name).read_text()
        return said


def seen_in(folder: Path, program: str, what: str, seed: int) -> Any:
    """Run one thing that a program knows to do, in a folder of its own; return what was seen."""
    return json.loads(played(folder, program, what, folder / "run", seed))


def note_updates(figures: Figures, seen: Any) -> None:
    """Note what became of the updates, as ``served.check_kept`` counts them."""
    for name in ("acknowledged", "lost", "counted", "double"):
        figures(f"updates {name}", seen[name])
