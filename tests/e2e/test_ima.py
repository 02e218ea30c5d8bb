# SPDX-License-Identifier: Apache-2.0
"""Level L3 from end to end: a host whose kernel measured the release's files, and what follows when it measures another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from testbed import ima
from testbed.attack.ima import demanding, genuine
from testbed.boot import boot_log, uefi_boot
from testbed.fleet import FIRMWARE, Fleet, wait_for
from testbed.ima import Measured, ima_log
from testbed.policy import PolicyText

PCRS = list(range(10))
RELEASE_KEY = Path(__file__).resolve().parents[2] / "build" / "release-key" / "release.pem"


def test_a_host_reaches_level_3_and_loses_all_trust_when_a_tampered_file_is_opened(tmp_path: Path) -> None:
    if not RELEASE_KEY.exists() or not (FIRMWARE / "manifest.sig").exists():
        pytest.fail("there is no signed firmware with its developer's key: run `make setup`")
    with Fleet(directory=tmp_path / "ima", policy=PolicyText(interval_s=1, lease_s=60, boot_pcrs=PCRS)) as fleet:
        fleet.start()
        log = ima_log(genuine())
        agent = fleet.add_agent("host", boot_log=boot_log(uefi_boot()), ima_log=log)
        assert fleet.wait_for_state(agent, "verified")["assurance"] == "L1"
        reference = fleet.directory / "golden.json"
        fleet.jarvisctl("boot", "record", agent.agent_id, "--name", "golden", "--out", str(reference))
        fleet.jarvisctl("boot", "sign", "--key", str(RELEASE_KEY), str(reference))
        policy = dataclasses.replace(demanding(reference, fleet.directory / "agent.sha256"), version=2)
        fleet.jarvisctl("policy", "apply", str(fleet.set_policy(policy)))
        wait_for("level 3", lambda: fleet.wait_for_state(agent, "verified")["assurance"] == "L3", log=fleet.log)
        # Opened by anybody, listed first and extended then, as the kernel does it.
        more = ima_log([Measured(path="/usr/bin/ls", contents=b"ls")])
        (agent.directory / "ima.log").write_bytes(log + more)
        ima.play(agent.tpm.tcti, more)
        assert fleet.rows("attest", "--agent", agent.agent_id)
        assert fleet.wait_for_state(agent, "verified")["assurance"] == "L3"
        tampered = ima_log([Measured(path="/tmp/libjarvis_capture.so", contents=b"altered")])
        (agent.directory / "ima.log").write_bytes(log + more + tampered)
        ima.play(agent.tpm.tcti, tampered)
        row = fleet.wait_for_state(agent, "quarantined")
        assert "IMA_FILE_UNTRUSTED" in row["reason"]
        assert "/tmp/libjarvis_capture.so" in row["reason"]
        assert fleet.run("audit", "replay", "--all").returncode == 0
