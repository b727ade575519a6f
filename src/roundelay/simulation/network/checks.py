"""What the components of this room refuse, in one form of words."""

import math
from typing import Any

from roundelay.errors import ConfigError


def check_number(
    component: object, name: str, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse a field that is no finite number, or none of those allowed.

    Raises:
        ConfigError: names the component, the field, what was expected and what came.
    """
    value: Any = getattr(component, name)  # Any: a user may write anything here
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        refuse(component, name, "a number")
    if value <= above or value < least or value > most:
        bounds = [f"above {above:g}"] if above > -math.inf else []
        bounds += [f"at least {least:g}"] if least > -math.inf else []
        bounds += [f"at most {most:g}"] if most < math.inf else []
        refuse(component, name, " and ".join(bounds))


def check_numbers(component: object, *names: str, above: float = -math.inf, least: float = -math.inf) -> None:
    for name in names:
        check_number(component, name, above=above, least=least)


def check_choice(component: object, name: str, *known: str) -> None:
    if getattr(component, name) not in known:
        refuse(component, name, "one of " + ", ".join(map(repr, known)))


def refuse(component: object, name: str, expected: str) -> None:
    raise ConfigError(f"{type(component).__name__}: {name} must be {expected}, got {getattr(component, name)!r}")
