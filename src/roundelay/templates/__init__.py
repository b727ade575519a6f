"""Projects to start from: each folder here is a template, whose files run as they stand.

A new project is a copy under its own name, which stands wherever the template says ``my-project``.
"""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from roundelay.components import unknown_message
from roundelay.errors import ConfigError

TEMPLATES: Mapping[str, str] = {"pytorch": "roundelay run job.toml", "script": "python job.py"}
"""The templates, by name, and the command that runs each."""

PLACEHOLDER = "my-project"

NAME = re.compile(r"\w[\w.-]*")
"""What can be a folder's name, the beginning of the names of its runs, and text in quotes, as it is."""


def write(folder: Path, template: str) -> list[Path]:
    """Make a project in ``folder``, which is new or empty; return its files, by name.

    Raises:
        ConfigError: there is no such template, or the folder cannot be this project's; nothing was written over.
    """
    if template not in TEMPLATES:
        raise ConfigError(unknown_message(f"template {template!r}", template, TEMPLATES))
    name = folder.absolute().name
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a project is called as its folder is, and so are its runs: expected letters, digits, '_', '-' and '.', "
            f"a letter or digit first, got {name!r}; choose another name"
        )
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; choose another name for the project's folder")
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir())
        if found:
            raise ConfigError(
                f"the folder {folder} is there already, with {_listed(found)} in it; a project is never written into "
                "what is there: choose another name, or empty it"
            )
        return [_written(folder / file, text.replace(PLACEHOLDER, name)) for file, text in _texts(template)]
    except OSError as error:
        raise ConfigError(f"cannot write the project into {folder}: {error.strerror}") from error


def _texts(template: str) -> list[tuple[str, str]]:
    # folders are left out: an installer compiles the templates into one of its own, __pycache__
    files = (resources.files("roundelay") / "templates" / template).iterdir()
    return sorted((file.name, file.read_text(encoding="utf-8")) for file in files if file.is_file())


def _written(path: Path, text: str) -> Path:
    with path.open("x", encoding="utf-8") as file:  # "x": what somebody else put there meanwhile stays as it is
        file.write(text)
    return path


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
