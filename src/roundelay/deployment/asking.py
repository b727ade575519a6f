"""Questions to a server for whoever looks after it. Each is asked once, and blocks until it is answered."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from roundelay.deployment.pinning import Address, client_context, explained
from roundelay.errors import IdentityError

_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Said:
    """``headers`` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def table(self) -> Mapping[str, object]:
        """Return the JSON object that was said, an empty one where it is something else."""
        try:
            content = json.loads(self.body)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


def ask(
    address: Address, path: str, authority_pem: bytes | None, *, headers: Mapping[str, str] = {},
    timeout_s: float = 10.0, at: str | None = None,
) -> Said:  # fmt: skip
    """GET ``path``. ``at`` is where to connect to, if that is not what the address's name means; TLS is still for the
    name. ``timeout_s`` holds for each step.

    Raises:
        IdentityError: nothing answers, or not the server that the authority vouches for; says what to do.
    """
    connection = http.client.HTTPConnection(address.host, address.port)
    try:
        connection.sock = _connected(address, authority_pem, timeout_s, at)
        connection.request("GET", path, headers={"User-Agent": "roundelay", **headers})
        came = connection.getresponse()
        return Said(came.status, {name.lower(): value for name, value in came.getheaders()}, came.read(_MAX_BYTES))
    except (OSError, UnicodeError) as error:
        raise IdentityError(explained(error, address)) from error
    except http.client.HTTPException as error:
        raise IdentityError(
            f"{address}: what answers there does not speak HTTP ({type(error).__name__}); check host and port"
        ) from error
    finally:
        connection.close()


def _connected(address: Address, authority_pem: bytes | None, timeout_s: float, at: str | None) -> socket.socket:
    plain = socket.create_connection((at or address.host, address.port), timeout_s)
    if not address.secured:
        return plain
    try:
        context = ssl.create_default_context() if authority_pem is None else client_context(authority_pem)
        return context.wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise
