# SPDX-License-Identifier: Apache-2.0
"""One subscriber's stream of finished flows: bytes from the native core's record log, with loss notices and watermarks between.

    reader.read_batch() → StreamFlowsResponse bytes, forwarded as they are     gaps, counters → LossLedger → LossNotice
    nothing to send for a second → Watermark

Full batches leave at once; a partial one means that the log was drained, and the next read waits until max_batch_delay is
over or a full batch has come together. Nothing is queued here: a subscriber that does not read holds back this coroutine,
the native log goes on, and what is overwritten meanwhile is told as a loss. (Files are read with a lossless reader: there
the packet path waits.)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from google.protobuf.duration_pb2 import Duration
from jarvis.capture.v1.agent_pb2 import StreamFlowsResponse
from jarvis.capture.v1.capture_pb2 import FlowSubscription
from jarvis.capture.v1.flow_pb2 import LossNotice, Watermark
from jarvis_native import CaptureError, FlowBatchBytes, FlowReader
from jarvis_native.engine import ReaderStart
from jarvis_native.errors import CaptureStateError

from jarvis_agent import wire
from jarvis_agent.captures import CaptureManager, CaptureRun
from jarvis_agent.errors import AgentStoppingError, CaptureRefusedError, RequestError
from jarvis_agent.losses import LossLedger

DEFAULT_BATCH_RECORDS = 1_000
MAX_BATCH_RECORDS = 10_000
MAX_BATCH_BYTES = 262_144
DEFAULT_DELAY_S = 0.1
MIN_DELAY_S, MAX_DELAY_S = 0.01, 10.0
WATERMARK_INTERVAL_S = 1.0
MAX_SOURCES = 4
"""Captures that a stream may be behind: each holds its tables in memory for as long as somebody reads its log."""
EXPIRY_MARGIN_NS = 2 * 10**9
"""Flows past their idle timeout are ended within this time (the core sweeps its tables about once a second)."""
_RECORD_BYTES_MAX = 1_024
"""A batch that leaves less room than this is full (one record takes at most 192 bytes; see jarvis_capture.h)."""
_SLICE_S = 0.05
"""How often a waiting stream looks up: bounds its answer to an ended lease, a drain, a full batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """A checked FlowSubscription."""

    filter: str
    min_packets: int
    start: ReaderStart
    since_ns: int
    last_records: int
    token: bytes
    follow: bool
    batch_records: int
    delay_s: float


def plan_stream(subscription: FlowSubscription) -> StreamPlan:
    """Defaults filled in, ranges checked; filter and token are the native core's to judge.

    Raises:
        RequestError: every field that is out of range.
    """
    delay_s = _seconds(subscription.max_batch_delay) if subscription.HasField("max_batch_delay") else DEFAULT_DELAY_S
    start, since_ns = _start(subscription)
    violations = []
    if subscription.max_batch_records > MAX_BATCH_RECORDS:
        violations.append(
            (
                "subscription.max_batch_records",
                f"{subscription.max_batch_records}; 1 to {MAX_BATCH_RECORDS} are accepted, 0 = 1000",
            )
        )
    if not MIN_DELAY_S <= delay_s <= MAX_DELAY_S:
        violations.append(("subscription.max_batch_delay", f"{delay_s:g} s; 0.01 s to 10 s are accepted"))
    if since_ns < 0:
        violations.append(("subscription.since", "before 1970; a time not before the Unix epoch is accepted"))
    if start == "last" and subscription.last_records == 0:
        violations.append(("subscription.last_records", "0; 1 and above are accepted"))
    if violations:
        raise RequestError(*violations)
    return StreamPlan(
        filter=subscription.filter,
        min_packets=subscription.min_packets,
        start=start,
        since_ns=since_ns,
        last_records=subscription.last_records,
        token=subscription.resume_token,
        follow=subscription.follow,
        batch_records=subscription.max_batch_records or DEFAULT_BATCH_RECORDS,
        delay_s=delay_s,
    )


