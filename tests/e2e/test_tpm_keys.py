# SPDX-License-Identifier: Apache-2.0
"""A host whose keys are kept in its TPM, from end to end: it dials with the TLS key there, and takes another one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from jarvis_trust.ca import spki_sha256

from testbed.boot import boot_log, uefi_boot
from testbed.fleet import Agent, Fleet, wait_for
from testbed.policy import PolicyText


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and a host that dials it, every key at a handle."""
    policy = PolicyText(interval_s=1, lease_s=10, boot_pcrs=[7])
    with Fleet(directory=tmp_path_factory.mktemp("keys"), policy=policy) as made:
        made.start()
        made.add_agent(
            "host",
            boot_log=boot_log(uefi_boot()),
            carrier="tunnel",
            ek_handle="0x81010001",
            ak_handle="0x81010002",
            tls_key_handle="0x81010003",
        )
        yield made


def _tpm(agent: Agent, *arguments: str) -> str:
    done = agent.run("tpm", *arguments)
    assert done.returncode == 0, done
    return done.stdout


def _certificate(agent: Agent) -> bytes:
    return (agent.directory / "state" / "tls" / "agent.crt").read_bytes()


def test_a_host_that_takes_another_tls_key_comes_back_by_its_tpm_alone_with_the_same_store_key(fleet: Fleet) -> None:
    agent = fleet.agents["host"]
    row = fleet.wait_for_state(agent, "verified")
    wait_for("the store key to open", lambda: agent.log.read_text().count("store's master key is open") == 1, log=agent.log)
    agent.stop()
    before = json.loads(_tpm(agent, "show", "--output", "json"))
    assert before["agent_id"] == row["agent_id"]
    _tpm(agent, "rotate-tls-key")
    fleet.wait_for_state(agent, "stale")
    served = _certificate(agent)
    agent.start()
    wait_for("the store key to open", lambda: agent.log.read_text().count("store's master key is open") == 2, log=agent.log)
    assert fleet.wait_for_state(agent, "verified")["agent_id"] == row["agent_id"]
    assert spki_sha256(_certificate(agent)) != spki_sha256(served)
    agent.stop()
    after = json.loads(_tpm(agent, "show", "--output", "json"))
    held = [{entry["field"]: entry["holds"] for entry in shown["handles"]} for shown in (before, after)]
    assert held[0]["ak_handle"] == held[1]["ak_handle"]
    assert held[0]["tls_key_handle"] != held[1]["tls_key_handle"]
    assert (before["tls_key_number"], after["tls_key_number"]) == (0, 1)
