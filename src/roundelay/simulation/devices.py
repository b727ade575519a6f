"""Which worker computes where: a pure function of the configuration."""

import socket
from collections.abc import Mapping
from pathlib import Path

from roundelay.errors import ConfigError, optional


def assign(devices: Mapping[str, int], num_workers: int | None, num_cores: int) -> tuple[str, ...]:
    """Return the device of each worker, in the order in which ``devices`` names them.

    ``devices`` maps a device to its number of workers; empty means the CPU, with one worker per core.

    >>> assign({"cuda:0": 2, "cuda:1": 1}, None, 8)
    ('cuda:0', 'cuda:0', 'cuda:1')
    >>> assign({}, 3, 8)
    ('cpu', 'cpu', 'cpu')

    Raises:
        ConfigError: a count is not positive, or ``num_workers`` contradicts the sum.
    """
    for name, count in devices.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"devices: {name!r} is given {count!r} workers; expected a whole number")
    spread = tuple(name for name, count in devices.items() for _ in range(count))
    if not spread:
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"num_workers must be at least 1, got {num_workers}")
        return ("cpu",) * (num_cores if num_workers is None else num_workers)
    if num_workers not in (None, len(spread)):
        raise ConfigError(
            f"num_workers = {num_workers} but devices {dict(devices)} name {len(spread)} workers; drop one of the two"
        )
    return spread


def read_gpu_mapping(path: str | Path, mapping: str, host: str | None = None) -> dict[str, int]:
    """Read FedML's ``gpu_mapping.yaml``: named mapping -> host -> number of workers on each GPU, in order.

    Returns the devices of ``host``: this machine's name, or the only host that the mapping has.

    Raises:
        ConfigError: the file lacks the mapping or the host; names those that it has.
        MissingExtra: PyYAML is not installed.
    """
    with optional("pyyaml", "yaml"):
        import yaml
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the GPU mapping {path}: {error}") from error
    if not isinstance(content, dict) or mapping not in content:
        known = sorted(content) if isinstance(content, dict) else "no mappings"
        raise ConfigError(f"{path} has no mapping {mapping!r}; it has {known}")
    hosts = content[mapping]
    if not isinstance(hosts, dict) or not hosts:
        raise ConfigError(f"{path}: mapping {mapping!r} names no host")
    name = host or (next(iter(hosts)) if len(hosts) == 1 else socket.gethostname())
    if name not in hosts:
        raise ConfigError(f"{path}: mapping {mapping!r} has no host {name!r}; it has {sorted(hosts)}")
    counts = hosts[name]
    if not isinstance(counts, list) or not all(
        isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts
    ):
        raise ConfigError(
            f"{path}: {mapping}.{name} is {counts!r}; expected a list with the number of workers on each GPU"
        )
    return {f"cuda:{index}": count for index, count in enumerate(counts) if count}
