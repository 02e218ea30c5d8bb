# SPDX-License-Identifier: Apache-2.0
"""A cable between agent and software TPM that can be cut: the TPM lives on, the agent cannot reach it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from testbed.ports import free_ports
from testbed.swtpm import Swtpm


class TpmCable:
    """Forwards the pair of ports of a software TPM while it is plugged in. Used on one event loop."""

    def __init__(self, tpm: Swtpm) -> None:
        """Nothing is forwarded yet."""
        self._far_port = tpm.port
        self._port = free_ports(2)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tcti(self) -> str:
        """What reaches the TPM by this cable."""
        return f"swtpm:host=127.0.0.1,port={self._port}"

    async def plug_in(self) -> None:
        """Connections are made from now on."""
        for offset in (0, 1):
            self._servers.append(await asyncio.start_server(self._serving(offset), "127.0.0.1", self._port + offset))

    async def pull_out(self) -> None:
        """Connections end, and none is made."""
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._servers.clear()

    def _serving(self, offset: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(_join(reader, writer, self._far_port + offset))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return serve


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: int) -> None:
    with contextlib.suppress(ConnectionError):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", far)
        ways = [asyncio.ensure_future(_pump(reader, far_writer)), asyncio.ensure_future(_pump(far_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            far_writer.close()
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
