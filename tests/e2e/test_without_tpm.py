# SPDX-License-Identifier: Apache-2.0
"""An agent without a TPM from end to end: refused until the policy names it, level L0 under leases, out when it is not named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from testbed import replay
from testbed.fleet import Fleet, wait_for
from testbed.policy import PolicyText


def test_an_agent_without_a_tpm_works_at_level_0_as_long_as_the_policy_names_it(tmp_path: Path) -> None:
    with Fleet(directory=tmp_path / "fleet", policy=PolicyText(interval_s=1, lease_s=30)) as fleet:
        fleet.start()
        agent = fleet.add_agent("host", without_tpm=True, enroll_retry_s=0.5)
        wait_for("the refusal", lambda: "AGENT_WITHOUT_TPM" in agent.log.read_text(), log=agent.log)
        assert fleet.rows("agents", "list", check=False) == []
        agent_id = re.findall(r"this agent is ([a-z2-7]{32})", agent.log.read_text())[-1]

        _name(fleet, [agent_id])
        row = fleet.wait_for_state(agent, "verified")
        assert (row["agent_id"], row["assurance"], row.get("has_tpm", False)) == (agent_id, "L0", False)
        replay.write_http_capture(agent.replay_directory / "some.pcap", servers=("10.77.0.2",), port=8080, count=5)
        fleet.jarvisctl("capture", "start", "--agent", agent_id, "--file", "some.pcap")
        wait_for("its flows", lambda: fleet.rows("flows", "--agent", agent_id, "--last", "10", check=False), log=agent.log)

        _restart_keeps_the_identity(fleet, agent_id)
        _name(fleet, [])
        row = fleet.wait_for_state(agent, "quarantined")
        assert "AGENT_WITHOUT_TPM" in row["reason"]
        assert row["assurance"] == "L0"


def _name(fleet: Fleet, agent_ids: list[str]) -> None:
    policy = dataclasses.replace(fleet.policy, version=fleet.policy.version + 1, without_tpm={"agents": agent_ids})
    fleet.jarvisctl("policy", "apply", str(fleet.set_policy(policy)))


def _restart_keeps_the_identity(fleet: Fleet, agent_id: str) -> None:
    agent = fleet.agents["host"]
    agent.stop()
    agent.start()
    assert fleet.wait_for_state(agent, "verified")["agent_id"] == agent_id
    assert (agent.directory / "state" / "identity.key").stat().st_mode & 0o777 == 0o600
