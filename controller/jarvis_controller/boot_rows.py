# SPDX-License-Identifier: Apache-2.0
"""The rows of measured boot: one report an agent, each log once. Functions over a session, run on the store's thread."""

from __future__ import annotations

import hashlib

from jarvis.capture.v1 import fleet_pb2, trust_pb2
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jarvis_controller.models import AgentRow, BootLogRow, BootReportRow
from jarvis_controller.records import BootEvidence


def remember(session: Session, agent: AgentRow, boot: BootEvidence, now_ns: int) -> None:
    """Keeps an agent's report in place of its last one; a log that no agent shows any more is forgotten."""
    digest = hashlib.sha256(boot.log).digest()
    if session.get(BootLogRow, digest) is None:
        session.add(BootLogRow(sha256=digest, log=boot.log))
        session.flush()
    report = _message(agent.agent_id, boot, now_ns).SerializeToString()
    session.merge(BootReportRow(agent_id=agent.agent_id, time_ns=now_ns, log_sha256=digest, report=report))
    session.flush()
    session.execute(delete(BootLogRow).where(BootLogRow.sha256.not_in(select(BootReportRow.log_sha256))))


def report(session: Session, agent_id: str) -> fleet_pb2.GetBootReportResponse | None:
    """An agent's last report with its log."""
    row = session.get(BootReportRow, agent_id)
    log = None if row is None else session.get(BootLogRow, row.log_sha256)
    if row is None or log is None:
        return None
    answer = fleet_pb2.GetBootReportResponse.FromString(row.report)
    answer.boot_log = log.log
    return answer


def _message(agent_id: str, boot: BootEvidence, now_ns: int) -> fleet_pb2.GetBootReportResponse:
    answer = fleet_pb2.GetBootReportResponse(
        agent_id=agent_id,
        pcrs=[trust_pb2.PcrValue(index=pcr, digest=value) for pcr, value in sorted(boot.pcrs.items())],
        reference=boot.reference,
        secure_boot=boot.secure_boot,
        key_digests=boot.key_digests,
        kernel_command_line=boot.kernel_command_line,
    )
    answer.time.FromNanoseconds(now_ns)
    return answer