def _start(subscription: FlowSubscription) -> tuple[ReaderStart, int]:
    match subscription.WhichOneof("start"):
        case "since":
            return "oldest", subscription.since.seconds * 10**9 + subscription.since.nanos
        case "resume_token":
            return "token", 0
        case "last_records":
            return "last", 0
        case "only_new" if subscription.only_new:
            return "newest", 0
        case _:
            return "oldest", 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One capture that the stream reads from."""

    run: CaptureRun
    reader: FlowReader


class FlowStream:
    """One call of StreamFlows. Used on the event loop; `close` when the call is over, however it ended."""

    def __init__(
        self,
        plan: StreamPlan,
        captures: CaptureManager,
        *,
        check_lease: Callable[[], None],
        is_draining: Callable[[], bool],
    ) -> None:
        """Opens the reader, so that bad filters and tokens are refused before anything is sent.

        Args:
            plan: what is subscribed to.
            captures: where it comes from.
            check_lease: raises LeaseError when the stream has to end.
            is_draining: the agent is stopping.

        Raises:
            CaptureRefusedError: CAPTURE_NOT_RUNNING, without `follow`, when there is nothing to read.
            CaptureError: the native core refuses filter or token.
        """
        self._plan = plan
        self._captures = captures
        self._check_lease = check_lease
        self._is_draining = is_draining
        self._losses = LossLedger()
        self._sources: deque[_Source] = deque()
        self._attached = asyncio.Event()
        self._is_overrun = False
        self._sent_at = time.monotonic()
        self._leave: Callable[[], None] = lambda: None
        if not plan.follow:
            captures.require_run()
        if captures.run is not None:
            self._open(captures.run, plan.start, plan.since_ns)
        if plan.follow:
            self._leave = captures.follow(self._attach)

    def close(self) -> None:
        """Gives up its place in the record logs; may be called again."""
        self._leave()
        for source in self._sources:
            source.reader.close()
        self._sources.clear()

    async def messages(self) -> AsyncIterator[bytes]:
        """Serialized StreamFlowsResponse messages until there is no more to come.

        Raises:
            LeaseError: the lease ended; what was read has been given, with every loss known so far.
            AgentStoppingError: the agent stops; likewise.
            CaptureRefusedError: SUBSCRIBER_TOO_SLOW.
            CaptureError: the native core failed.
        """
        try:
            while True:
                while self._sources:
                    async for message in self._read_source(self._sources[0]):
                        yield message
                    self._sources.popleft().reader.close()
                if not self._plan.follow:
                    break
                self._check_end()
                await self._next_source()
                for message in self._idle_messages(None):
                    yield message
        except Exception:
            for notice in self._losses.flush():
                yield _loss_message(notice)
            raise
        for notice in self._losses.flush():
            yield _loss_message(notice)

    async def _read_source(self, source: _Source) -> AsyncIterator[bytes]:
        """Everything of one capture, from the reader's place to its end (without follow: to what is there now)."""
        round_ = _Round(self._plan.batch_records)
        while True:
            self._check_lease()
            self._check_overrun()
            if source.run.is_abandoned:
                return
            written = source.run.engine.get_metrics().log_records_written
            was_active = source.run.is_active
            batch = await self._read(source.reader)
            self._note(source, batch)
            for notice in self._losses.due(time.monotonic()):
                yield self._sent(_loss_message(notice))
            if batch.records:
                yield self._sent(batch.data)
            if batch.end or (was_active and not batch.more and not self._plan.follow):
                return
            # A stopped capture may hold flows that wait for the slowest lossless reader: until `end` there is more.
            if round_.goes_on(batch) or (batch.records and not was_active):
                await asyncio.sleep(0)
                continue
            round_ = round_.next()
            for message in self._idle_messages(source):
                yield message
            await self._wait_for_batch(source, written)

    async def _read(self, reader: FlowReader) -> FlowBatchBytes:
        """One read. With a filter it may walk many records to find few, so that it goes to a thread."""
        if self._plan.filter or self._plan.min_packets:
            return await asyncio.to_thread(reader.read_batch, self._plan.batch_records, MAX_BATCH_BYTES)
        return reader.read_batch(self._plan.batch_records, MAX_BATCH_BYTES)

    async def _wait_for_batch(self, source: _Source, written: int) -> None:
        """Until the delay is over, a full batch has come together, or the stream or the capture is to end."""
        deadline = time.monotonic() + self._plan.delay_s
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _SLICE_S))
            metrics = source.run.engine.get_metrics()
            self._losses.observe(metrics)
            full = metrics.log_records_written - written >= self._plan.batch_records
            if full or self._is_draining() or not source.run.is_active:
                return

    async def _next_source(self) -> None:
        """Waits a little for the next capture."""
        self._attached.clear()
        if not self._sources:
            try:
                async with asyncio.timeout(_SLICE_S):
                    await self._attached.wait()
            except TimeoutError:
                return

    def _note(self, source: _Source, batch: FlowBatchBytes) -> None:
        if batch.lost:
            self._losses.add_gap(
                shard=batch.shard,
                lost=batch.lost,
                first_sequence=batch.first_lost_sequence,
                last_sequence=batch.last_lost_sequence,
                time_ns=time.time_ns(),
            )
        self._losses.observe(source.run.engine.get_metrics())

    def _idle_messages(self, source: _Source | None) -> list[bytes]:
        """A watermark when nothing was sent for a second."""
        messages = [self._sent(_loss_message(notice)) for notice in self._losses.due(time.monotonic())]
        if not messages and time.monotonic() - self._sent_at >= WATERMARK_INTERVAL_S:
            messages.append(self._sent(_watermark_message(source)))
        return messages

    def _sent(self, message: bytes) -> bytes:
        self._sent_at = time.monotonic()
        return message

    def _check_overrun(self) -> None:
        if self._is_overrun:
            raise CaptureRefusedError(
                "SUBSCRIBER_TOO_SLOW", f"the subscriber is more than {MAX_SOURCES} captures behind; subscribe anew"
            )

    def _check_end(self) -> None:
        self._check_lease()
        self._check_overrun()
        if self._is_draining():
            raise AgentStoppingError

    def _attach(self, run: CaptureRun) -> None:
        if len(self._sources) >= MAX_SOURCES:
            self._is_overrun = True
            return
        try:
            self._open(run, "oldest", 0)
        except CaptureError:
            return  # the engine was closed again: the capture did not come about
        self._attached.set()

    def _open(self, run: CaptureRun, start: ReaderStart, since_ns: int) -> None:
        open_reader = partial(
            run.engine.open_flow_reader,
            filter=self._plan.filter,
            min_packets=self._plan.min_packets,
            since_ns=since_ns,
            start=start,
            last_records=self._plan.last_records if start == "last" else 0,
            token=self._plan.token if start == "token" else b"",
        )
        try:
            reader = open_reader(lossless=not run.plan.is_live and run.is_active)
        except CaptureStateError:  # the core waits for a few readers only; the next ones are told what they miss
            reader = open_reader()
        # From the oldest record on, the capture's losses so far belong to the story; from anywhere else only those to come.
        self._losses.start_counting(None if start == "oldest" else run.engine.get_metrics())
        self._sources.append(_Source(run=run, reader=reader))


