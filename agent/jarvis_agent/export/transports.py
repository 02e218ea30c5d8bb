# SPDX-License-Identifier: Apache-2.0
"""The transport that a plan asks for. What a transport needs is imported with it: the meter starts without TLS or SCTP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_native.export import send_block
from jarvis_native.loader import Firmware

from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.transport import Interrupt, Transport, never

if TYPE_CHECKING:
    from jarvis_agent.export.tls import TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this host brings to its exports."""

    firmware: Firmware
    tls: TlsFiles | None = None
    """For TLS; None: none are configured."""
    export_directory: Path | None = None
    """For files; None: none is configured."""


def make_transport(plan: ExportPlan, collector: Collector | None, host: Host, *, interrupt: Interrupt = never) -> Transport:
    """The way to one collector of a plan, None for files. Connects nothing.

    Raises:
        ExportError: the host lacks what it needs; see check.py.
    """
    if plan.transport == "file" or collector is None:
        from jarvis_agent.export.files import FileTransport  # noqa: PLC0415 - only where it is used

        return FileTransport(
            export_directory_of(host),
            plan.export_id,
            file_bytes=plan.file_bytes,
            file_age_s=plan.file_age_s,
            files_kept=plan.files_kept,
        )
    if plan.transport == "udp":
        from jarvis_agent.export.udp import UdpTransport  # noqa: PLC0415

        return UdpTransport(collector.host, collector.port, send_block=partial(send_block, host.firmware), interrupt=interrupt)
    if plan.transport == "tls":
        from jarvis_agent.export.tls import TlsTransport  # noqa: PLC0415

        files = tls_files_of(host)
        return TlsTransport(collector.host, collector.port, files=files, name=collector.tls_name, interrupt=interrupt)
    if plan.transport == "sctp":
        from jarvis_agent.export.sctp import SctpTransport  # noqa: PLC0415

        return SctpTransport(collector.host, collector.port, interrupt=interrupt)
    from jarvis_agent.export.stream import TcpTransport  # noqa: PLC0415

    return TcpTransport(collector.host, collector.port, interrupt=interrupt)


def tls_files_of(host: Host) -> TlsFiles:
    """The configured files.

    Raises:
        ExportError: EXPORT_TLS_CERTIFICATE, none are.
    """
    if host.tls is None:
        text = "transport is tls: this host has no certificate for exports; its CA, certificate and key must be configured"
        raise ExportError("EXPORT_TLS_CERTIFICATE", text, is_permanent=True)
    return host.tls


def export_directory_of(host: Host) -> Path:
    """The configured directory.

    Raises:
        ExportError: EXPORT_FILE, none is.
    """
    if host.export_directory is None:
        text = "transport is file: this host has no export directory configured"
        raise ExportError("EXPORT_FILE", text, is_permanent=True)
    return host.export_directory
