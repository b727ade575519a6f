"""What an algorithm's settings may be: one check for all."""

from math import inf

from roundelay.errors import ConfigError


def require(name: str, value: float, *, above: float = -inf, at_least: float = -inf, below: float = inf) -> None:
    """Refuse a setting outside of its range, infinities and NaN among them.

    Raises:
        ConfigError: names the setting, the range and the value.
    """
    if not isinstance(value, bool) and above < value < below and value >= at_least:
        return
    parts = [f"above {above:g}"] * (above > -inf) + [f"at least {at_least:g}"] * (at_least > -inf)
    parts += [f"below {below:g}"] if below < inf else ["finite"]
    raise ConfigError(f"{name} must be a number {', '.join(parts)}; got {value!r}")
