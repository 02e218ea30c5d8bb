# SPDX-License-Identifier: Apache-2.0
"""What one source's stream owes its subscriber: notices when the agent process that it came from is gone with its records.

    messages, each with the session of its lease -> another session while a stream is unsettled -> LossNotice AGENT_PROCESS

A process that stops in order ends its streams after the last record, which settles them. Any other break may be the network's:
only the next stream shows whether the same process is at its end. Sans-I/O; times are wall-clock, ns since the Unix epoch.
"""

from __future__ import annotations

from jarvis.capture.v1 import flow_pb2

from jarvis_controller.flow_wire import BatchHeader


class ProcessStream:
    """The streams of one source, one after the other."""

    def __init__(self) -> None:
        self._session = b""
        """Of the process whose stream is unsettled; empty: none is."""
        self._next: dict[int, int] = {}
        """Shard -> the sequence number expected next."""
        self._heard_ns = 0

    def message(self, session_id: bytes, now_ns: int) -> flow_pb2.LossNotice | None:
        """A message came from the process with this session; what is to be told before it."""
        loss = None if self._session in {b"", session_id} else self.place_lost(now_ns)
        self._session, self._heard_ns = session_id, now_ns
        return loss

    def batch(self, header: BatchHeader) -> None:
        """The message was this batch."""
        self._next[header.shard] = header.next_sequence

    def ended(self) -> None:
        """The agent ended the stream in order: nothing is owed."""
        self._session = b""
        self._next.clear()

    def place_lost(self, now_ns: int) -> flow_pb2.LossNotice | None:
        """The unsettled stream cannot be taken up again; what is to be told, once."""
        if not self._session:
            return None
        loss = flow_pb2.LossNotice(point=flow_pb2.LOSS_POINT_AGENT_PROCESS, count_unknown=True)
        if len(self._next) == 1:
            ((loss.shard, loss.first_sequence),) = self._next.items()
        loss.first_time.FromNanoseconds(self._heard_ns)
        loss.last_time.FromNanoseconds(now_ns)
        self.ended()
        return loss
