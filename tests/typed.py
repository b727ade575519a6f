"""Whether a line that stands somewhere to be typed is one that the ``roundelay`` command takes, without running it."""

from collections.abc import Sequence
from typing import Any

import typer

from roundelay.cli import app


def require_accepted(words: Sequence[str]) -> str:
    """Return which subcommand the words behind ``roundelay`` mean; fail where one of them means nothing."""
    command: Any = typer.main.get_command(app)  # Any: click's, which typer may bring along itself
    left, name = list(words), ""
    while True:
        values = _options(command, left, name)
        if not hasattr(command, "commands"):
            break
        assert left, f"roundelay {name}: which subcommand?"
        word = left.pop(0)
        assert word in command.commands, f"roundelay {name}: there is no {word!r}; there are {sorted(command.commands)}"
        command, name = command.commands[word], f"{name} {word}".strip()
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    least, most = sum(one.required for one in arguments), len(arguments)
    assert least <= len(values) <= most, f"roundelay {name}: takes {least} to {most} arguments, got {values}"
    return name


def _options(command: Any, left: list[str], name: str) -> list[str]:
    """Take from the words those that are a command's own; return what stands between its options."""
    known = {word: one for one in command.params for word in (*one.opts, *one.secondary_opts) if word.startswith("-")}
    values = []
    while left:
        if not left[0].startswith("--"):
            if hasattr(command, "commands"):
                return values
            values.append(left.pop(0))
            continue
        word, equals, _ = left.pop(0).partition("=")
        assert word in known, f"roundelay {name}: there is no {word}; there are {sorted(known)}"
        if not known[word].is_flag and not equals:
            assert left, f"roundelay {name}: {word} needs a value"
            left.pop(0)
    return values
