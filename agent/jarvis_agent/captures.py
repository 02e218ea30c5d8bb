# SPDX-License-Identifier: Apache-2.0
"""The agent's one capture: started, moved forward on a thread of its own, stopped, and kept for readers until the next one.

    StartCapture → CaptureRun (engine, thread) → polls until the end of input, a failure or StopCapture → flows end

The engine's workers capture; the thread only waits for the end. Streams attach to a run before its first frame is read, so
that a replayed file is not over before its subscriber is there, and go on reading after the end. CaptureManager belongs to
the event loop; engines are safe from any thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jarvis.capture.v1.capture_pb2 import (
    CAPTURE_STATE_FAILED,
    CAPTURE_STATE_IDLE,
    CAPTURE_STATE_PAUSED,
    CAPTURE_STATE_RUNNING,
    CAPTURE_STATE_STOPPED,
    CaptureSpec,
    CaptureState,
    CaptureStatus,
)
from jarvis_native import Authority, CaptureError, CaptureMetrics, Firmware, PacketCaptureEngine

from jarvis_agent import wire
from jarvis_agent.capture_spec import CapturePlan, plan_capture, plan_interface
from jarvis_agent.errors import CaptureRefusedError, RequestError
from jarvis_agent.events import EventJournal
from jarvis_agent.happenings import CaptureWatch

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05


class CaptureRun:
    """One started capture. State changes happen on its thread and are read from anywhere."""

    def __init__(
        self, engine: PacketCaptureEngine, plan: CapturePlan, journal: EventJournal, *, is_paused: Callable[[], bool]
    ) -> None:
        """Not started yet. `is_paused`: whether the lease is over; called on the capture's thread."""
        self.capture_id = secrets.token_hex(16)
        self._watch = CaptureWatch(journal, self.capture_id, engine, is_paused=is_paused)
        self.engine = engine
        self.plan = plan
        self.start_time_ns = 0
        self.state: CaptureState.ValueType = CAPTURE_STATE_RUNNING
        self.message = ""
        self._stopped = threading.Event()
        self.is_abandoned = False
        self._thread = threading.Thread(target=self._pump, name="capture", daemon=True)

    def start(self) -> None:
        """Opens the backend and starts moving; blocks for as long as opening takes.

        Raises:
            CaptureError: the backend could not be opened.
        """
        self.start_time_ns = time.time_ns()
        self.engine.start()
        self._watch.started(f"{self.engine.backend} {self.engine.backend_detail}".rstrip())
        self._thread.start()

    def abandon(self) -> None:
        """It could not be started: streams that attached to it let go of it."""
        self.is_abandoned = True
        self.engine.close()

    def stop(self, *, graceful: bool) -> None:
        """Stops and waits for the end; blocks.

        Raises:
            CaptureError: the native core could not stop in order.
        """
        self._stopped.set()
        self.engine.stop(graceful)
        self._thread.join()

    @property
    def is_active(self) -> bool:
        """Frames are still being read (or counted as paused)."""
        return self.state == CAPTURE_STATE_RUNNING

    def _pump(self) -> None:
        try:
            # poll comes back as soon as records are ready, which is the streams' business: look up at intervals only.
            while self.engine.poll(0.0):
                self._watch.look()
                self._stopped.wait(_POLL_S)
            self.engine.stop(graceful=True)
            damage = self.engine.last_error()
        except CaptureError as error:
            _LOG.error("capture %s failed: %s", self.capture_id, error.message)
            self._end_flows()
            self.message = error.message
            self.state = CAPTURE_STATE_FAILED
            self._watch.ended(failed=True, message=error.message)
            return
        ended = "" if self._stopped.is_set() else "the end of the input was reached"
        self.message = ended if damage is None else damage.message
        self.state = CAPTURE_STATE_STOPPED
        self._watch.ended(failed=damage is not None, message=self.message)

    def _end_flows(self) -> None:
        """After a failure: what was metered so far still reaches its readers."""
        try:
            self.engine.stop(graceful=True)
        except CaptureError as error:
            _LOG.error("capture %s could not be stopped in order: %s", self.capture_id, error.message)


