# SPDX-License-Identifier: Apache-2.0
"""Whether an export's records may leave now: a lease is in force in the core, and it is one whose allow-list has the collectors.

lease accepted ──event loop──► judge(plan, lease) ──permit(sequence)──► ExportGate ◄──is_open()── sender, before each block
"""

from __future__ import annotations

from collections.abc import Callable

from jarvis_native import LeaseTerms
from jarvis_trust.collector_allow_list import AllowList
from jarvis_trust.errors import PolicyError

from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.lease import ActiveLease


class ExportGate:
    """Opened by the event loop for one lease, asked from any thread."""

    def __init__(self, lease: Callable[[], LeaseTerms]) -> None:
        """Closed. `lease`: the newest one as the core has it; from any thread."""
        self._lease = lease
        self._permitted = 0

    def permit(self, sequence: int) -> None:
        """Opens it under the lease with this sequence number, and under no other; 0 closes it."""
        self._permitted = sequence

    def is_open(self) -> bool:
        """Whether something may leave. A lease that the core has taken and nobody has judged yet admits nothing."""
        terms = self._lease()
        return terms.in_force and terms.sequence == self._permitted


def refusal(plan: ExportPlan, lease: ActiveLease) -> str:
    """Why an export may not be under this lease; empty: it may."""
    try:
        allowed = AllowList.parse(lease.export_collectors)
    except PolicyError as error:
        return f"lease {lease.sequence} has no allow-list that this agent can read ({error.message}): nothing may be exported"
    listed = allowed.describe()
    if plan.transport == "file" and not allowed.permits_files:
        return f'files are not in the allow-list of lease {lease.sequence}, which admits {listed}; "file" there admits them'
    for collector in plan.collectors:
        if not allowed.permits(collector.host, collector.port):
            name = f"{collector.host} port {collector.port}"
            return f"{name} is not in the allow-list of lease {lease.sequence}, which admits {listed}"
    return ""
