"""Connections as a link needs them: one at a time, and dropped at once when nobody answers on it.

An orderly end would wait until all that was written has been taken, which a peer that hangs never does.
"""

import asyncio

import aiohttp
from aiohttp.client_proto import ResponseHandler


class Connector(aiohttp.BaseConnector):
    made: asyncio.BaseTransport | None = None

    def drop(self) -> None:
        """End the last connection, whatever was on its way."""
        if isinstance(self.made, asyncio.WriteTransport):
            self.made.abort()
        self.made = None


class TcpConnector(aiohttp.TCPConnector, Connector):
    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        handler = await super()._create_connection(req, traces, timeout)
        self.made = handler.transport
        return handler
