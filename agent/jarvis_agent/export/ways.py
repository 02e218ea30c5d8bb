# SPDX-License-Identifier: Apache-2.0
"""The way to a collector that a plan asks for, and whether it can be gone at all, before anything is enabled."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from jarvis_native import Firmware
from jarvis_native.export import send_block

from jarvis_agent.export.addresses import resolve
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.stream import TcpTransport
from jarvis_agent.export.tls import TlsFiles, TlsTransport, load_tls_context
from jarvis_agent.export.transport import Interrupt, Transport
from jarvis_agent.export.udp import UdpTransport

_TRIAL_S: Final = 5.0
"""How long a collector's certificate is waited for when an export is enabled; one that does not answer is no error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportWays:
    """What this host has for exports."""

    firmware: Firmware
    tls: TlsFiles | None
    """None: none is configured."""
    directory: Path | None
    """For files; None: none is configured."""

    def open(self, plan: ExportPlan, collector: Collector | None, interrupt: Interrupt) -> Transport:
        """The way to one collector (None: into files), not connected.

        Raises:
            ExportError: EXPORT_TRANSPORT_UNSUPPORTED, EXPORT_TLS_CERTIFICATE: this host is not set up for it.
        """
        if collector is None:
            raise ExportError("EXPORT_TRANSPORT_UNSUPPORTED", "files", is_permanent=True)
        if plan.transport == "tcp":
            return TcpTransport(collector.host, collector.port, interrupt=interrupt)
        if plan.transport == "tls":
            files = self._tls_files()
            return TlsTransport(collector.host, collector.port, files=files, name=collector.tls_name, interrupt=interrupt)
        return UdpTransport(collector.host, collector.port, send_block=partial(send_block, self.firmware), interrupt=interrupt)

    def check(self, plan: ExportPlan) -> None:
        """What would keep an export from ever working: names that do not exist, certificates. Blocks on DNS and TLS handshakes.

        Raises:
            ExportError: permanent ones alone; a collector or a resolver that does not answer is tried again later.
        """
        if plan.transport == "tls":
            load_tls_context(self._tls_files())
        for collector in plan.collectors:
            try:
                resolve(collector.host, collector.port)
                if plan.transport == "tls":
                    self._try_handshake(plan, collector)
            except ExportError as error:
                if error.is_permanent:
                    raise

    def _try_handshake(self, plan: ExportPlan, collector: Collector) -> None:
        until = time.monotonic() + _TRIAL_S
        way = self.open(plan, collector, lambda: time.monotonic() >= until)
        try:
            way.connect()
        finally:
            way.close()

    def _tls_files(self) -> TlsFiles:
        if self.tls is None:
            message = (
                "transport tls needs this agent's export_tls_ca, export_tls_certificate and export_tls_key, which are not set"
            )
            raise ExportError("EXPORT_TLS_CERTIFICATE", message, is_permanent=True)
        return self.tls
