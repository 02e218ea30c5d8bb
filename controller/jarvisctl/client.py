# SPDX-License-Identifier: Apache-2.0
"""The connection to the controller and the frame every fleet command runs in.

run() loads configuration and certificate, opens one mTLS channel, lets the command talk over it and turns whatever goes
wrong into a CtlError. One event loop, grpc.aio only.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import typer
from grpc import aio
from jarvis.capture.v1.fleet_pb2_grpc import FleetServiceStub

from jarvisctl.config import CtlConfig, load_config
from jarvisctl.credentials import Credentials, load_credentials
from jarvisctl.errors import CtlError, ExitCode
from jarvisctl.format.output import Output
from jarvisctl.settings import Settings, settings_of
from jarvisctl.status import translate

if TYPE_CHECKING:
    # Exists in the type stubs only.
    from jarvis.capture.v1.fleet_pb2_grpc import FleetServiceAsyncStub

#: A flow batch is at most 256 KiB; an attestation's checks and an audit page stay well below this too.
_MAX_MESSAGE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What a command works with: the typed stub, the channel, the deadline and the printer."""

    stub: "FleetServiceAsyncStub"
    #: For the stubs of other services.
    channel: aio.Channel
    #: Seconds for one whole answer; streams that follow pass None to gRPC instead.
    timeout_s: float
    output: Output
    config: CtlConfig
    credentials: Credentials


def open_channel(config: CtlConfig, credentials: Credentials) -> aio.Channel:
    """An mTLS channel that accepts only the fleet's controller. Must be called with the event loop running."""
    return aio.secure_channel(
        config.endpoint,
        grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem),
        options=[
            # Only controllers are given this DNS name by the fleet CA; the host in the endpoint may be anything.
            ("grpc.ssl_target_name_override", f"controller.{config.fleet}"),
            # Dead peers are noticed within 40 s even while a followed stream is silent.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.primary_user_agent", "jarvisctl"),
        ],
    )


def run(context: typer.Context, action: Callable[[Fleet], Awaitable[ExitCode]]) -> None:
    """Runs one fleet command and leaves with its exit code.

    Raises:
        CtlError: configuration, certificate, connection or the call itself failed.
        typer.Exit: the action's exit code, or 130 when interrupted.
    """
    settings = settings_of(context)
    config = load_config(settings.config)
    credentials = load_credentials(config)
    try:
        exit_code = asyncio.run(connected(settings, config, credentials, action))
    except KeyboardInterrupt:
        exit_code = ExitCode.INTERRUPTED
    raise typer.Exit(exit_code)


async def connected(
    settings: Settings, config: CtlConfig, credentials: Credentials, action: Callable[[Fleet], Awaitable[ExitCode]]
) -> ExitCode:
    """The action inside an open channel, its gRPC errors translated."""
    async with open_channel(config, credentials) as channel:
        fleet = Fleet(
            stub=FleetServiceStub(channel),
            channel=channel,
            timeout_s=settings.timeout_s,
            output=Output(json=settings.json),
            config=config,
            credentials=credentials,
        )
        if credentials.expires_soon:
            fleet.output.remark(f"jarvisctl: {credentials.expires_soon}")
        try:
            return await action(fleet)
        except aio.AioRpcError as error:
            raise translate(error, config, settings.timeout_s) from error


def nothing_selected() -> CtlError:
    """For a selector that matched nobody, should the controller answer with nothing at all."""
    return CtlError(
        "the selector matches no agent: `jarvisctl agents list` shows which there are", ExitCode.USAGE, code="not_found"
    )
