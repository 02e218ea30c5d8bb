# SPDX-License-Identifier: Apache-2.0
"""The agent's exports put together from configuration and what start-up established."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from jarvis_native import Authority, CaptureError, Firmware
from jarvis_native.routes import Routes

from jarvis_agent.captures import CaptureManager
from jarvis_agent.config import AgentConfig
from jarvis_agent.establish import Trusted
from jarvis_agent.events import EventJournal
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.gate import ExportGate
from jarvis_agent.export.line import ExportLine, LineParts, drop_spools
from jarvis_agent.export.manager import ExportManager
from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.running import CollectorLine
from jarvis_agent.export.store import ExportStore
from jarvis_agent.export.tls import TlsFiles
from jarvis_agent.export.ways import ExportWays
from jarvis_agent.lease import LeaseKeeper


def build_exports(
    trusted: Trusted,
    *,
    firmware: Firmware,
    captures: CaptureManager,
    journal: EventJournal,
    authority: Authority,
    leases: LeaseKeeper,
    start_time_ns: int,
) -> ExportManager:
    """The manager; nothing runs until something is enabled or was before."""
    config = trusted.config
    parts = LineParts(
        firmware=firmware,
        ways=ExportWays(firmware=firmware, tls=_tls_files(config), directory=config.export_directory),
        journal=journal,
        system_init_ns=start_time_ns,
        spool_directory=config.spool_directory or config.state_directory / "spool",
        spool_memory_bytes=config.spool_memory_mb << 20,
        spool_disk_bytes=config.spool_disk_mb << 20,
    )
    return ExportManager(
        firmware=firmware,
        captures=captures,
        store=ExportStore(
            config.state_directory / "exports",
            agent_id=trusted.tpm.agent_id,
            command_public_pem=trusted.join.command_public_pem.encode(),
        ),
        journal=journal,
        lease=authority.lease,
        current_lease=lambda: leases.current,
        make_lines=partial(make_lines, parts, _RouteTable(firmware, config).of),
        drop_spools=partial(drop_spools, parts.spool_directory),
    )


class _RouteTable:
    """The host's routes, read when the first export of profile full is made."""

    def __init__(self, firmware: Firmware, config: AgentConfig) -> None:
        self._firmware = firmware
        self._kernel, self._database = config.export_routes, config.asn_database
        self._lock = threading.Lock()
        self._routes: Routes | None = None

    def of(self, plan: ExportPlan) -> Routes | None:
        """For an export; None: its records say nothing of routes. Raises ExportError."""
        if plan.profile != "full" or not (self._kernel or self._database):
            return None
        with self._lock:
            if self._routes is None:
                try:
                    self._routes = Routes(firmware=self._firmware, kernel=self._kernel, asn_database=self._database)
                except CaptureError as error:
                    raise ExportError("EXPORT_ROUTES", f"routes: {error.message}", is_permanent=True) from error
            return self._routes


def make_lines(
    parts: LineParts, routes_of: Callable[[ExportPlan], Routes | None], plan: ExportPlan, gate: ExportGate, *, is_new: bool
) -> list[CollectorLine]:
    """A line for each collector of a plan, see running.LineFactory; `routes_of` gives what profile full needs."""
    if is_new:
        parts.ways.check(plan)
    routes = routes_of(plan)
    lines: list[CollectorLine] = []
    try:
        for collector in plan.collectors or (None,):
            lines.append(ExportLine(parts, plan, collector, gate, routes))  # noqa: PERF401 - those that were made are ended
    except ExportError:
        for line in lines:
            line.stop(drain_s=0.0, discard=False, keep=True)
        raise
    return lines


def _tls_files(config: AgentConfig) -> TlsFiles | None:
    if config.export_tls_ca is None or config.export_tls_certificate is None or config.export_tls_key is None:
        return None
    return TlsFiles(ca=config.export_tls_ca, certificate=config.export_tls_certificate, key=config.export_tls_key)
