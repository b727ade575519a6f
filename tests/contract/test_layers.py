"""Imports only go down the list of rooms in docs/design.md."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "roundelay"

LAYERS = (
    ("errors", "files", "seeds", "layout", "messages", "metrics", "components", "header", "wire", "sealed", "channel"),
    ("guard", "fold", "aggregators"),
    ("gather", "privacy"),
    ("algorithms",),
    ("data", "models"),
    ("learner",),
    ("trainer",),
    ("client",),
    ("hosting",),
    ("intake",),
    ("epochs",),
    ("federation",),
    ("course",),
    ("bookkeeping",),
    ("world",),
    ("workflows", "attacks"),
    ("simulation", "deployment"),
    ("tracking",),
    ("history",),
    ("prepared",),
    ("standing",),
    ("run",),
    ("serving",),
    ("replaying",),
    ("job",),
    ("config", "report", "templates"),
    ("site",),
    ("cli",),
)
WORLDS = {"simulation", "deployment"}
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def rooms_imported(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "roundelay":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return rooms


def test_every_file_belongs_to_a_room_and_imports_only_from_its_own_or_lower_ones() -> None:
    for path in SOURCE.rglob("*.py"):
        relative = path.relative_to(SOURCE)
        room = relative.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in HEIGHT, f"{relative}: add its room to the list"
        for imported in rooms_imported(path):
            assert HEIGHT[imported] <= HEIGHT[room], f"{relative} imports {imported}, which lies above it"
            assert {room, imported} != WORLDS, f"{relative} imports {imported}: the two worlds do not know each other"


def test_who_is_who_stands_on_the_vocabulary_alone() -> None:
    """What proves identities is small enough to be read whole: nothing of torch, models or rounds is behind it."""
    for name in ("identity", "roster", "certificates", "pinning", "signing", "kits", "members", "doors"):
        path = SOURCE / "deployment" / f"{name}.py"
        assert rooms_imported(path) <= {"errors", "files", "deployment"}, path


def test_simulation_and_deployment_know_nothing_of_each_other() -> None:
    for room, other in (("simulation", "deployment"), ("deployment", "simulation")):
        for path in (SOURCE / room).rglob("*.py"):
            assert other not in rooms_imported(path), path


def test_the_journal_needs_vocabulary_only() -> None:
    """So that it can be read, and recovered from, without an algorithm or a model at hand."""
    for name in ("journal", "records", "rounds", "tasks", "clients", "uploads", "blobs", "database", "disk"):
        rooms = rooms_imported(SOURCE / "deployment" / f"{name}.py")
        assert rooms <= {"deployment", "errors", "messages"}, name


def test_the_front_moves_bytes_and_facts_only() -> None:
    """No model, and no code of a job, is behind what strangers talk to."""
    for name in (
        "front",
        "lobby",
        "desk",
        "admission",
        "polls",
        "sending",
        "receiving",
        "problems",
        "routes",
        "server",
    ):
        assert rooms_imported(SOURCE / "deployment" / f"{name}.py") <= {"deployment", "errors"}, name


def test_optional_packages_are_imported_in_one_file_or_room_each_and_pickle_only_between_local_processes() -> None:
    homes = {
        "matplotlib": "report/plots.py",
        "yaml": "simulation/devices.py",
        "mlxtend": "data/images.py",
        "dp_accounting": "privacy.py",
        "cryptography": "deployment/",
        "aiohttp": "deployment/",
        "pydantic": "deployment/",
    }
    for path in SOURCE.rglob("*.py"):
        relative = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in (name.split(".")[0] for name in names):
                assert relative.startswith(homes.get(top, relative)), f"{relative} imports {top}"
                if top in ("pickle", "cloudpickle"):
                    assert relative.startswith("simulation/executors/"), relative
