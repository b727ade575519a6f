"""What several tests share."""

import os
from pathlib import Path

import pytest


def data_folder(name: str) -> Path:
    """Return the folder ``name`` of the real data sets, or skip the test, saying where it was looked for.

    They are looked for in the folder that the environment variable ROUNDELAY_DATA names, else in ``shared/data`` beside
    the repository.
    """
    named = os.environ.get("ROUNDELAY_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not (root / name).is_dir():
        pytest.skip(f"no real data: {root / name} is not there (ROUNDELAY_DATA names another folder)")
    return root / name
