"""Which Ray cluster this process belongs to. The one file that imports Ray."""

import socket
import sys
from typing import Any

from roundelay.errors import ConfigError, optional

CONNECT_S = 5.0
"""How long a cluster may take to answer, in real seconds."""

LOOPBACK = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
"""Where a Ray of one machine listens. Ray takes 127.0.0.1 for a wish to be reached from outside, and elsewhere than on
Linux stays inside by itself.
"""


def package() -> Any:  # Any: the package, which may not be there
    """Return Ray.

    Raises:
        MissingExtra: it is not installed.
    """
    with optional("ray", "ray"):
        import ray
    return ray


def node_here() -> str:
    """Return Ray's id of the node that this worker runs on."""
    return str(package().get_runtime_context().get_node_id())


def join(ray: Any, num_workers: int | None, address: str | None) -> bool:
    """Join a cluster, or start one of ``num_workers`` CPUs; return whether this process had not done so before.

    Raises:
        ConfigError: no cluster answers at ``address``, or it is not one that this process can join.
    """
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in (None, "local", "auto", there):
            raise ConfigError(f"simulation.address is {address!r}, and this process has joined the Ray cluster at "
                              f"{there}: leave address out, or call ray.shutdown() first")  # fmt: skip
        return False
    try:
        if address in (None, "local"):
            ray.init("local", num_cpus=num_workers, include_dashboard=False, configure_logging=False, **LOOPBACK)
        else:
            ray.init(_answering(address), configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the Ray cluster at {address!r}: {error}") from error
    return True


def _answering(address: str) -> str:
    """Return a cluster's "host:port" once somebody answers there: Ray itself would try for minutes.

    Raises:
        ConfigError: there is no cluster.
    """
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init does with an address

    try:
        found = str(canonicalize_bootstrap_address(address))
    except ConnectionError as error:
        raise ConfigError('simulation.address is "auto", and no Ray runs on this machine: begin one with "ray start '
                          '--head", or join one with "ray start --address HOST:PORT"') from error  # fmt: skip
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {found}: {error}; simulation.address is {address!r}, and \"ray "
                          'status" shows a cluster that this machine is part of') from error  # fmt: skip
    return found
