"""What comes from another machine never becomes code: the tree is read for every way in which it could."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "roundelay"
WIRE = ("wire.py", "header.py", "channel", "client", "hosting", "deployment", "site", "serving.py", "replaying.py")
"""The rooms through which bytes of other machines, or what was made of them, go."""

MODULES = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "yaml", "ctypes", "code", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "import_module", "load_class", "getattr", "vars", "globals", "locals"}
LOADS = {("torch", "load"), ("torch", "jit"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("torch", "hub")}

ALLOWED = {
    ("client/launch.py", "compile"): "the script of whoever starts the client: a file of this machine",
    ("client/launch.py", "exec"): "the same",
    ("deployment/front/front.py", "getattr"): "a handler's name is that of a route in routes.py",
    ("deployment/greeting.py", "getattr"): "names of socket options that stand in the file",
}
"""What is there for a reason; ``getattr`` with a name that stands in the code is no look-up by a foreign name."""


def suspicious(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of every call or import that could make code of data."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, str(node.module)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in LOADS
        ):
            yield node.lineno, f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            constant = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            method = isinstance(node.func, ast.Attribute) and name in {"compile", "eval", "exec"}  # re.compile
            if name in CALLS and not method and not (name == "getattr" and constant):
                yield node.lineno, name


def files() -> list[Path]:
    return sorted(path for room in WIRE for path in ([SOURCE / room] if room.endswith(".py") else
                                                     (SOURCE / room).rglob("*.py")))  # fmt: skip


def test_nothing_on_the_way_of_foreign_bytes_makes_code_of_them() -> None:
    assert len(files()) > 50
    for path in files():
        relative = path.relative_to(SOURCE).as_posix()
        for line, name in suspicious(path.read_text()):
            assert (relative, name) in ALLOWED, f"{relative}:{line}: {name}"


@pytest.mark.parametrize(
    "planted",
    ["import pickle", "from yaml import load", "torch.load(file)", "eval(text)", "getattr(module, name)",
     "importlib.import_module(name)", "np.load(file)", "__import__(name)", "vars(torch)[name]"],
)  # fmt: skip
def test_each_way_is_seen(planted: str) -> None:
    assert list(suspicious(planted))


def test_names_that_stand_in_the_code_are_no_gadgets() -> None:
    assert not list(suspicious('getattr(value, "size", None); re.compile("a"); self.run.eval()'))
