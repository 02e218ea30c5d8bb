# SPDX-License-Identifier: Apache-2.0
"""Attacks on what is stored, each in a fleet of its own: the database edited, the audit log cut, a TPM's state copied.

They stop and start a controller, which the fleet under attack must not notice: this one is beside it.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.fleet import Agent, Fleet, FleetError, wait_for
from testbed.policy import PolicyText
from testbed.swtpm import Swtpm

_POLICY = PolicyText(interval_s=1, lease_s=60)
_REASON = re.compile(r"\b((?!EV_)[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b")


def _in_a_fleet(attack: Callable[[Fleet, Agent], str]) -> Callable[[Arena], str]:
    """A controller and one verified agent, for one attack."""

    def run(arena: Arena) -> str:
        directory = arena.directory / f"stored-{len(list(arena.directory.glob('stored-*')))}"
        with Fleet(directory=directory, name="stored", policy=_POLICY) as fleet:
            fleet.start()
            agent = fleet.add_agent("host")
            fleet.wait_for_state(agent, "verified", seconds=60)
            return attack(fleet, agent)

    return run


def _execute(fleet: Fleet, *statements: str) -> None:
    (path,) = fleet.controller_directory.glob("*.db")
    with sqlite3.connect(path) as database:
        for trigger in [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]:
            database.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            if not database.execute(statement).rowcount:
                raise FleetError(f"{statement}: nothing was changed")


def reasons_in(text: str) -> str:
    """Every reason that a text names."""
    return "+".join(sorted(set(_REASON.findall(text))))


def _edited_audit(fleet: Fleet, _agent: Agent) -> str:
    fleet.stop()
    _execute(fleet, "UPDATE audit SET principal = 'spiffe://stored/operator/admin/scapegoat' WHERE sequence = 2")
    fleet.start()
    done = fleet.run("--output", "json", "audit", "verify")
    return reasons_in(done.stdout + done.stderr) if done.returncode else "OK"


def _removed_entry(fleet: Fleet, _agent: Agent) -> str:
    fleet.stop()
    _execute(fleet, "DELETE FROM audit WHERE sequence = 2")
    fleet.start()
    done = fleet.run("--output", "json", "audit", "verify")
    return reasons_in(done.stdout + done.stderr) if done.returncode else "OK"


def _cut_audit(fleet: Fleet, agent: Agent) -> str:
    """The end of the chain is gone; what is left verifies. The agent remembers a longer one."""
    fleet.stop()
    _execute(fleet, "DELETE FROM audit WHERE sequence > 1")
    fleet.start()

    def told() -> str:
        # The state is over in a second: its own entries make the chain longer again.
        rows = fleet.rows("events", "--agent", agent.agent_id, "--type", "agent_state_changed", "--last", "10", check=False)
        stale = [reasons_in(row["detail"]["reason"]) for row in rows if row["detail"].get("to") == "STALE"]
        # Until the agent has dialled the controller that was started anew.
        return next((reason for reason in stale if reason and reason != "AGENT_NOT_CONNECTED"), "")

    return str(wait_for("the agent to be stale", told, seconds=30, log=agent.log))


def _column(column: str, value: str, state: str = "quarantined") -> Callable[[Fleet, Agent], str]:
    """What the controller holds of an agent, changed under it."""

    def attack(fleet: Fleet, agent: Agent) -> str:
        fleet.stop()
        _execute(fleet, f"UPDATE agents SET {column} = {value}")  # noqa: S608 - values of ours
        fleet.start()
        return reasons_in(fleet.wait_for_state(agent, state, seconds=30)["reason"])

    return attack


def _clone(fleet: Fleet, agent: Agent) -> str:
    """A copy of the TPM's state in another host, which comes up later than the original and with fewer resets."""
    state: Path = agent.tpm.state_directory
    copied = fleet.directory / "clone-tpm"
    agent.stop()
    agent.tpm.stop()
    shutil.copytree(state, copied)
    agent.tpm.start()
    for _ in range(2):  # the original lives on
        agent.reboot()
    before = fleet.rows("agents", "list")[0]["verify_time"]
    agent.start()
    # Verified anew, not still: the controller must have seen the later resets.
    wait_for("the original to be verified", lambda: fleet.rows("agents", "list")[0]["verify_time"] != before, log=agent.log)
    agent.stop()
    clone = Swtpm(copied)
    original, agent.tpm = agent.tpm, clone
    try:
        clone.start()
        config = agent.config.read_text()
        agent.config.write_text(config.replace(original.tcti, clone.tcti))
        for log in (agent.directory / "state").glob("firmware-events-*"):
            log.unlink()
        agent.start()
        return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=30)["reason"])
    finally:
        original.stop()


def _altered_library(fleet: Fleet, agent: Agent) -> str:
    """One byte of the library: it is measured, refused by the agent, and found by the controller."""
    agent.stop()
    library = bytearray(agent.library.read_bytes())
    library[len(library) // 2] ^= 1
    agent.library.write_bytes(bytes(library))
    agent.start()
    return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=30)["reason"])


def _altered_library_lied_about(fleet: Fleet, agent: Agent) -> str:
    """The same by an agent that replaces the digest in its log (testbed/lying_agent)."""
    agent.stop()
    library = bytearray(agent.library.read_bytes())
    library[len(library) // 2] ^= 1
    agent.library.write_bytes(bytes(library))
    agent.start(env={"PYTHONPATH": str(Path(__file__).resolve().parents[1] / "lying_agent")})
    return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=30)["reason"])


def _tpm_reset_under_it(fleet: Fleet, agent: Agent) -> str:
    """TPM Genie: the TPM is reset while the host runs on. The agent measures itself again; the controller sees the reset."""
    agent.tpm.reboot()
    wait_for("the agent to notice", lambda: fleet.rows("agents", "list")[0]["state"] != "verified", seconds=60)
    return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=60)["reason"])


_TABLE: dict[str, tuple[str, str, Callable[[Fleet, Agent], str]]] = {
    "audit-entry-edited": ("AUDIT_ENTRY_ALTERED", "an audit entry's principal changed in the database", _edited_audit),
    "audit-entry-removed": ("AUDIT_SEQUENCE_WRONG", "an audit entry taken out", _removed_entry),
    "audit-cut": ("AUDIT_TRUNCATED", "the end of the audit log cut off: what is left verifies", _cut_audit),
    "ak-exchanged": ("AK_MISMATCH", "CVE-2022-1053: the key changed after its proof", _column("ak_name", "zeroblob(34)")),
    "reset-count-raised": (
        "RESET_COUNT_BACKWARDS", "a later TPM reset in the database", _column("reset_count", "reset_count + 5")
    ),
    "tpm-firmware-changed": (
        "TPM_FIRMWARE_CHANGED", "another TPM firmware in the database",
        _column("tpm_firmware_version", "'1'"),
    ),
    "cloned-tpm": ("RESET_COUNT_BACKWARDS", "a copy of the TPM's state in another host", _clone),
    "altered-library": ("FIRMWARE_UNTRUSTED_MEASUREMENT", "one byte of the native library flipped", _altered_library),
    "altered-library-lied-about": (
        "EVENT_LOG_MISMATCH", "the same, and a digest replaced in the log",
        _altered_library_lied_about,
    ),
    "tpm-reset": ("TPM_RESET_WITHOUT_REBOOT", "the TPM reset while the host runs on (TPM Genie)", _tpm_reset_under_it),
}  # fmt: skip

ATTACKS = tuple(
    Attack(name=f"stored/{name}", tries=tries, expected=expected, run=_in_a_fleet(attack))
    for name, (expected, tries, attack) in _TABLE.items()
)
