# SPDX-License-Identifier: Apache-2.0
"""The way out that a plan asks for, and what would keep it from ever working, found before anything starts.

Names that do not resolve, certificates that do not do, directories that cannot be written, a transport that the kernel lacks are
errors; a collector that does not answer is none: it may be there tomorrow. What a transport needs is imported where it is used.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jarvis_native import Firmware
from jarvis_native.export import send_block

from jarvis_agent.export.addresses import resolve
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.transport import Interrupt, Transport

if TYPE_CHECKING:
    from jarvis_agent.export.tls import TlsFiles

_TRIAL_S: Final = 5.0
"""How long a collector's certificate is waited for before an export starts."""


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
            ExportError: EXPORT_TLS_CERTIFICATE, EXPORT_FILE: this host is not set up for it.
        """
        if collector is None:
            return self._files(plan)
        host, port = collector.host, collector.port
        if plan.transport == "tls":
            from jarvis_agent.export.tls import TlsTransport  # noqa: PLC0415

            return TlsTransport(host, port, files=self._tls_files(), name=collector.tls_name, interrupt=interrupt)
        if plan.transport == "sctp":
            from jarvis_agent.export.sctp import SctpTransport  # noqa: PLC0415

            return SctpTransport(host, port, interrupt=interrupt)
        if plan.transport == "tcp":
            from jarvis_agent.export.stream import TcpTransport  # noqa: PLC0415

            return TcpTransport(host, port, interrupt=interrupt)
        from jarvis_agent.export.udp import UdpTransport  # noqa: PLC0415

        return UdpTransport(host, port, send_block=partial(send_block, self.firmware), interrupt=interrupt)

    def check(self, plan: ExportPlan) -> None:
        """What would keep an export from ever working. Blocks: on DNS, over TLS on a handshake too, for all collectors at once.

        Raises:
            ExportError: the first thing found. A name that cannot be resolved now is one: nobody could say where records go.
        """
        if plan.transport == "file":
            from jarvis_agent.export.files import check_export_directory  # noqa: PLC0415

            check_export_directory(self._export_directory())
        elif plan.transport == "sctp":
            from jarvis_agent.export.sctp import check_sctp  # noqa: PLC0415

            check_sctp()
        elif plan.transport == "tls":
            from jarvis_agent.export.tls import load_tls_context  # noqa: PLC0415

            load_tls_context(self._tls_files())
        if plan.collectors:  # all at once: an operator waits, and each may take its time
            with ThreadPoolExecutor(len(plan.collectors), thread_name_prefix="export-trial") as threads:
                list(threads.map(partial(self._try, plan), plan.collectors))

    def _try(self, plan: ExportPlan, collector: Collector) -> None:
        resolve(collector.host, collector.port)
        if plan.transport == "tls":
            self._try_handshake(plan, collector)

    def _try_handshake(self, plan: ExportPlan, collector: Collector) -> None:
        until = time.monotonic() + _TRIAL_S
        way = self.open(plan, collector, lambda: time.monotonic() >= until)
        try:
            way.connect()
        except ExportError as error:
            if error.is_permanent:
                raise
        finally:
            way.close()

    def _files(self, plan: ExportPlan) -> Transport:
        from jarvis_agent.export.files import FileTransport  # noqa: PLC0415

        return FileTransport(
            self._export_directory(),
            plan.export_id,
            file_bytes=plan.file_bytes,
            file_age_s=plan.file_age_s,
            files_kept=plan.files_kept,
        )

    def _tls_files(self) -> TlsFiles:
        if self.tls is None:
            text = "transport tls needs this agent's export_tls_ca, export_tls_certificate and export_tls_key, which are not set"
            raise ExportError("EXPORT_TLS_CERTIFICATE", text, is_permanent=True)
        return self.tls

    def _export_directory(self) -> Path:
        if self.directory is None:
            text = "transport file needs this agent's export_directory, which is not set"
            raise ExportError("EXPORT_FILE", text, is_permanent=True)
        return self.directory
