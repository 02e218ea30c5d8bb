# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent run`: the parts put together in the order that trust demands, and taken apart in the order that loses nothing.

    start:  TPM identity → event log → firmware (measure, judge, load: establish.py) → enrolment → service (assembly.py) → serve
    stop:   capture stopped gracefully → exports delivered or kept → streams read to the end → they end with UNAVAILABLE →
            server, TPM closed

One event loop; everything that blocks runs on the TPM's thread, the capture's thread or in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from jarvis.capture.v1.event_pb2 import EVENT_SEVERITY_INFO, EVENT_TYPE_AGENT_STOPPED

from jarvis_agent.assembly import build_service
from jarvis_agent.carriers import DirectServing, Serving, TunnelServing
from jarvis_agent.config import AgentConfig
from jarvis_agent.enroll import Enroller
from jarvis_agent.establish import Trusted, establish, open_worker
from jarvis_agent.log import configure_logging
from jarvis_agent.releases import restart_process
from jarvis_agent.service import AgentService

_LOG = logging.getLogger(__name__)

DRAIN_S = 5.0
"""How long streams may take to give what is left."""
STOP_GRACE_S = 1.0


class _Stop(asyncio.Event):
    """Set when the process is to end, or to be started anew."""

    is_restart = False

    def restart(self) -> None:
        """Sets it: a new process follows."""
        self.is_restart = True
        self.set()


def run_agent(config_path: Path) -> None:
    """Runs until SIGTERM or SIGINT. Blocks; owns the process's event loop and signal handlers.

    Raises:
        ConfigError: configuration or join file are not acceptable.
        TrustError: the TPM is not there, or a private file is exposed.
        OSError: a directory cannot be written or the port not be bound.
    """
    config = AgentConfig.load(config_path)
    configure_logging("json" if config.log_format == "json" else "console")
    # The TPM library prints to stderr by itself; its return codes reach our log as exceptions.
    os.environ.setdefault("TSS2_LOG", "all+none")
    is_restart = asyncio.run(_run(config))
    # gRPC's custom signer has a thread for each channel, which ends with it and which the interpreter waits for at its end: a
    # channel that is left in a cycle of references (a call that was cancelled) would hold the process up for ever.
    gc.collect()
    if is_restart:
        restart_process()


async def _run(config: AgentConfig) -> bool:
    """Until it is told to stop; whether the process is to be started anew, for another release."""
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    start_time_ns = time.time_ns()
    worker = open_worker(config)
    try:
        trusted = await establish(config, worker)
        if trusted.releases.is_on_trial and trusted.firmware.firmware is None:
            trusted.releases.roll_back(trusted.firmware.reason, trusted.firmware.message)
            return True
        enroller = _enroller(trusted)
        if not await _unless(stop, enroller.ensure):
            return False
        await _serve(trusted, enroller, stop, start_time_ns)
        return stop.is_restart
    finally:
        await asyncio.to_thread(worker.close)


def _enroller(trusted: Trusted) -> Enroller:
    config = trusted.config
    return Enroller(
        join=trusted.join,
        address=config.enroll_address or trusted.join.address,
        advertise=config.advertise,
        tunnel=trusted.tunnel,
        tpm=trusted.tpm,
        worker=trusted.worker,
        tls=trusted.tls,
        first_retry_s=config.enroll_retry_s,
    )


async def _unless(stop: asyncio.Event, step: Callable[[], Awaitable[object]]) -> bool:
    """Runs `step` until it is done or the agent is told to stop; False in the latter case."""
    task = asyncio.ensure_future(step())
    waiter = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task in done:
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def _serve(trusted: Trusted, enroller: Enroller, stop: _Stop, start_time_ns: int) -> None:
    service = build_service(trusted, start_time_ns, stop.restart, enroller.trust_is)
    await service.store_key.open()
    if service.exports.manager is not None:
        await service.exports.manager.load()
    serving = _serving(trusted, service)
    await serving.start()
    renewal = asyncio.create_task(enroller.keep_renewed())
    keeper = asyncio.create_task(service.journal.keep())
    watcher = asyncio.create_task(service.attester.tpm.watch())
    try:
        if not await _unless(stop, lambda: renewal):
            _LOG.info("stopping: the capture ends, streams are read to the end")
    finally:
        renewal.cancel()
        watcher.cancel()
        await serving.announce_end()
        await _drain(service, serving)
        await keeper
        service.store_key.close()


def _serving(trusted: Trusted, service: AgentService) -> Serving:
    config = trusted.config
    if not trusted.tunnel.is_wanted:
        return DirectServing(config, service.handler(), trusted.tls)
    return TunnelServing(
        config,
        service.handler(),
        trusted.tls,
        session_id=trusted.session_id,
        address=lambda: config.tunnel_address or trusted.tunnel.current,
    )


async def _drain(service: AgentService, serving: Serving) -> None:
    """Our own: grpc.aio.Server.stop alone cuts streams in the middle."""
    service.is_draining = True
    if service.captures is not None:
        await service.captures.shut_down()
    if service.exports.manager is not None:
        await service.exports.manager.shut_down()
    service.journal.tell(EVENT_TYPE_AGENT_STOPPED, EVENT_SEVERITY_INFO, "the agent is stopping")
    await service.journal.finish()
    try:
        await asyncio.wait_for(service.streams_ended.wait(), timeout=DRAIN_S)
    except TimeoutError:
        _LOG.warning("%d streams were not read to the end within %.0f s", service.streams, DRAIN_S)
    await serving.stop(STOP_GRACE_S)
