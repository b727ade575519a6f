"""The scripts of benchmarks/ as modules, for tests of their parts."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """Return a script, by its path below benchmarks/, as the module that it is to the scripts beside it."""
    path = BENCHMARKS / name
    for folder in {BENCHMARKS, path.parent}:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return import_module(path.stem)
