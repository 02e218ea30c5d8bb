# SPDX-License-Identifier: Apache-2.0
"""Measured boot from end to end: a host is recorded, the set signed, and from then on hosts that boot otherwise are out."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.boot import boot_log, play, uefi_boot
from testbed.fleet import FIRMWARE, Agent, Fleet, wait_for
from testbed.policy import PolicyText

PCRS = list(range(9))
RELEASE_KEY = Path(__file__).resolve().parents[2] / "build" / "release-key" / "release.pem"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller that records measured boot, and two hosts of which one has another kernel."""
    if not RELEASE_KEY.exists() or not (FIRMWARE / "manifest.sig").exists():
        pytest.fail("there is no signed firmware with its developer's key: run `make setup`")
    policy = PolicyText(interval_s=1, lease_s=5, boot_pcrs=PCRS)
    with Fleet(directory=tmp_path_factory.mktemp("boot"), policy=policy) as fleet:
        fleet.start()
        for name, kernel in (("golden", b"vmlinuz"), ("other", b"another vmlinuz")):
            agent = fleet.add_agent(name, boot_log=boot_log(uefi_boot(kernel=kernel)))
            fleet.wait_for_state(agent, "verified")
        yield fleet


def test_a_recorded_and_signed_boot_makes_level_2_and_another_boot_is_quarantined(fleet: Fleet) -> None:
    golden, other = fleet.agents["golden"], fleet.agents["other"]
    assert {row["assurance"] for row in fleet.rows("agents", "list")} == {"L1"}
    shown = fleet.rows("boot", "show", golden.agent_id)[0]
    assert shown["secure_boot"] is True
    assert shown["kernel_command_line"] == "/vmlinuz-6.1.0-28-amd64 root=/dev/sda1 ro quiet"
    _differ(fleet, golden, other)

    reference = fleet.directory / "golden.json"
    fleet.jarvisctl("boot", "record", golden.agent_id, "--name", "golden", "--out", str(reference))
    fleet.jarvisctl("boot", "sign", "--key", str(RELEASE_KEY), str(reference))
    demanding = dataclasses.replace(fleet.policy, version=2, references=[str(reference)])
    fleet.jarvisctl("policy", "apply", str(fleet.set_policy(demanding)))

    row = fleet.wait_for_state(other, "quarantined")
    assert "BOOT_REFERENCE_MISMATCH: PCR 4" in row["reason"]
    assert "nearest is golden version 1" in row["reason"]
    assert fleet.wait_for_state(golden, "verified")["assurance"] == "L2"
    assert fleet.rows("boot", "show", golden.agent_id)[0]["reference"] == "golden version 1"
    wait_for("the store key to open", lambda: "store's master key is open" in golden.log.read_text(), log=golden.log)

    _reboot_into(golden, boot_log(uefi_boot(kernel=b"vmlinuz", secure_boot=False)))
    row = fleet.wait_for_state(golden, "quarantined")
    assert "BOOT_REFERENCE_MISMATCH: PCR 7" in row["reason"]
    _ends_in_order(other)


def _ends_in_order(agent: Agent) -> None:
    """A quarantined agent ends when it is told to, and need not be killed."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(60) == 0


def _differ(fleet: Fleet, one: Agent, two: Agent) -> None:
    rows = fleet.rows("boot", "diff", one.agent_id, two.agent_id, check=False)
    assert [row["pcr"] for row in rows] == PCRS
    assert [row["pcr"] for row in rows if not row["equal"]] == [4]


def _reboot_into(agent: Agent, log: bytes) -> None:
    agent.reboot()
    play(agent.tpm.tcti, log)
    (agent.directory / "boot.log").write_bytes(log)
    agent.start()
