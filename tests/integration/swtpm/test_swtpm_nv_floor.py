# SPDX-License-Identifier: Apache-2.0
"""The rollback floor in a TPM's NV memory: what raises it, and that nothing lowers it again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis_agent.errors import TpmError
from jarvis_agent.nv_floor import ATTRIBUTES, base_policy
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from testbed.swtpm import Swtpm
from tests.integration.swtpm.checks import until
from tests.integration.swtpm.conftest import MakeAgent, line_to
from tests.integration.swtpm.small_controller import SmallController
from tests.support import ReleaseKey, sign_firmware

INDEX = 0x01800100
T = TypeVar("T")


def floor_of(worker: TpmWorker, *, raised_to: int = 0, index: int = INDEX) -> int:
    def operation(device: TpmDevice) -> int:
        with device.nv_floor(index) as floor:
            return floor.raise_to(raised_to)

    return worker.submit(TpmPriority.SEAL, operation).result(30)


def with_esapi(tpm: Swtpm, run: Callable[[ESAPI], T]) -> T:
    with ESAPI(tpm.tcti) as esapi:
        return run(esapi)


def define(esapi: ESAPI, index: int, *, attributes: int = ATTRIBUTES, policy: bytes = b"", size: int = 8) -> object:
    public = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, authPolicy=policy, dataSize=size)
    return esapi.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=public))


def test_a_new_tpm_has_the_floor_zero_and_keeps_what_it_is_raised_to(tpm: Swtpm) -> None:
    worker = TpmWorker.for_tcti(tpm.tcti)
    assert floor_of(worker) == 0
    assert floor_of(worker, raised_to=3) == 3
    assert floor_of(worker, raised_to=2) == 3
    worker.close()
    again = TpmWorker.for_tcti(tpm.tcti)
    assert floor_of(again) == 3
    again.close()


def test_the_floor_survives_a_power_cut(tpm: Swtpm) -> None:
    worker = TpmWorker.for_tcti(tpm.tcti)
    assert floor_of(worker, raised_to=5) == 5
    worker.close()
    tpm.kill()
    tpm.start()
    worker = TpmWorker.for_tcti(tpm.tcti)
    assert floor_of(worker) == 5
    worker.close()


def test_counters_that_the_tpm_had_before_do_not_count_as_a_floor(tpm: Swtpm) -> None:
    """A TPM's counter begins above every counter that it ever had."""

    def earlier(esapi: ESAPI) -> None:
        handle = define(esapi, 0x01800200)
        for _ in range(40):
            esapi.nv_increment(handle)
        esapi.nv_undefine_space(handle)

    with_esapi(tpm, earlier)
    worker = TpmWorker.for_tcti(tpm.tcti)
    assert floor_of(worker) == 0
    assert floor_of(worker, raised_to=2) == 2
    worker.close()


@pytest.mark.parametrize("written", [False, True])
def test_what_an_interrupted_start_left_is_made_anew(tpm: Swtpm, *, written: bool) -> None:
    def left(esapi: ESAPI) -> None:
        handle = define(esapi, INDEX, policy=b"" if written else base_policy(7))
        if written:
            esapi.nv_increment(handle)

    with_esapi(tpm, left)
    worker = TpmWorker.for_tcti(tpm.tcti)
    assert floor_of(worker) == 0
    assert floor_of(worker, raised_to=1) == 1
    worker.close()


def test_somebody_elses_index_is_left_alone_and_named(tpm: Swtpm) -> None:
    ordinary = ATTRIBUTES & ~0xF0
    with_esapi(tpm, lambda esapi: define(esapi, INDEX, attributes=ordinary, size=16))
    worker = TpmWorker.for_tcti(tpm.tcti)
    with pytest.raises(TpmError, match="floor_nv_index") as refused:
        floor_of(worker)
    assert refused.value.reason == "NV_FLOOR_UNUSABLE"
    assert floor_of(worker, index=INDEX + 1) == 0
    worker.close()


def test_a_deleted_and_remade_counter_begins_above_the_old_one_with_another_base(tpm: Swtpm) -> None:
    """The owner can delete it; that it was made anew shows, for the base is part of its Name."""

    def base(device: TpmDevice) -> int:
        with device.nv_floor(INDEX) as floor:
            floor.raise_to(4)
            return floor.base

    worker = TpmWorker.for_tcti(tpm.tcti)
    before = worker.submit(TpmPriority.SEAL, base).result(30)
    worker.close()
    with_esapi(tpm, lambda esapi: esapi.nv_undefine_space(esapi.tr_from_tpmpublic(INDEX)))
    worker = TpmWorker.for_tcti(tpm.tcti)
    assert worker.submit(TpmPriority.SEAL, base).result(30) > before + 4
    worker.close()


async def status_of(controller: SmallController, agent: object) -> pb.FirmwareStatus:
    line = line_to(controller, agent)  # type: ignore[arg-type]
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    await line.close()
    return info.firmware


async def test_an_attested_release_raises_the_floor_and_an_older_signed_one_is_refused_for_good(
    make_agent: MakeAgent, controller: SmallController, tpm: Swtpm, release_key: ReleaseKey
) -> None:
    agent = make_agent()
    firmware: Path = agent.directory / "firmware"
    sign_firmware(firmware, release_key, security_version=6, minimum_security_version=4)
    await agent.start()
    line = line_to(controller, agent)
    assert "rollback floor rose" not in agent.log  # it ran, and was not attested yet
    await line.take_lease()
    await until("the floor rises", lambda: "rollback floor rose from 0 to 4" in agent.log)
    await line.close()
    agent.kill()

    sign_firmware(firmware, release_key, security_version=4)
    await agent.start()
    assert (await status_of(controller, agent)).loaded  # at the floor
    agent.kill()

    sign_firmware(firmware, release_key, security_version=3)
    for wiped in (False, True):
        if wiped:
            shutil.rmtree(agent.state_directory)
            (agent.directory / "join.json").unlink()
            controller.write_join_file(agent.directory / "join.json")
        await agent.start()
        refused = await status_of(controller, agent)
        assert (refused.loaded, refused.reason) == (False, "FIRMWARE_BELOW_FLOOR")
        assert "below the floor 4 of the TPM's NV index 0x01800100" in refused.message
        agent.kill()
    tpm.kill()
    tpm.start()
    await agent.start()
    assert (await status_of(controller, agent)).reason == "FIRMWARE_BELOW_FLOOR"
