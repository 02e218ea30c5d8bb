# SPDX-License-Identifier: Apache-2.0
"""What would make an export fail for certain, found before anything starts.

Names that do not resolve, certificates that do not do, directories that cannot be written, a transport that the kernel lacks. A
collector that does not answer is none of this: it may be there tomorrow.
"""

from __future__ import annotations

from pathlib import Path

from jarvis_agent.export.addresses import resolve
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.transport import Interrupt, never
from jarvis_agent.export.transports import Host, export_directory_of, make_transport, tls_files_of


def check_plan(plan: ExportPlan, host: Host, *, spool_directory: Path | None = None, interrupt: Interrupt = never) -> None:
    """Looks at everything that a plan needs. Blocks: on DNS, and over TLS on one handshake a collector.

    Args:
        plan: what is to be exported.
        host: what is configured.
        spool_directory: that a spool on disk would use, or the one all are below; None: spools in memory only.
        interrupt: gives up early.

    Raises:
        ExportError: the first thing that cannot work. A name that cannot be resolved now is one: nobody could say where the
            records would go.
    """
    if plan.transport == "file":
        from jarvis_agent.export.files import check_export_directory  # noqa: PLC0415 - only where it is used

        check_export_directory(export_directory_of(host))
    if plan.transport == "sctp":
        from jarvis_agent.export.sctp import check_sctp  # noqa: PLC0415

        check_sctp()
    if plan.transport == "tls":
        from jarvis_agent.export.tls import load_tls_context  # noqa: PLC0415

        load_tls_context(tls_files_of(host))
    for collector in plan.collectors:
        _check_collector(plan, collector, host, interrupt)
    if spool_directory is not None:
        from jarvis_agent.export.spool_disk import check_spool_directory  # noqa: PLC0415

        check_spool_directory(spool_directory)


def _check_collector(plan: ExportPlan, collector: Collector, host: Host, interrupt: Interrupt) -> None:
    try:
        resolve(collector.host, collector.port)
        if plan.transport == "tls":
            transport = make_transport(plan, collector, host, interrupt=interrupt)
            try:
                transport.connect()
            finally:
                transport.close()
    except ExportError as error:
        if error.is_permanent or error.reason == "EXPORT_UNRESOLVED":
            raise
