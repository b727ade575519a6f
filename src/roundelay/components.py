"""Components and their written form: a table whose ``use`` names a class or function, and whose keys are its arguments.

A component's constructor is its configuration. ``build`` makes the component from the table, ``describe`` the table
from the component; what cannot be named in a file (a lambda, an object made by hand) is described so that ``build``
refuses it.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from roundelay.errors import ConfigError

Table = Mapping[str, Any]  # Any: what TOML can hold
Namespace = Mapping[str, Any]  # Any: classes and functions, by exported name

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*")
OBJECT = re.compile(r"[A-Za-z_][\w.]*:<\w+ object>")
"""How ``describe`` writes what it cannot describe."""


def namespace(*modules: types.ModuleType) -> Namespace:
    """Return what the modules export through ``__all__``, by name."""
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def find(use: str, known: Namespace, where: str) -> Any:  # Any: a class or function of unknown signature
    """Return what ``use`` names: an exported name, whatever its case and underscores, or "package.module:Name".

    Raises:
        ConfigError: there is no such thing; lists what there is and the nearest match.
    """
    if ":" in use:
        return resolve(use, where)
    for name, component in known.items():
        if _plain(name) == _plain(use):
            return component
    raise ConfigError(unknown_message(f"{where}: use = {use!r}", use, [name.lower() for name in known])
                      + "; for your own write use = \"module:Name\"")  # fmt: skip


def resolve(reference: str, where: str) -> Any:  # Any: see find
    """Import "package.module:Name".

    Raises:
        ConfigError: module or name are absent, or live where no file can point to.
    """
    module_name, _, path = reference.partition(":")
    if module_name == "__main__" or "<" in reference:
        raise ConfigError(f"{where}: {reference!r} was made in a script or notebook, so a file cannot bring it back; "
                          "move it into a module, or resume from Python with job.run(resume=FOLDER)")  # fmt: skip
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: cannot find {reference!r} ({error})") from error
    return found


def build(table: Table, known: Namespace, where: str) -> Any:  # Any: see find
    """Make the component that a table describes."""
    arguments = dict(table)
    use = arguments.pop("use", None)
    if not isinstance(use, str):
        raise ConfigError(f'{where} needs use = "..."; known are {", ".join(sorted(name.lower() for name in known))}')
    return call(find(use, known, where), arguments, known, where)


def call(component: Callable[..., Any], arguments: Table, known: Namespace, where: str) -> Any:  # Any: see find
    """Call a component with checked arguments; nested tables and references become components first."""
    return component(**checked(component, arguments, known, where))


def checked(component: Callable[..., Any], arguments: Table, known: Namespace, where: str) -> dict[str, Any]:
    """Return the arguments, converted and checked against the component's signature.

    Raises:
        ConfigError: an argument is unknown, missing, or of another type; names it and what was expected.
    """
    parameters = {n: p for n, p in inspect.signature(component).parameters.items() if p.kind is not p.VAR_KEYWORD}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(component).parameters.values())
    hints = _hints(component)
    ready: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in parameters and not open_ended:
            raise ConfigError(unknown_message(f"{where}.{name}", name, parameters))
        ready[name] = _converted(value, hints.get(name, Any), known, f"{where}.{name}")
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind is not parameter.VAR_POSITIONAL
            and name not in ready
        ):
            raise ConfigError(f"{where}.{name} is missing; {_called(component)} needs it")
    return ready


def describe(value: Any) -> Any:  # Any: in any component, out what TOML can hold
    """Return the written form of a component or argument. Arguments that are None are left out."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, functools.partial) and not value.args:
        return {"use": reference(value.func), **describe(value.keywords)}
    if _is_configuration(value):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return {"use": reference(type(value)), **{k: describe(v) for k, v in named.items() if v is not None}}
    if callable(value) and hasattr(value, "__qualname__"):
        return reference(value)
    return f"{type(value).__module__}:<{type(value).__name__} object>"


def _is_configuration(value: object) -> bool:
    """Tell whether a value's fields describe it. What is compared by identity is data at hand, not a configuration."""
    if isinstance(value, type) or not dataclasses.is_dataclass(value) or type(value).__init__ is object.__init__:
        return False
    return type(value).__eq__ is not object.__eq__


def reference(component: Any) -> str:  # Any: a class or function
    """Return "module:Name", or for our own exports the short name that ``find`` takes."""
    module, name = component.__module__, component.__qualname__
    return name.lower() if module.startswith("roundelay.") else f"{module}:{name}"


def foreign(value: Any, where: str) -> Iterator[tuple[str, str]]:  # Any: what TOML can hold
    """Yield (where, name) of all that building a table might import: whatever is no short name of our own. A table from
    elsewhere is built only if each of them was allowed here.
    """
    if isinstance(value, str):
        if ":" in value:
            yield where, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from foreign(inner, where if name == "use" else f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from foreign(inner, where)


def unknown_message(what: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, which ones there are, and which one was probably meant."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{what} is unknown{hint} Known: {', '.join(names)}"


def _converted(value: Any, hint: Any, known: Namespace, where: str) -> Any:  # Any: TOML in, argument out
    if isinstance(value, str) and OBJECT.fullmatch(value):
        return resolve(value, where)
    if isinstance(value, Mapping):
        if "use" in value:
            return build(value, known, where)
        value = {name: _converted(inner, Any, known, f"{where}.{name}") for name, inner in value.items()}
    options = _options(hint)
    if isinstance(value, list):
        items = [get_args(option)[0] for option in options if get_origin(option) in (Sequence, tuple)]
        return tuple(_converted(item, items[0] if items else Any, known, where) for item in value)
    if isinstance(value, str) and any(get_origin(option) is Callable for option in options):
        if REFERENCE.fullmatch(value):
            return resolve(value, where)
        if str not in options:
            return find(value, known, where)
    plain = {bool, int, float, str, types.NoneType}
    if Any in options or not options <= plain:
        return value
    if isinstance(value, bool):
        fits = bool in options
    elif isinstance(value, int) and float in options and int not in options:
        return float(value)
    else:
        fits = type(value) in options
    if not fits:
        wanted = " or ".join(sorted(o.__name__ for o in options if o is not types.NoneType))
        raise ConfigError(f"{where} must be {wanted}, got {value!r} ({type(value).__name__})")
    return value


def _options(hint: Any) -> set[Any]:  # Any: type expressions
    if get_origin(hint) in (Union, types.UnionType):
        return {option for part in get_args(hint) for option in _options(part)}
    return {hint}


def _hints(component: Callable[..., Any]) -> dict[str, Any]:
    target = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):
        return {}


def _called(component: Callable[..., Any]) -> str:
    return getattr(component, "__name__", repr(component))


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