class CaptureManager:
    """At most one active capture. All methods on the event loop."""

    def __init__(
        self,
        *,
        firmware: Firmware,
        replay_directory: Path | None,
        worker_cpus: tuple[int, ...],
        dpdk_eal_args: tuple[str, ...],
        flow_log_records: int,
        journal: EventJournal,
        authority: Authority,
    ) -> None:
        """Idle.

        Args:
            firmware: the loaded library.
            replay_directory: where capture files may be read from; None = nowhere.
            worker_cpus: CPU of each worker of a capture; empty = one worker, not pinned.
            dpdk_eal_args: what DPDK is started with, by the first capture that uses it.
            flow_log_records: finished records kept for readers, a worker.
            journal: told what happens to captures.
            authority: whose leases and admitted commands the captures obey.
        """
        self._firmware = firmware
        self._replay_directory = replay_directory
        self._worker_cpus = worker_cpus
        self._dpdk_eal_args = dpdk_eal_args
        self._flow_log_records = flow_log_records
        self._journal = journal
        self._authority = authority
        self._lock = asyncio.Lock()
        self._run: CaptureRun | None = None
        self._followers: set[Callable[[CaptureRun], None]] = set()

    @property
    def run(self) -> CaptureRun | None:
        """The newest capture, active or over; None before the first."""
        return self._run

    async def start(self, spec: CaptureSpec, request: bytes) -> CaptureStatus:
        """Starts a capture.

        Args:
            spec: what to capture.
            request: payload of the StartCapture command that says so, as received: the core admitted that very one.

        Raises:
            CaptureRefusedError: CAPTURE_RUNNING.
            RequestError: fields that only the agent can judge.
            CaptureError: what the native core refuses, naming the field; LeaseOver or AuthorityRefused when it was not admitted.
        """
        async with self._lock:
            if self._run is not None and self._run.is_active:
                raise CaptureRefusedError("CAPTURE_RUNNING", f"capture {self._run.capture_id} is running; stop it first")
            plan = plan_capture(spec, replay_directory=self._replay_directory, worker_cpus=self._worker_cpus)
            run = await asyncio.to_thread(self._prepare, plan, request)
            for attach in tuple(self._followers):
                attach(run)
            try:
                await asyncio.to_thread(run.start)
            except BaseException:
                run.abandon()
                raise
            self._run = run
            _LOG.info(
                "capture %s started with backend %s", run.capture_id, f"{run.engine.backend} {run.engine.backend_detail}".rstrip()
            )
            return self.status()

    async def stop(self, *, discard: bool) -> CaptureStatus:
        """Stops the capture and ends its flows; readers go on reading what is there.

        Raises:
            CaptureRefusedError: CAPTURE_NOT_RUNNING.
        """
        async with self._lock:
            if self._run is None or not self._run.is_active:
                raise CaptureRefusedError("CAPTURE_NOT_RUNNING", "no capture is running")
            await asyncio.to_thread(self._run.stop, graceful=not discard)
            _LOG.info("capture %s stopped", self._run.capture_id)
            return self.status()

    async def update_interfaces(self, *, add: Sequence[str], remove: Sequence[str]) -> CaptureStatus:
        """Adds interfaces to the running live capture, then removes others; what went before a refusal stays done.

        Raises:
            CaptureRefusedError: CAPTURE_NOT_RUNNING.
            RequestError: nothing to do, or a name that only the agent can judge.
            CaptureError: what the native core refuses, naming the field.
        """
        if not add and not remove:
            raise RequestError(("add", "empty, and remove too; at least one interface is accepted"))
        async with self._lock:
            if self._run is None or not self._run.is_active:
                raise CaptureRefusedError("CAPTURE_NOT_RUNNING", "no capture is running")
            engine = self._run.engine
            changes = [(f"add[{at}]", name, engine.add_interface) for at, name in enumerate(add)]
            changes += [(f"remove[{at}]", name, engine.remove_interface) for at, name in enumerate(remove)]
            for field, name, change in changes:
                device = plan_interface(field, name, self._replay_directory)
                try:
                    await asyncio.to_thread(change, device)
                except CaptureError as error:
                    error.field = field if error.field == "interface" else error.field
                    raise
                _LOG.info("capture %s: %s %s", self._run.capture_id, field.partition("[")[0], name)
            return self.status()

    async def shut_down(self) -> None:
        """For the agent's end: stops gracefully if anything runs."""
        if self._run is not None and self._run.is_active:
            try:
                await self.stop(discard=False)
            except CaptureRefusedError:
                return  # it ended by itself meanwhile

    def follow(self, attach: Callable[[CaptureRun], None]) -> Callable[[], None]:
        """Registers a stream: `attach` is called for each new run before its first frame. Returns how to leave."""
        self._followers.add(attach)
        return lambda: self._followers.discard(attach)

    def require_run(self) -> CaptureRun:
        """The newest capture.

        Raises:
            CaptureRefusedError: CAPTURE_NOT_RUNNING when there never was one.
        """
        if self._run is None:
            raise CaptureRefusedError("CAPTURE_NOT_RUNNING", "no capture was started since the agent's start")
        return self._run

    def metrics(self) -> CaptureMetrics:
        """Counters now.

        Raises:
            CaptureRefusedError: CAPTURE_NOT_RUNNING when there never was a capture.
        """
        return self.require_run().engine.get_metrics()

    def status(self) -> CaptureStatus:
        """State, specification and counters."""
        run = self._run
        if run is None:
            return CaptureStatus(state=CAPTURE_STATE_IDLE)
        state, message = run.state, run.message
        if state == CAPTURE_STATE_RUNNING and self._is_paused():
            state, message = CAPTURE_STATE_PAUSED, "the lease has ended: frames are counted as paused until the next lease"
        metrics = run.engine.get_metrics()
        return CaptureStatus(
            state=state,
            capture_id=run.capture_id,
            spec=run.plan.spec,
            backend=run.engine.backend,
            backend_detail=run.engine.backend_detail,
            start_time=wire.timestamp(run.start_time_ns),
            uptime=wire.duration(metrics.elapsed_ns),
            message=message,
            metrics=wire.capture_metrics(metrics),
            interfaces=[wire.interface_status(interface) for interface in run.engine.get_interfaces()],
            clock=wire.clock_status(run.engine.get_clock()) if run.plan.is_live else None,
        )

    def _is_paused(self) -> bool:
        return not self._authority.lease().in_force

    def _prepare(self, plan: CapturePlan, request: bytes) -> CaptureRun:
        engine = PacketCaptureEngine(
            plan.interfaces or None,
            files=plan.files,
            backend=plan.backend,
            buffer_size_mb=plan.buffer_size_mb,
            snaplen=plan.snaplen,
            filter=plan.filter,
            promiscuous=plan.promiscuous,
            exclusive=plan.exclusive,
            busy_poll_us=plan.busy_poll_us,
            timestamp_source=plan.timestamp_source,
            workers=plan.workers,
            worker_cpus=plan.worker_cpus,
            dpdk_eal_args=self._dpdk_eal_args,
            loss_threshold=plan.loss_threshold,
            firmware=self._firmware,
        )
        engine.bind(self._authority, request)
        engine.enable_flow_metering(
            max_flows=plan.max_flows,
            idle_timeout_s=plan.idle_timeout_s,
            active_timeout_s=plan.active_timeout_s,
            log_records=self._flow_log_records,
            tunnel=plan.tunnel,
            sampling=plan.sampling,
            sampling_interval=plan.sampling_interval,
            mirror_timestamps=plan.mirror_timestamps,
            statistics=plan.statistics,
            merge_interfaces=plan.merge_interfaces,
        )
        return CaptureRun(engine, plan, self._journal, is_paused=self._is_paused)
