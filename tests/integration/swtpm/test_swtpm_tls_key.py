# SPDX-License-Identifier: Apache-2.0
"""A TLS key that never leaves the TPM: requests, handshakes with grpc.aio, and what happens when the TPM is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from jarvis_agent.enroll import Enroller
from jarvis_agent.errors import TpmError
from jarvis_agent.establish import read_tpm_identity
from jarvis_agent.tls_key import SoftwareTlsKey, TlsKey, TpmTlsKey
from jarvis_agent.tls_state import TlsState
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tunnel_address import TunnelAddress
from jarvis_trust.ca import FleetCA, generate_key, load_certificate, public_key_from_csr, public_key_of
from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity, Role
from jarvis_trust.tls_certification import certification_binding, check_certification, check_tls_key
from jarvis_trust.tpm_structures import parse_public
from jarvis_trust.tpm_templates import check_tls_key_template

from testbed.swtpm import Swtpm, TpmVendor
from tests.integration.swtpm.small_controller import SmallController

FLEET = "test.example"
AGENT = Identity(fleet=FLEET, role=Role.AGENT, name="a" * 32)


class Gate:
    """A server that demands a certificate of the fleet and tells who came."""

    def __init__(self, ca: FleetCA) -> None:
        self.ca = ca
        self.address = ""
        self._server = grpc.aio.server()

    async def start(self) -> None:
        async def whoami(_request: bytes, context: Any) -> bytes:
            (pem,) = context.auth_context()["x509_pem_cert"]
            return bytes(pem)

        handler = grpc.unary_unary_rpc_method_handler(whoami)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Gate", {"WhoAmI": handler}),))
        key = generate_key()
        leaf = self.ca.issue(Identity(fleet=FLEET, role=Role.CONTROLLER, name="main"), public_key_of(key), timedelta(hours=1))
        credentials = grpc.ssl_server_credentials(
            [(key, leaf + self.ca.certificate_pem)], root_certificates=self.ca.certificate_pem, require_client_auth=True
        )
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def certificate_for(self, key: TlsKey) -> bytes:
        return self.ca.issue(AGENT, public_key_from_csr(await key.csr()), timedelta(hours=1)) + self.ca.certificate_pem

    async def knock(self, key: TlsKey, certificate: bytes, *, timeout_s: float = 10.0) -> bytes:
        """One connection and one call; the certificate that the server saw."""
        credentials = key.channel_credentials(root_certificates=self.ca.certificate_pem, certificate_chain=certificate)
        options = [("grpc.ssl_target_name_override", f"main.controllers.{FLEET}"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(self.address, credentials, options=options) as channel:
            answer: bytes = await channel.unary_unary("/test.Gate/WhoAmI")(b"", timeout=timeout_s)
            return answer


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    made = Gate(FleetCA.create(FLEET))
    await made.start()
    yield made
    await made.stop()


async def test_a_key_that_never_leaves_the_tpm_shakes_hands_over_grpc_aio(gate: Gate, worker: TpmWorker) -> None:
    key = await TpmTlsKey.load(worker, 0)
    certificate = await gate.certificate_for(key)
    assert certificate.startswith(await gate.knock(key, certificate))


async def test_many_handshakes_at_once_are_all_signed_and_quotes_go_on_between_them(gate: Gate, worker: TpmWorker) -> None:
    key = await TpmTlsKey.load(worker, 0)
    certificate = await gate.certificate_for(key)
    quotes = [worker.run(TpmPriority.QUOTE, lambda device: device.quote(extra_data=b"x", pcrs=[14])) for _ in range(8)]
    answers = await asyncio.gather(*(gate.knock(key, certificate) for _ in range(16)), *quotes)
    assert all(certificate.startswith(seen) for seen in answers[:16])


async def test_the_tls_key_has_the_exact_template_and_its_number_names_it_for_ever(worker: TpmWorker, tpm: Swtpm) -> None:
    first, second = await TpmTlsKey.load(worker, 0), await TpmTlsKey.load(worker, 1)
    check_tls_key_template(parse_public(first.tpm_public))
    assert first.tpm_public != second.tpm_public
    tpm.kill()
    with pytest.raises(TpmError):
        await TpmTlsKey.load(worker, 0)
    tpm.start()
    assert (await TpmTlsKey.load(worker, 0)).tpm_public == first.tpm_public
    assert public_key_from_csr(await second.csr()) == parse_public(second.tpm_public).key


async def test_the_certificate_of_another_key_is_no_use_to_the_tpm(gate: Gate, worker: TpmWorker) -> None:
    stolen = await gate.certificate_for(SoftwareTlsKey(generate_key()))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await gate.knock(await TpmTlsKey.load(worker, 0), stolen)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_without_its_tpm_a_handshake_fails_and_it_succeeds_once_the_tpm_is_back(
    gate: Gate, worker: TpmWorker, tpm: Swtpm
) -> None:
    key = await TpmTlsKey.load(worker, 0)
    certificate = await gate.certificate_for(key)
    tpm.kill()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await gate.knock(key, certificate)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    tpm.start()
    assert certificate.startswith(await gate.knock(key, certificate))


async def test_a_handshake_after_the_tpm_thread_ended_fails_at_once(gate: Gate, tpm: Swtpm) -> None:
    worker = TpmWorker.for_tcti(tpm.tcti)
    key = await TpmTlsKey.load(worker, 0)
    certificate = await gate.certificate_for(key)
    worker.close()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await gate.knock(key, certificate)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_another_tpm_in_the_place_of_ours_is_noticed(worker: TpmWorker, vendor: TpmVendor, tmp_path: Path) -> None:
    with Swtpm(vendor.copy_of("second", tmp_path / "second")) as other:
        elsewhere = TpmWorker.for_tcti(other.tcti)
        ours = await TpmTlsKey.load(worker, 0)
        with pytest.raises(TpmError) as refused:
            await TpmTlsKey(elsewhere, number=0, public=ours.tpm_public).csr()
        elsewhere.close()
    assert refused.value.reason == "TPM_CHANGED"


async def test_an_agent_enrols_with_a_tls_key_that_its_attestation_key_certifies(
    worker: TpmWorker, controller: SmallController, tmp_path: Path
) -> None:
    tpm = await worker.run(TpmPriority.CREDENTIAL, read_tpm_identity)
    join = controller.write_join_file(tmp_path / "join.json")
    key = await TpmTlsKey.load(worker, 0)
    identity = Identity(fleet=FLEET, role=Role.AGENT, name=tpm.agent_id)
    tls = TlsState(tmp_path / "tls", identity=identity, ca_pem=join.ca_pem.encode(), key=key)
    enroller = Enroller(
        join=join,
        address=join.address,
        advertise="127.0.0.1:1",
        tpm=tpm,
        worker=worker,
        tls=tls,
        tunnel=TunnelAddress(tmp_path, is_wanted=False),
        first_retry_s=0.1,
    )
    issued = await enroller.enroll(token=join.token)
    assert load_certificate(issued.certificate_pem).public_key() == parse_public(key.tpm_public).key
    assert [path.name for path in (tmp_path / "tls").iterdir()] == ["agent.crt"]


async def test_what_the_tpm_certifies_is_judged_and_of_this_key_only(worker: TpmWorker) -> None:
    first, second = await TpmTlsKey.load(worker, 0), await TpmTlsKey.load(worker, 1)
    ak = parse_public(await worker.run(TpmPriority.QUOTE, lambda device: device.attestation_public()))
    nonce = bytes(range(32))
    agent_id = (await worker.run(TpmPriority.QUOTE, read_tpm_identity)).agent_id
    certify, signature = await first.certify(certification_binding(nonce, agent_id))
    for key, reason in ((first, ""), (second, "TLS_KEY_NAME_MISMATCH")):
        tls = check_tls_key(key.tpm_public, parse_public(key.tpm_public).key)  # type: ignore[arg-type]
        found = ""
        try:
            check_certification(tls=tls, ak=ak, certify=certify, signature=signature, nonce=nonce, agent_id=agent_id)
        except TrustError as error:
            found = error.reason
        assert found == reason
