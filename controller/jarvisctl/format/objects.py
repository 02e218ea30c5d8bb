# SPDX-License-Identifier: Apache-2.0
"""Messages as JSON objects with stable keys: the field names of the proto, every field present.

Enums are their names in lower case without the type's prefix, bytes are hex, times RFC 3339 (null when unset), durations
seconds under a key that ends in _s, messages and optional values that are not set null.
"""

from functools import cache
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from jarvisctl.format.units import rfc3339, seconds_of
from jarvisctl.status import failure_of


def to_object(message: Message) -> dict[str, Any]:
    """One message as a JSON object."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if field.message_type is None:
            unset = field.has_presence and not message.HasField(name)
            result[name] = None if unset else _scalars(field, getattr(message, name))
        elif field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            result[name] = {key: _scalar(value, item) for key, item in getattr(message, name).items()}
        elif field.is_repeated:
            result[name] = [to_object(item) for item in getattr(message, name)]
        else:
            key = name + "_s" if field.message_type is Duration.DESCRIPTOR else name
            result[key] = _submessage(getattr(message, name)) if message.HasField(name) else None
    return result


def enum_text(enum: EnumDescriptor, number: int) -> str:
    """The name of an enum value, lower case, without its type's prefix; unknown numbers as the number."""
    return _enum_texts(enum).get(number, str(number))


@cache
def _enum_texts(enum: EnumDescriptor) -> dict[int, str]:
    names = enum.values_by_number
    # protobuf style: every value begins with the type's name in UPPER_SNAKE, which is what ends at _UNSPECIFIED of number 0.
    prefix = names[0].name.removesuffix("UNSPECIFIED")
    return {number: value.name.removeprefix(prefix).lower() for number, value in names.items()}


def _scalars(field: Any, value: Any) -> Any:
    if field.is_repeated:
        return [_scalar(field, item) for item in value]
    return _scalar(field, value)


def _scalar(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return enum_text(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value


def _submessage(message: Message) -> Any:
    if isinstance(message, Timestamp):
        return rfc3339(message)
    if isinstance(message, Duration):
        return seconds_of(message)
    if isinstance(message, Status):
        failure = failure_of(message)
        return failure.to_object() if failure else None
    return to_object(message)
