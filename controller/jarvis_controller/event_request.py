# SPDX-License-Identifier: Apache-2.0
"""What a WatchEvents request means, or the refusal that it gets; and the token that a stream goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from google.rpc import code_pb2
from jarvis.capture.v1 import event_pb2, fleet_pb2

from jarvis_controller.event_log import Criteria
from jarvis_controller.rpc_status import bad_field, refuse
from jarvis_controller.selection import read_selector
from jarvis_controller.selectors import Selector

MAX_LAST_EVENTS = 100_000
_LOG_ID_BYTES, _POSITION_BYTES = 16, 8

Start = Literal["oldest", "since", "last", "new", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWatch:
    """A checked WatchEventsRequest."""

    selector: Selector
    criteria: Criteria
    start: Start
    since_ns: int
    last_events: int
    token: bytes
    follow: bool


def read_event_watch(request: fleet_pb2.WatchEventsRequest) -> EventWatch:
    """The request, checked.

    Raises:
        RpcError: INVALID_ARGUMENT.
    """
    if request.min_severity not in event_pb2.EventSeverity.values():
        raise bad_field("min_severity", f"{request.min_severity}: one of EventSeverity's values is accepted")
    for index, kind in enumerate(request.types):
        if not kind or kind not in event_pb2.EventType.values():
            raise bad_field(f"types[{index}]", f"{kind}: one of EventType's values but UNSPECIFIED is accepted")
    start: Start = "oldest"
    match request.WhichOneof("start"):
        case "since":
            start = "since"
            if request.since.seconds < 0:
                raise bad_field("since", "before 1970: a time not before the Unix epoch is accepted")
        case "last_events":
            start = "last"
            if not 1 <= request.last_events <= MAX_LAST_EVENTS:
                raise bad_field("last_events", f"{request.last_events}: 1..{MAX_LAST_EVENTS} is accepted")
        case "only_new" if request.only_new:
            start = "new"
        case "resume_token":
            start = "token"
    return EventWatch(
        selector=read_selector(request.selector),
        criteria=Criteria(types=frozenset(request.types), min_severity=request.min_severity),
        start=start,
        since_ns=request.since.seconds * 10**9 + request.since.nanos,
        last_events=request.last_events,
        token=request.resume_token,
        follow=request.follow,
    )


def make_token(log_id: bytes, position: int) -> bytes:
    """What stands for "everything up to this position was given"."""
    return log_id + position.to_bytes(_POSITION_BYTES, "big")


def read_token(token: bytes, log_id: bytes, newest: int) -> int:
    """The position of a token of this log.

    Raises:
        RpcError: INVALID_ARGUMENT, it is none.
    """
    position = int.from_bytes(token[_LOG_ID_BYTES:], "big")
    if len(token) != _LOG_ID_BYTES + _POSITION_BYTES or token[:_LOG_ID_BYTES] != log_id or position > newest:
        message = "resume_token is not of this controller's event log: one that WatchEvents gave is accepted"
        raise refuse(code_pb2.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID", message)
    return position
