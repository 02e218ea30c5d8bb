# SPDX-License-Identifier: Apache-2.0
"""Ends a call with the google.rpc.Status of an exception. The only place that aborts calls."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import grpc.aio
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from jarvis_trust.status import error_status

from jarvis_agent.rpc_errors import status_of

_LOG = logging.getLogger(__name__)


async def abort_status(context: grpc.aio.ServicerContext[Any, Any], status: Status) -> NoReturn:
    """Ends the call with this status, details in the trailing metadata."""
    call_status = rpc_status.to_status(status)
    await context.abort(call_status.code, call_status.details, call_status.trailing_metadata)
    raise AssertionError("abort returned")  # it raises; this tells mypy


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: Exception, *, scope: str = "") -> NoReturn:
    """Ends the call for an exception; one that nobody expected is logged and told as INTERNAL without its text."""
    status = status_of(error, scope=scope)
    if status is None:
        _LOG.error("unexpected error in a call", exc_info=error)
        status = error_status(Code.INTERNAL, "INTERNAL", "the agent failed unexpectedly; its log says why")
    await abort_status(context, status)
