"""One question to a server, over a connection of its own. It is asked once, and blocks until it is answered."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from roundelay.deployment.trust.address import Address, explained
from roundelay.errors import IdentityError

_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Said:
    """``headers`` by their names in lower case; ``certificate`` is the server's, in DER."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    certificate: bytes | None = None

    def table(self) -> Mapping[str, object]:
        """Return the JSON object that was said, an empty one where it is something else."""
        try:
            content = json.loads(self.body)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


def ask(
    address: Address, path: str, context: ssl.SSLContext | None, *, headers: Mapping[str, str] = {},
    timeout_s: float = 10.0, at: str | None = None, max_bytes: int = _MAX_BYTES,
) -> Said:  # fmt: skip
    """GET ``path``. ``context`` is None for plain HTTP. ``at`` is where to connect to, if that is not what the
    address's name means; TLS is still for the name. ``timeout_s`` holds for each step. What a body has
    beyond ``max_bytes`` is not read.

    Raises:
        IdentityError: nothing answers, or not the server that ``context`` trusts; says what to do.
    """
    connection = http.client.HTTPConnection(address.host, address.port)
    try:
        connection.sock = sock = _connected(address, context, timeout_s, at)
        connection.request("GET", path, headers={"User-Agent": "roundelay", **headers})
        shown = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        came = connection.getresponse()
        fields = {name.lower(): value for name, value in came.getheaders()}
        return Said(came.status, fields, came.read(max_bytes), shown)
    except (OSError, UnicodeError) as error:
        raise IdentityError(explained(error, address)) from error
    except http.client.HTTPException as error:
        raise IdentityError(
            f"{address}: what answers there does not speak HTTP ({type(error).__name__}); check host and port"
        ) from error
    finally:
        connection.close()


def believing_anything() -> ssl.SSLContext:
    """Return TLS that verifies nothing: to look at what is there, and to say nothing that matters."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _connected(address: Address, context: ssl.SSLContext | None, timeout_s: float, at: str | None) -> socket.socket:
    plain = socket.create_connection((at or address.host, address.port), timeout_s)
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise
