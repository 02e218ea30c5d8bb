# SPDX-License-Identifier: Apache-2.0
"""The packet stores' master key: sealed in a real TPM, opened in approved boot states and in no other."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_agent.errors import TpmError
from jarvis_agent.store_key import StoreKey, StorePolicy
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_trust.ca import generate_key
from jarvis_trust.commands import CommandSigner, generate_command_key
from jarvis_trust.errors import StoreKeyError
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.store_policy import StorePolicySigner
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR

from testbed.swtpm import Swtpm, TpmVendor
from tests.integration.swtpm.conftest import AgentProcess, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController

AGENT = agent_id_from_ek(b"one")
BLANK = bytes(32)
UPDATE = hashlib.sha256(b"new firmware").digest()
UPDATED = hashlib.sha256(BLANK + UPDATE).digest()


@dataclass(slots=True, kw_only=True)
class Host:
    """A store key with the controller that approves it."""

    worker: TpmWorker
    directory: Path
    keys: tuple[bytes, bytes] = field(default_factory=generate_command_key)
    policy_key: bytes = field(default_factory=generate_key)

    def process(self) -> StoreKey:
        """A start of the agent: nothing but the disk and the TPM carries over."""
        policy = StorePolicy(agent_id=AGENT, command_public_pem=self.keys[1], pcrs=(7,), firmware_pcr=14)
        return StoreKey(self.worker, self.directory, policy)

    def approval(self, value: bytes = BLANK) -> StoreApproval:
        return StorePolicySigner(self.policy_key, CommandSigner(self.keys[0])).approve(AGENT, {7: value})


@pytest.fixture
def host(worker: TpmWorker, tmp_path: Path) -> Host:
    return Host(worker=worker, directory=tmp_path / "store")


async def update_firmware(worker: TpmWorker) -> None:
    await worker.run(TpmPriority.QUOTE, lambda device: device.extend_pcr(7, UPDATE))


def state_of(key: StoreKey) -> str:
    return pb.StoreKeyState.Name(key.status()[0]).removeprefix("STORE_KEY_STATE_")


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(StoreKeyError) as refused:
        act()
    return refused.value.reason


async def test_the_first_approval_makes_the_key_and_later_starts_open_it_without_the_controller(host: Host) -> None:
    first = host.process()
    await first.open()
    assert state_of(first) == "ABSENT"
    assert refusal(first.master) == "STORE_KEY_ABSENT"
    await first.take(host.approval())
    assert (state_of(first), first.status()[1]) == ("READY", "")
    assert len(first.master()) == 32

    again = host.process()
    await again.open()
    assert again.master() == first.master()
    for path in host.directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        assert first.master() not in path.read_bytes()
        assert first.master().hex().encode() not in path.read_bytes()


async def test_a_new_boot_state_needs_a_new_approval_which_opens_the_same_key(host: Host) -> None:
    before = host.process()
    await before.take(host.approval())
    await update_firmware(host.worker)

    after = host.process()
    await after.open()
    assert state_of(after) == "SEALED"
    assert refusal(after.master) == "STORE_KEY_SEALED"
    assert "PCRs [7]" in after.status()[1]
    await after.take(host.approval(BLANK))
    assert state_of(after) == "SEALED"
    await after.take(host.approval(UPDATED))
    assert after.master() == before.master()

    offline = host.process()
    await offline.open()
    assert offline.master() == before.master()


async def test_an_approval_for_a_state_yet_to_come_does_not_take_the_open_key_away(host: Host) -> None:
    key = host.process()
    await key.take(host.approval())
    await key.take(host.approval(UPDATED))
    assert state_of(key) == "READY"


async def test_another_policy_key_of_the_same_fleet_opens_nothing_and_overwrites_nothing(host: Host) -> None:
    first = host.process()
    await first.take(host.approval())
    blob = (host.directory / "master.json").read_bytes()
    again = host.process()
    host.policy_key = generate_key()
    await again.take(host.approval())
    assert state_of(again) == "SEALED"
    assert (host.directory / "master.json").read_bytes() == blob


async def test_approvals_that_are_not_ours_change_nothing(host: Host) -> None:
    key = host.process()
    await key.take(StoreApproval())
    stranger = Host(worker=host.worker, directory=host.directory)
    await key.take(stranger.approval())
    assert state_of(key) == "ABSENT"
    assert "STORE_APPROVAL_INVALID" in key.status()[1]
    assert not host.directory.exists()


async def test_another_tpm_does_not_open_what_this_one_sealed(host: Host, vendor: TpmVendor, tmp_path: Path) -> None:
    await host.process().take(host.approval())
    with Swtpm(vendor.copy_of("second", tmp_path / "second")) as other:
        host.worker = TpmWorker.for_tcti(other.tcti)
        stolen = host.process()
        await stolen.open()
        assert state_of(stolen) == "SEALED"
        assert "TPM_COMMAND_FAILED" in stolen.status()[1]
        host.worker.close()


async def test_a_signature_that_only_we_believed_in_is_refused_by_the_tpm_too(host: Host) -> None:
    """The blob names the key: an approval whose signature is over something else opens nothing, whoever checked it before."""
    await host.process().take(host.approval())
    await update_firmware(host.worker)
    forged = host.approval(UPDATED)
    forged.signature = host.approval(BLANK).signature
    blob = host.process()._read_blob()
    assert blob is not None
    with pytest.raises(TpmError) as refused:
        await host.worker.run(TpmPriority.SEAL, lambda device: device.unseal(blob, forged))
    assert refused.value.reason == "TPM_COMMAND_FAILED"


async def test_clearing_the_tpm_makes_the_key_unreadable_and_leaves_the_blob(host: Host, tpm: Swtpm) -> None:
    await host.process().take(host.approval())
    host.worker.close()
    with ESAPI(tpm.tcti) as esapi:
        esapi.clear(ESYS_TR.LOCKOUT)
    host.worker = TpmWorker.for_tcti(tpm.tcti)
    key = host.process()
    await key.open()
    await key.take(host.approval())
    assert state_of(key) == "SEALED"
    assert json.loads((host.directory / "master.json").read_text())
    host.worker.close()


async def test_a_spoiled_blob_is_an_error_by_name_and_is_not_replaced(host: Host) -> None:
    await host.process().take(host.approval())
    path = host.directory / "master.json"
    path.write_text("{}")
    key = host.process()
    await key.open()
    await key.take(host.approval())
    assert state_of(key) == "SEALED"
    assert "STORE_KEY_INVALID" in key.status()[1]
    assert path.read_text() == "{}"


async def test_twenty_power_cuts_do_not_lock_the_key_out(host: Host, tpm: Swtpm) -> None:
    first = host.process()
    await first.take(host.approval())
    for _ in range(20):
        tpm.kill()
        lost = host.process()
        await lost.open()
        assert state_of(lost) == "SEALED"
        assert "TPM_UNAVAILABLE" in lost.status()[1]
        tpm.start()
        again = host.process()
        await again.open()
        assert again.master() == first.master()


async def test_hundreds_of_openings_leave_nothing_behind_and_quotes_go_on_between_them(host: Host) -> None:
    await host.process().take(host.approval())
    for _ in range(70):
        key = host.process()
        await key.open()
        assert state_of(key) == "READY"
        quote = await host.worker.run(TpmPriority.QUOTE, lambda device: device.quote(extra_data=b"x", pcrs=[14]))
        assert len(cast(bytes, quote.signature)) == 72


async def test_a_wiped_key_is_gone(host: Host) -> None:
    key = host.process()
    await key.take(host.approval())
    key.close()
    assert refusal(key.master) == "STORE_KEY_SEALED"


async def test_an_agent_opens_its_store_key_with_the_approval_that_a_lease_brings_and_alone_at_the_next_start(
    running: tuple[AgentProcess, AgentLine], controller: SmallController
) -> None:
    agent, line = running

    async def state(of: AgentLine) -> pb.StoreKeyState.ValueType:
        info = pb.GetAgentInfoResponse.FromString(await of.call("GetAgentInfo", pb.GetAgentInfoRequest()))
        return info.store_key_state

    assert await state(line) == pb.STORE_KEY_STATE_ABSENT
    nonce, evidence = await line.attest()
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    lease = line.make_lease(nonce, evidence, firmware_sha256=info.firmware.sha256)
    values = {value.index: value.digest for value in evidence.pcrs if value.index == 7}
    approval = StorePolicySigner(generate_key(), controller.signer).approve(line.agent_id, values)
    await line.call("RenewLease", pb.RenewLeaseRequest(lease=lease, store_approval=approval))
    async with asyncio.timeout(20):
        while True:
            if await state(line) == pb.STORE_KEY_STATE_READY:
                break
            await asyncio.sleep(0.05)
    assert await agent.stop() == 0
    await agent.start()
    again = line_to(controller, agent)
    assert await state(again) == pb.STORE_KEY_STATE_READY
    await again.close()
