# SPDX-License-Identifier: Apache-2.0
"""The few bytes of a flow message that the relay looks at: pure functions over protobuf's wire format.

Agent and controller messages share field numbers, and protobuf reads a concatenation as a merge. So a batch is forwarded as the
agent's bytes with the agent's id appended: nothing is parsed, and because the last value of a field wins, an id that an agent
put into its own bytes is overruled. It is refused all the same: a message must be one field 2 from its first byte to its last.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from jarvis.capture.v1 import agent_pb2, fleet_pb2

BATCH_TAG = b"\x12"
"""Field 2, length-delimited."""
_VARINT_BYTES_MAX = 10
_SHARD, _FIRST, _NEXT, _BASE_TIME, _TOKEN, _RECORDS = 0x08, 0x10, 0x18, 0x21, 0x2A, 0x32


class FlowWireError(Exception):
    """An agent's message that cannot be forwarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHeader:
    """FlowBatch without its records."""

    shard: int
    first_sequence: int
    next_sequence: int
    resume_token: bytes


def agent_id_suffix(agent_id: str) -> bytes:
    """What is appended to an agent's message: field 1 of WatchFlowsResponse and of FleetListFlowsResponse."""
    return fleet_pb2.WatchFlowsResponse(agent_id=agent_id).SerializeToString()


def is_batch(message: bytes) -> bool:
    """Whether it begins as a batch; `batch_header` says whether it is one."""
    return message[:1] == BATCH_TAG


def check_batch(message: bytes) -> int:
    """Where the batch's own bytes begin in a message that is one batch and nothing else.

    Raises:
        FlowWireError: it is not.
    """
    if not is_batch(message):
        raise FlowWireError("the message is not a batch")
    size, position = _varint(message, 1)
    if position + size != len(message):
        raise FlowWireError(f"a batch of {size} bytes does not span the message of {len(message)} bytes")
    return position


def batch_header(message: bytes) -> BatchHeader:
    """Checks that a message is one batch and nothing else, and reads the fields before its records.

    Raises:
        FlowWireError: it is not.
    """
    position = check_batch(message)
    fields = {_SHARD: 0, _FIRST: 0, _NEXT: 0}
    token = b""
    while position < len(message):
        tag = message[position]
        if tag in fields:
            fields[tag], position = _varint(message, position + 1)
        elif tag == _BASE_TIME:
            position += 9
        elif tag == _TOKEN:
            length, start = _varint(message, position + 1)
            position = start + length
            token = message[start:position]
        elif tag == _RECORDS:
            break  # the native core writes them last; nothing more is wanted
        else:
            raise FlowWireError(f"unknown tag {tag:#04x} in a batch")
    if position > len(message):
        raise FlowWireError("a batch ends inside a field")
    return BatchHeader(shard=fields[_SHARD], first_sequence=fields[_FIRST], next_sequence=fields[_NEXT], resume_token=token)


def count_records(message: bytes) -> int:
    """How many flow records a batch holds. Costs a parse: only for batches that are dropped, whose loss must be exact.

    Raises:
        FlowWireError: it cannot be parsed.
    """
    return len(parse(message).batch.records)


def parse(message: bytes) -> agent_pb2.StreamFlowsResponse:
    """Parses a message that is not forwarded as it is.

    Raises:
        FlowWireError: it is none.
    """
    try:
        return agent_pb2.StreamFlowsResponse.FromString(message)
    except DecodeError as error:
        raise FlowWireError("the message is not a StreamFlowsResponse") from error


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The value, and the position after it."""
    value = shift = 0
    for index in range(position, min(position + _VARINT_BYTES_MAX, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise FlowWireError("a varint does not end")
