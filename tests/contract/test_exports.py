"""The public surface: what ``import roundelay as rd`` offers, and what it leaves alone."""

import inspect
import re
import subprocess
import sys
from types import ModuleType

import pytest

import roundelay as rd

MODULES = [rd, rd.aggregators, rd.algorithms, rd.attacks, rd.data, rd.errors, rd.models, rd.network]
EXTRAS = (
    "matplotlib",
    "tensorboard",
    "torch.utils.tensorboard",
    "mlxtend",
    "PIL",
    "datasets",
    "wfdb",
    "yaml",
    "h5py",
    "typer",
    "rich",
    "pandas",
    "aiohttp",
    "cryptography",
    "PIL",
    "pycocotools",
    "torchvision",
)


def offered(module: ModuleType) -> dict[str, object]:
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    return {name: getattr(module, name) for name in names}


def constants_classes_modules(name: str) -> tuple[bool, bool, list[tuple[int, str]]]:
    parts = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    return not name.isupper(), not name[0].isupper(), parts  # 8 comes before 16


def test_the_list_of_public_names_is_sorted_without_repeats_and_complete() -> None:
    assert list(rd.__all__) == sorted(set(rd.__all__), key=constants_classes_modules)
    for name, value in vars(rd).items():
        made_here = getattr(value, "__module__", "").startswith("roundelay.")
        assert name in rd.__all__ or name.startswith("_") or not made_here, f"{name} is public but not in __all__"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_documented(module: ModuleType) -> None:
    assert inspect.getdoc(module)
    for name, value in offered(module).items():
        own = inspect.getdoc(value) if isinstance(value, ModuleType) else vars(value).get("__doc__", value.__doc__)
        assert own, f"{module.__name__}.{name} has no docstring"
        assert not own.startswith(f"{name}("), f"{module.__name__}.{name} has no docstring but the one of dataclasses"


def test_every_error_is_a_roundelay_error_that_ordinary_code_can_catch() -> None:
    for name, error in offered(rd.errors).items():
        assert issubclass(error, rd.errors.RoundelayError), name
        assert error is rd.errors.RoundelayError or len(error.__bases__) == 2, f"{name} has no ordinary base"


def test_importing_the_package_brings_in_no_extra_and_writes_nothing() -> None:
    code = f"import sys, roundelay; print([name for name in {EXTRAS} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "[]"
    assert not shown.stderr
