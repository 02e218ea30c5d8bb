# SPDX-License-Identifier: Apache-2.0
"""What waits for one subscriber of flows: bounded in messages and bytes, with an exact account of what had to be dropped.

Sources put, the subscriber's call takes. Batches are dropped oldest first; loss notices, watermarks and agent status never
are. What was dropped is told as a LossNotice of point CONTROLLER_QUEUE per agent and shard, at most one a second each.
Sans-I/O: `now_ns` is given.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from jarvis.capture.v1 import fleet_pb2, flow_pb2

from jarvis_controller.flow_wire import BatchHeader, count_records

_NOTICE_INTERVAL_NS = 10**9


class SlowConsumerError(Exception):
    """The subscriber does not keep up, and asked to be disconnected rather than lose records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    agent_id: str
    message: bytes
    header: BatchHeader | None
    """Set for batches."""


@dataclass(slots=True, kw_only=True)
class _Loss:
    """What was dropped of one agent's shard since its last notice."""

    records: int = 0
    first_sequence: int = 0
    last_sequence: int = 0
    first_time_ns: int = 0
    last_time_ns: int = 0
    told_ns: int | None = None

    def add(self, header: BatchHeader, records: int, now_ns: int) -> None:
        if not self.records:
            self.first_sequence, self.first_time_ns = header.first_sequence, now_ns
        self.records += records
        self.last_sequence, self.last_time_ns = max(header.next_sequence, 1) - 1, now_ns

    def notice(self, agent_id: str, shard: int) -> bytes:
        loss = flow_pb2.LossNotice(
            point=flow_pb2.LOSS_POINT_CONTROLLER_QUEUE,
            lost=self.records,
            shard=shard,
            first_sequence=self.first_sequence,
            last_sequence=self.last_sequence,
        )
        loss.first_time.FromNanoseconds(self.first_time_ns)
        loss.last_time.FromNanoseconds(self.last_time_ns)
        return fleet_pb2.WatchFlowsResponse(agent_id=agent_id, loss=loss).SerializeToString()


class SubscriberQueue:
    """The queue of one subscriber. Times are wall-clock, ns since the Unix epoch."""

    def __init__(self, *, max_messages: int, max_bytes: int, drop_oldest: bool) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._drop_oldest = drop_oldest
        self._waiting: deque[_Queued] = deque()
        self._batches = 0
        self._bytes = 0
        self._losses: dict[tuple[str, int], _Loss] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether a batch can be put without dropping another."""
        return self._batches < self._max_messages and self._bytes < self._max_bytes

    @property
    def has_losses(self) -> bool:
        """Whether something was dropped that the subscriber has not been told of."""
        return any(loss.records for loss in self._losses.values())

    def put_batch(self, agent_id: str, message: bytes, header: BatchHeader, now_ns: int) -> None:
        """Queues a batch (the subscriber's bytes, id appended), at the cost of the oldest ones when there is no room.

        Raises:
            SlowConsumerError: there is no room, and nothing may be dropped.
        """
        while not self.has_room:
            if not self._drop_oldest:
                raise SlowConsumerError
            self._drop(now_ns)
        self._waiting.append(_Queued(agent_id=agent_id, message=message, header=header))
        self._batches += 1
        self._bytes += len(message)

    def put_notice(self, agent_id: str, message: bytes) -> None:
        """Queues a message that is never dropped: there are few of them, and they say what is missing."""
        self._waiting.append(_Queued(agent_id=agent_id, message=message, header=None))

    def take(self, now_ns: int) -> bytes | None:
        """The next message, or None when there is nothing to say now. A loss is told before what was queued after it."""
        notice = self._due_loss(now_ns)
        if notice is not None:
            return notice
        if not self._waiting:
            return None
        queued = self._waiting.popleft()
        if queued.header is not None:
            self._batches -= 1
            self._bytes -= len(queued.message)
        return queued.message

    def take_losses(self) -> list[bytes]:
        """Every loss not yet told, at the end of the stream."""
        told = [self._tell(key, loss, None) for key, loss in self._losses.items() if loss.records]
        self._losses.clear()
        return told

    def _due_loss(self, now_ns: int) -> bytes | None:
        for key, loss in self._losses.items():
            if loss.records and (loss.told_ns is None or now_ns - loss.told_ns >= _NOTICE_INTERVAL_NS):
                return self._tell(key, loss, now_ns)
        return None

    def _tell(self, key: tuple[str, int], loss: _Loss, now_ns: int | None) -> bytes:
        message = loss.notice(*key)
        self._losses[key] = _Loss(told_ns=now_ns)
        return message

    def _drop(self, now_ns: int) -> None:
        for index, queued in enumerate(self._waiting):  # notices before the oldest batch are few
            if queued.header is not None:
                del self._waiting[index]
                self._batches -= 1
                self._bytes -= len(queued.message)
                loss = self._losses.setdefault((queued.agent_id, queued.header.shard), _Loss())
                loss.add(queued.header, count_records(queued.message), now_ns)
                return
