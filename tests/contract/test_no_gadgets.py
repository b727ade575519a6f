"""What comes from elsewhere never becomes code: the whole tree is read for every way in which it could.

Names are followed through imports, so that ``from torch import load as read`` is ``torch.load``. In the rooms through
which bytes of other machines go, nothing is looked up by a name that does not stand in the code, either.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "roundelay"
WIRE = ("wire.py", "header.py", "channel", "client", "hosting", "deployment", "site", "serving.py", "replaying.py")
"""The rooms through which bytes of other machines, or what was made of them, go."""

MODULES = {
    "pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "ctypes", "cffi", "code",
    "codeop", "runpy", "pty", "subprocess", "imp", "importlib.machinery", "zipimport", "yaml", "xmlrpc",
    "multiprocessing.managers", "logging.config", "webbrowser", "torch.package", "torch.distributed.rpc",
}  # fmt: skip
"""What can make code of data, or run programs: that it is imported at all has a reason."""

BUILT_IN = {"eval", "exec", "compile", "__import__", "breakpoint"}
DOTTED = {
    "importlib.import_module", "importlib.reload", "importlib.util.spec_from_file_location",
    "importlib.util.module_from_spec", "multiprocessing.connection.Client", "multiprocessing.connection.Listener",
    "multiprocessing.Manager", "os.system", "os.popen", "os.startfile", "torch.hub.load",
    "torch.jit.load", "torch.export.load", "torch.classes.load_library", "torch.ops.load_library",
    "torch.utils.cpp_extension.load", "numpy.ctypeslib.load_library", "pandas.read_pickle", "pandas.eval",
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "builtins.eval", "builtins.exec",
}  # fmt: skip
BEGINNINGS = ("os.exec", "os.spawn", "os.posix_spawn")
SAFE_IF = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
"""Calls that are good with this word, and only with it."""

BY_NAME = {"vars", "globals", "locals", "load_class"}

EXECUTORS = "the pool's own pipes and memory: both ends are this program, of this machine and user"
ALLOWED = {
    ("simulation/executors/processes.py", "pickle"): EXECUTORS,
    ("simulation/executors/worker.py", "pickle"): EXECUTORS,
    ("simulation/executors/worker.py", "ctypes"): "mallopt of the C library, called with numbers that stand there",
    ("simulation/executors/shipping.py", "pickle"): EXECUTORS,
    ("simulation/executors/shipping.py", "cloudpickle"): EXECUTORS,
    ("simulation/executors/shipping.py", "ctypes"): "the address of an array of its own",
    ("data/images/plain_pickle.py", "pickle"): "a reader of its own, with five names; tests/unit/test_cifar.py",
    ("simulation/devices.py", "yaml"): "safe_load, of a file that the job names",
    ("tracking/run_folder.py", "subprocess"): "git describe, in words that stand there",
    ("components.py", "importlib.import_module"): "what a job file of this machine names; a site looks before it does",
    ("client/launch.py", "compile"): "the script of whoever starts the client: a file of this machine",
    ("client/launch.py", "exec"): "the same",
    ("deployment/front/front.py", "getattr"): "a handler's name is that of a route in routes.py",
    ("deployment/greeting.py", "getattr"): "names of socket options that stand in the file",
}
"""What is there for a reason. ``getattr`` with a name that stands in the code is no look-up by a foreign name."""


def suspicious(text: str, on_the_wire: bool = True) -> Iterator[tuple[int, str]]:
    """Yield line and name of whatever could make code of data, or run a program."""
    tree = ast.parse(text)
    yield from _imported(tree)
    known = _names(tree)
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from ((node.lineno, name) for name in _called(node, known, on_the_wire))
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        dotted = _dotted(node, known) or ""
        if isinstance(node, ast.Name) and node.id in BUILT_IN:
            yield node.lineno, node.id
        if dotted in DOTTED or dotted.startswith(BEGINNINGS) or (dotted in SAFE_IF and node not in called):
            yield node.lineno, dotted  # also where it is handed on


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        names = list[str]()
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        found = {module for module in MODULES for name in names if name == module or name.startswith(f"{module}.")}
        yield from ((node.lineno, module) for module in sorted(found))  # type: ignore[attr-defined]


def _names(tree: ast.Module) -> dict[str, str]:
    """Return what local names mean, as far as they come from imports."""
    known = dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                known[one.asname or one.name.split(".")[0]] = one.name if one.asname else one.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return known


def _dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (inner := _dotted(node.value, known)):
        return f"{inner}.{node.attr}"
    return None


def _called(node: ast.Call, known: dict[str, str], on_the_wire: bool) -> Iterator[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    words = {word.arg: word.value for word in node.keywords}
    dotted = _dotted(node.func, known)
    if dotted in SAFE_IF:
        word, good = SAFE_IF[dotted]
        value = words.get(word)
        if on_the_wire or not (isinstance(value, ast.Constant) and value.value is good):
            yield dotted
    if "shell" in words:
        yield "shell"
    if name == "recv" and not node.args and not node.keywords:
        yield "recv"  # of multiprocessing's connections, which unpickles; a socket's has a length
    if on_the_wire and name in BY_NAME:
        yield name
    if on_the_wire and name == "getattr" and not (len(node.args) > 1 and isinstance(node.args[1], ast.Constant)):
        yield name


def is_on_the_wire(relative: str) -> bool:
    return relative in WIRE or relative.split("/")[0] in WIRE


def test_nothing_makes_code_of_what_comes() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    relatives = [path.relative_to(SOURCE).as_posix() for path in files]
    assert len(files) > 250
    assert sum(map(is_on_the_wire, relatives)) > 50
    found = {
        (relative, name): line
        for path, relative in zip(files, relatives, strict=True)
        for line, name in suspicious(path.read_text(), is_on_the_wire(relative))
    }
    unknown = [f"{file}:{line}: {name}" for (file, name), line in found.items() if (file, name) not in ALLOWED]
    assert not unknown, unknown
    assert not (gone := ALLOWED.keys() - found.keys()), f"allowed, and not there any more: {gone}"


EVERYWHERE = (
    "import pickle",
    "from yaml import load",
    "import cloudpickle as c",
    "from multiprocessing.connection import Client\nClient(address)",
    "from multiprocessing import connection\nconnection.Listener(address)",
    "connection.recv()",
    "import os\nos.system(text)",
    "from os import system as run\nrun(text)",
    "import os\nos.execvp(name, words)",
    "run(text, shell=True)",
    "import asyncio\nasyncio.create_subprocess_exec(name)",
    "import torch\ntorch.load(file)",
    "import torch as t\nt.load(file)",
    "from torch import load as read\nread(file)",
    "import torch\ntorch.load(file, weights_only=False)",
    "import torch\ntorch.load(file, weights_only=trusted)",
    "import torch\nread = torch.load",
    "import torch\ntorch.hub.load(a, b)",
    "from torch import jit\njit.load(file)",
    "import numpy as np\nnp.load(file)",
    "import numpy as np\nnp.load(file, allow_pickle=True)",
    "import pandas\npandas.read_pickle(file)",
    "eval(text)",
    "exec(text)",
    "compile(text, name, 'exec')",
    "json.loads(text, parse_float=eval)",
    "import builtins\nbuiltins.eval(text)",
    "import importlib\nimportlib.import_module(name)",
    "from importlib import import_module\nimport_module(name)",
    "from importlib import util\nutil.spec_from_file_location(name, file)",
    "__import__(name)",
)
ON_THE_WIRE = (
    "getattr(module, name)",
    "vars(torch)[name]",
    "globals()[name]",
    "import torch\ntorch.load(file, weights_only=True)",
)


@pytest.mark.parametrize("planted", EVERYWHERE)
def test_each_way_is_seen_everywhere(planted: str) -> None:
    assert list(suspicious(planted, on_the_wire=False))


@pytest.mark.parametrize("planted", ON_THE_WIRE)
def test_each_way_is_seen_on_the_way_of_foreign_bytes(planted: str) -> None:
    assert list(suspicious(planted))


def test_names_that_stand_in_the_code_are_no_gadgets() -> None:
    assert not list(suspicious('getattr(value, "size", None); re.compile("a"); self.run.eval(); sock.recv(10)'))
    assert not list(suspicious("import torch\ntorch.load(file, weights_only=True); getattr(a, b)", on_the_wire=False))
