"""Programs beside the tests that fork what they disturb, each in a process of its own.

Such a process has imported everything once, before it forks a server and its clients, which takes longer than a run.
"""

import tempfile
from pathlib import Path

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
