"""Servers on loopback, in threads: honest ones and impostors."""

import contextlib
import socket
import ssl
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import Authority


class Server(ThreadingHTTPServer):
    """``offered`` is the answer to every GET; ``asked`` keeps the request lines and fields that came."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None, offered: bytes, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.offered, self.status = offered, status
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.num_connections = 0
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def get_request(self) -> tuple[socket.socket, object]:
        self.num_connections += 1
        return super().get_request()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""

    def address(self, host: str = "127.0.0.1") -> Address:
        return Address(host, self.server_address[1])


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers.items())))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.offered)))
        self.end_headers()
        self.wfile.write(self.server.offered)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None, offered: bytes, status: int = 200) -> Iterator[Server]:
    with Server(context, offered, status) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def context_of(folder: Path, authority: Authority, names: list[str], now_s: float, days: float = 365) -> ssl.SSLContext:
    """What a server speaks TLS with that holds a certificate of ``authority``."""
    path = folder / "impostor.key"
    path.write_bytes(authority.issue(names, now_s, days))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def only_tls_1_1(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have ``context`` speak TLS 1.1 and nothing else, with the ciphers of its time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def handshake(address: Address, context: ssl.SSLContext) -> str | None:
    """Shake hands and return the version of TLS."""
    with (
        socket.create_connection((address.host, address.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as secured,
    ):
        return secured.version()