class _Round:
    """Reads from one wait to the next: full batches, and at most one partial batch a shard.

    On a busy link there is always something more ready: going on because of it would send a batch for every few records.
    """

    def __init__(self, full: int, places: dict[int, int] | None = None) -> None:
        self._full = full
        self._partial: set[int] = set()
        self._places = {} if places is None else places

    def goes_on(self, batch: FlowBatchBytes) -> bool:
        """Whether to read on at once after this batch."""
        looked = batch.next_sequence - self._places.get(batch.shard, batch.first_sequence)
        self._places[batch.shard] = batch.next_sequence
        if max(batch.records, looked) >= self._full or len(batch.data) > MAX_BATCH_BYTES - _RECORD_BYTES_MAX:
            return batch.more
        fresh = batch.shard not in self._partial
        self._partial.add(batch.shard)
        return fresh and batch.more

    def next(self) -> _Round:
        """The round after the wait."""
        return _Round(self._full, self._places)


def _watermark_message(source: _Source | None) -> bytes:
    """Alive; and for a live capture: every flow whose last packet is older than this has been sent.

    Called when the log was drained. A flow without packets for the idle timeout has left the table. With no idle timeout, while
    paused, or for a file (whose clock is its own) nothing can be promised and the time stays unset.
    """
    watermark = Watermark()
    if source is not None and source.run.plan.is_live and source.run.is_active and source.run.plan.idle_timeout_s > 0:
        reached = time.time_ns() - int(source.run.plan.idle_timeout_s * 1e9) - EXPIRY_MARGIN_NS
        watermark.low_watermark.CopyFrom(wire.timestamp(reached))
    return StreamFlowsResponse(watermark=watermark).SerializeToString()


def _loss_message(notice: LossNotice) -> bytes:
    return StreamFlowsResponse(loss=notice).SerializeToString()


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
