# SPDX-License-Identifier: Apache-2.0
"""The tunnel carrier's agent side: keeps one tunnel to the controller, and opens no port at all.

    dial → link → (lost, refused) → wait, full jitter → dial …
    the certificate was renewed → a second link with it → the first one is drained; streams go on over the second by their tokens

The wait before the n-th attempt is drawn from 0 to base * 2^n, capped: a fleet that lost its controller does not come back in
step. Where the controller says when to come back, that is when.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from jarvis.capture.v1.tunnel_pb2 import TunnelHello

from jarvis_agent.tunnel_link import Dialled, TunnelLink, TunnelRefusedError

_LOG = logging.getLogger(__name__)

_LOOK_S = 1.0
"""How often a tunnel is compared with the certificate in hand."""
_RETIRE_S = 65.0
"""How long a tunnel that was replaced may go on; the controller ends it earlier, when it has its answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelRetry:
    """How long to wait between attempts, seconds."""

    first_s: float
    """Ceiling of the first wait."""
    longest_s: float
    """Ceiling of any."""


class Tunnel:
    """Run it as a task until `stop`. Used on the event loop only."""

    def __init__(
        self,
        *,
        dial: Callable[[], Dialled],
        certificate: Callable[[], bytes],
        handlers: grpc.GenericRpcHandler[Any, Any],
        hello: TunnelHello,
        retry: TunnelRetry,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Nothing is dialled yet.

        Args:
            dial: makes a channel to the controller with the certificate in hand.
            certificate: the certificate in hand, PEM: another one than a tunnel was opened with makes a new tunnel.
            handlers: carry out what is called.
            hello: who we are.
            retry: waits.
            draw: uniform random number between two bounds.
        """
        self._dial = dial
        self._certificate = certificate
        self._handlers = handlers
        self._hello = hello
        self._retry = retry
        self._draw = draw
        self._link: TunnelLink | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether the controller has welcomed us, as far as is known."""
        return self._link is not None and not self._link.ended.is_set()

    async def run(self) -> None:
        """Keeps a tunnel, for ever; `stop` it to end, then cancel this."""
        attempt = 0
        while True:
            try:
                link = await self._open()
            except TunnelRefusedError as error:
                await self._wait(attempt, error)
                attempt += 1
                continue
            attempt = 0
            _LOG.info("the tunnel to the controller is open")
            await self._wait(attempt, await self._keep(link))

    async def stop(self, grace_s: float) -> None:
        """Answers what is under way within `grace_s` seconds and ends every tunnel. `run` must have been cancelled."""
        link, self._link = self._link, None
        retiring = list(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        if link is not None:
            await link.close(grace_s)

    async def _open(self) -> TunnelLink:
        link = TunnelLink(self._dial(), self._handlers, self._hello)
        try:
            await link.open()
        except asyncio.CancelledError:
            await link.close(0.0)
            raise
        return link

    async def _keep(self, link: TunnelLink) -> TunnelRefusedError:
        """Until the tunnel is lost; why. A renewed certificate makes a new one before the old one goes."""
        self._link = link
        loop, failures, not_before = asyncio.get_running_loop(), 0, 0.0
        while not await _set_within(self._link.ended, _LOOK_S):
            if self._certificate() == self._link.certificate_pem or loop.time() < not_before:
                continue
            try:
                newer = await self._open()
            except TunnelRefusedError as error:
                not_before = loop.time() + self._delay(failures, error)
                failures += 1
                _LOG.warning("no tunnel with the renewed certificate (%s): the present one goes on", error)
                continue
            older, self._link, failures = self._link, newer, 0
            _LOG.info("the tunnel goes on with the renewed certificate")
            self._retire(older)
        ended, self._link = self._link, None
        await ended.close(0.0)
        return TunnelRefusedError(ended.why)

    def _retire(self, link: TunnelLink) -> None:
        async def retire() -> None:
            try:
                await _set_within(link.ended, _RETIRE_S)
            finally:
                await link.close(0.0)

        task = asyncio.ensure_future(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _wait(self, attempt: int, error: TunnelRefusedError) -> None:
        delay = self._delay(attempt, error)
        _LOG.warning("there is no tunnel to the controller (%s); again in %.1f s", error, delay)
        await asyncio.sleep(delay)

    def _delay(self, attempt: int, error: TunnelRefusedError) -> float:
        if error.retry_after_s > 0:
            # The controller spreads those that it sends away; what it says is kept to, within a day's reason.
            return min(error.retry_after_s, 10 * self._retry.longest_s)
        return self._draw(0.0, min(self._retry.longest_s, self._retry.first_s * 2.0 ** min(attempt, 32)))


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
