# SPDX-License-Identifier: Apache-2.0
"""Keys at persistent handles: put there once, used from then on, and never over anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jarvis_agent.errors import TpmError
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.tpm_handles import KeyHandles
from jarvis_agent.tpm_keys import AK_TEMPLATE
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR

from testbed.swtpm import Swtpm
from tests.integration.swtpm.checks import check_evidence
from tests.integration.swtpm.conftest import MakeAgent, line_to
from tests.integration.swtpm.small_controller import SmallController

VENDORS_EK = 0x81010001
"""swtpm_setup keeps the EK there, as vendors do."""
EK, AK, TLS_KEY = 0x81010011, 0x81010002, 0x81010003


@pytest.fixture
def handles(tmp_path: Path) -> KeyHandles:
    return KeyHandles(ek=EK, ak=AK, tls_key=TLS_KEY, names=tmp_path / "state" / "tpm-handles.json")


def refusal(act: Callable[[], object]) -> TpmError:
    with pytest.raises(TpmError) as refused:
        act()
    return refused.value


def publics(device: TpmDevice, number: int = 0) -> tuple[bytes, ...]:
    return device.endorsement_identity().public, device.attestation_public(), device.tls_public(number)


def test_keys_at_handles_are_the_ones_that_are_made_without(tpm: Swtpm, handles: KeyHandles) -> None:
    with TpmDevice(tpm.tcti) as device:
        transient = publics(device)
        assert [device.kept.look(handle) for handle in (EK, AK, TLS_KEY)] == [None, None, None]
    for _ in range(2):
        with TpmDevice(tpm.tcti, handles) as device:
            assert publics(device) == transient
            assert len(device.quote(extra_data=b"x", pcrs=[14]).signature) == 72
            assert device.sign_tls(0, bytes(32))
            assert device.certify_tls(0, b"x")
            kept = [device.kept.look(handle) for handle in (EK, AK, TLS_KEY)]
            assert [found[1] for found in kept if found is not None] == list(transient)
        tpm.reboot()


def test_an_ek_that_the_vendor_keeps_is_used_and_is_not_ours_to_remove(tpm: Swtpm, handles: KeyHandles) -> None:
    with TpmDevice(tpm.tcti) as device:
        made = device.endorsement_identity()
    with TpmDevice(tpm.tcti, KeyHandles(ek=VENDORS_EK, names=handles.names)) as device:
        assert device.endorsement_identity() == made
        assert refusal(lambda: device.kept.remove_ours(VENDORS_EK)).reason == "TPM_HANDLE_TAKEN"
        assert device.endorsement_identity() == made


def test_what_is_at_a_handle_is_used_and_not_made_again(tpm: Swtpm, handles: KeyHandles) -> None:
    with TpmDevice(tpm.tcti, handles) as device:
        publics(device)

    def make() -> tuple[ESYS_TR, bytes]:
        raise AssertionError("made again")

    with TpmDevice(tpm.tcti, handles) as device:
        device.kept.keep(AK, field="ak_handle", key="attestation key", make=make)
        assert handles.names is not None
        handles.names.unlink()
        with pytest.raises(AssertionError, match="made again"):  # who does not remember it has to compare
            device.kept.keep(AK, field="ak_handle", key="attestation key", make=make)
        assert device.attestation_public()


def test_a_handle_that_holds_another_key_is_refused_by_name_and_left_alone(tpm: Swtpm, handles: KeyHandles) -> None:
    with ESAPI(tpm.tcti) as esapi:
        foreign, *_ = esapi.create_primary(None, AK_TEMPLATE, ESYS_TR.OWNER)  # the template alone makes it none of ours
        esapi.evict_control(ESYS_TR.OWNER, foreign, AK)
        esapi.flush_context(foreign)
    with TpmDevice(tpm.tcti, handles) as device:
        before = device.kept.look(AK)
        error = refusal(device.attestation_public)
        assert error.reason == "TPM_HANDLE_TAKEN"
        for part in ("ak_handle = 0x81010002", "an ECC key", "Name 000b", "attestation key"):
            assert part in error.message
        assert refusal(lambda: device.kept.remove_ours(AK)).reason == "TPM_HANDLE_TAKEN"
        after = device.kept.look(AK)
        assert before is not None
        assert after is not None
        assert before[1] == after[1]
        assert device.tls_public(0)  # no slot was lost over it


def test_the_next_tls_key_takes_the_handle_of_the_one_before_and_of_no_other_key(tpm: Swtpm, handles: KeyHandles) -> None:
    with TpmDevice(tpm.tcti, handles) as device:
        first = device.tls_public(0)
    with TpmDevice(tpm.tcti, handles) as device:
        second = device.tls_public(1)
        assert first != second
        found = device.kept.look(TLS_KEY)
        assert found is not None
        assert found[1] == second
    wrong = KeyHandles(ak=TLS_KEY, names=handles.names)
    with TpmDevice(tpm.tcti, wrong) as device:
        assert refusal(device.attestation_public).reason == "TPM_HANDLE_TAKEN"


def test_a_tpm_that_keeps_nothing_there_says_so(tpm: Swtpm, handles: KeyHandles) -> None:
    with ESAPI(tpm.tcti) as esapi:
        esapi.hierarchy_change_auth(ESYS_TR.OWNER, b"secret")
    with TpmDevice(tpm.tcti, handles) as device:
        error = refusal(device.attestation_public)
        assert error.reason == "TPM_HANDLE_REFUSED"
        assert "ak_handle = 0x81010002" in error.message


async def test_an_agent_with_handles_is_the_same_agent_and_its_commands_show_and_clear_them(
    make_agent: MakeAgent, controller: SmallController, tpm: Swtpm
) -> None:
    settings = {"ek_handle": f"{EK:#x}", "ak_handle": f"{AK:#x}", "tls_key_handle": f"{TLS_KEY:#x}"}
    agent = make_agent(**settings)
    await agent.start()
    line = line_to(controller, agent)
    nonce, evidence = await line.attest()
    check_evidence(nonce, evidence, controller.enrollments.agents[line.agent_id], controller)
    await line.close()
    await agent.stop()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jarvis_agent", "tpm", *arguments, "--config", str(agent.directory / "agent.toml")]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    shown = json.loads(run("show", "--output", "json").stdout)
    assert shown["agent_id"] == line.agent_id
    rows = {row["field"]: row for row in shown["handles"]}
    assert rows["ak_handle"]["handle"] == "0x81010002"
    assert rows["ak_handle"]["holds"].startswith("an ECC key")
    assert "ak_handle        0x81010002   an ECC key" in run("show").stdout
    assert run("rotate-tls-key").stdout == "TLS key 1 from the agent's next start on\n"
    cleared = run("clear-handles")
    assert (cleared.returncode, cleared.stdout.count("emptied")) == (0, 2), cleared  # carrier direct: no TLS key
    assert run("clear-handles").stdout.count("is empty") == 3
    with TpmDevice(tpm.tcti) as device:
        assert device.kept.look(AK) is None


@pytest.mark.parametrize("command", ["show", "clear-handles", "rotate-tls-key"])
def test_without_a_tpm_the_commands_say_so(command: str, make_agent: MakeAgent) -> None:
    agent = make_agent(tcti="none")
    config = str(agent.directory / "agent.toml")
    done = subprocess.run(
        [sys.executable, "-m", "jarvis_agent", "tpm", command, "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "tcti: 'none': this agent runs without a TPM" in done.stderr
