# SPDX-License-Identifier: Apache-2.0
"""Errors on the wire: google.rpc.Status in an exception on this side, in the call's trailing metadata on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, status_pb2
from jarvis_trust.errors import TrustError
from jarvis_trust.status import bad_request_status, error_status, trust_error_status

_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

M = TypeVar("M", bound=Message)

OK = status_pb2.Status(code=code_pb2.OK)

MAX_REQUEST_BYTES = 64 * 1024
"""Of one request's bytes, where its handler does not say another: judged before they are parsed."""


class RpcError(Exception):
    """What a call is refused with."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def refuse(code: int, reason: str, message: str, *, metadata: Mapping[str, str] | None = None) -> RpcError:
    """The exception that refuses the call being served."""
    return RpcError(error_status(code, reason, message, metadata=metadata))


def refuse_trust(code: int, error: TrustError) -> RpcError:
    """The same, for something that was not proved."""
    return RpcError(trust_error_status(code, error))


def bad_field(field: str, message: str) -> RpcError:
    """The exception that refuses a request for one of its fields: INVALID_ARGUMENT with a BadRequest."""
    return RpcError(bad_request_status([(field, message)]))


def parse_request(kind: type[M], payload: bytes, *, most: int = MAX_REQUEST_BYTES) -> M:
    """A request's message.

    Raises:
        RpcError: INVALID_ARGUMENT when the bytes are none, REQUEST_TOO_LARGE when there are more than `most`.
    """
    if len(payload) > most:
        message = f"{kind.DESCRIPTOR.name} has {len(payload)} bytes; at most {most} are accepted"
        raise refuse(code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE", message)
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise bad_field("", f"{len(payload)} bytes that are no {kind.DESCRIPTOR.full_name}") from error


def malformed_answer() -> RpcError:
    """An agent answered with bytes that are not the response's message."""
    return refuse(code_pb2.INTERNAL, "AGENT_ANSWER_MALFORMED", "the agent's answer cannot be read")


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The status that a peer sent in its trailers; one made from the code and text when there is none that agrees with them."""
    trailers: Any = error.trailing_metadata() or ()
    code = error.code().value[0]
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == code:
                return status
    return status_pb2.Status(code=code, message=error.details() or error.code().name)


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> NoReturn:
    """Ends the call with the status, its details in the trailers. Raises, as gRPC's own abort does."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    trailers: Any = ((_DETAILS_KEY, status.SerializeToString()),)
    await context.abort(code, status.message, trailing_metadata=trailers)
    raise AssertionError("abort returned")
