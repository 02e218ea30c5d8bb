# SPDX-License-Identifier: Apache-2.0
"""Joining the fleet and staying in it: the client of EnrollmentService.

    params (token, CSR, EK, AK, TLS key) → challenge → TPM2_ActivateCredential, TPM2_Certify → proof → certificate

The first time with the join file's token; renewals, and a certificate that lapsed, by credential activation alone. The
server must be a controller under the join file's CA. Failures are retried with full-jitter backoff while the agent runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from jarvis.capture.v1.enrollment_pb2 import (
    CARRIER_DIRECT,
    CARRIER_TUNNEL,
    EnrollChallenge,
    EnrollParams,
    EnrollProof,
    EnrollRequest,
    EnrollResponse,
    EnrollResult,
)
from jarvis_trust.enrollment import enrollment_proof
from jarvis_trust.errors import EnrollmentError, TrustError
from jarvis_trust.identities import controller_dns_name
from jarvis_trust.joinfile import JoinFile
from jarvis_trust.software_identity import SoftwareSigner
from jarvis_trust.status import reason_of
from jarvis_trust.tls_certification import certification_binding

from jarvis_agent import __version__
from jarvis_agent.software_identity import SoftwareWorker
from jarvis_agent.tls_state import TlsIdentity, TlsState
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import EndorsementIdentity
from jarvis_agent.tunnel_address import TunnelAddress

_LOG = logging.getLogger(__name__)

METHOD = "/jarvis.capture.v1.EnrollmentService/Enroll"
TIMEOUT_S = 60.0
MAX_RETRY_S = 300.0
_CLOCK_CHECK_S = 30.0
"""How often the renewal time is compared with the wall clock, which may be set at any time."""
_CLOCK_CHECK_MIN_S = 0.5
_HURRY_SPREAD_S = 2.0
_SPENT_TOKEN = frozenset({"TOKEN_REUSED", "TOKEN_UNKNOWN", "TOKEN_EXPIRED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmIdentity:
    """What the agent shows of its TPM."""

    endorsement: EndorsementIdentity
    ak_public: bytes
    """TPMT_PUBLIC."""
    ak_name: bytes
    agent_id: str


class Enroller:
    """Gets and renews the agent's certificate. Used on the event loop."""

    def __init__(
        self,
        *,
        join: JoinFile,
        address: str,
        advertise: str,
        tpm: TpmIdentity | SoftwareSigner,
        worker: TpmWorker | SoftwareWorker,
        tls: TlsState,
        tunnel: TunnelAddress,
        first_retry_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is asked yet.

        Args:
            join: the operator's join file.
            address: host:port of the EnrollmentService.
            advertise: host:port where the controller reaches this agent; empty where the agent dials.
            tpm: from `read_tpm_identity`; of an agent without a TPM its identity key.
            worker: for credential activation; not used without a TPM.
            tls: where the certificate goes.
            tunnel: where the tunnel's address goes.
            first_retry_s: ceiling of the first wait after a failure, seconds.
            now: the wall clock, aware.
        """
        self._join = join
        self._address = address
        self._advertise = advertise
        self._tpm = tpm
        self._worker = worker
        self._tls = tls
        self._tunnel = tunnel
        self._first_retry_s = first_retry_s
        self._now = now
        self._hurry = asyncio.Event()

    async def ensure(self) -> TlsIdentity:
        """The certificate in hand if it is valid and the controller knows our carrier; else one asked for until it comes."""
        attempt = 0
        while True:
            current = self._tls.current
            if current is not None and current.is_valid(self._now()) and self._tunnel.is_told:
                return current
            try:
                return await self._enroll_or_return()
            except (TrustError, OSError) as error:
                await self._wait(attempt, error)
                attempt += 1

    async def keep_renewed(self) -> None:
        """Renews at two thirds of each certificate's life, for ever; cancel it to end."""
        attempt = 0
        while True:
            current = self._tls.require()
            now = self._now()
            if now < current.renewal_time and current.is_valid(now) and not self._hurry.is_set():
                # The wall clock may be set at any moment: look at it often instead of sleeping once.
                left_s = (current.renewal_time - now).total_seconds()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), min(_CLOCK_CHECK_S, max(_CLOCK_CHECK_MIN_S, left_s)))
                    # A whole fleet is told at once.
                    await asyncio.sleep(random.uniform(0.0, _HURRY_SPREAD_S))  # noqa: S311 - spreads load, guards nothing
                continue
            try:
                renewed = await self.enroll(token="")
            except (TrustError, OSError) as error:
                await self._wait(attempt, error)
                attempt += 1
            else:
                attempt = 0
                self._hurry.clear()
                await asyncio.sleep(_CLOCK_CHECK_MIN_S)
                _LOG.info("the certificate was renewed, it ends at %s", renewed.not_after.isoformat())

    def trust_is(self, ca_bundle_sha256: bytes) -> None:
        """Told what a lease says that the fleet's CAs are; when they are others, a renewal brings them, and is made at once."""
        if ca_bundle_sha256 and ca_bundle_sha256 != self._tls.trust.sha256:
            _LOG.info("the fleet's CAs are others: renewing the certificate")
            self._hurry.set()

    async def enroll(self, *, token: str) -> TlsIdentity:
        """One enrolment.

        Args:
            token: from the join file; empty for an agent that the controller knows.

        Raises:
            EnrollmentError: the controller's own reason, ENROLLMENT_UNREACHABLE, ENROLLMENT_TIMEOUT, ENROLLMENT_RESULT_INVALID.
            TrustError: the TPM refuses, or the certificate is not acceptable.
        """
        params = EnrollParams(
            token=token,
            csr=await self._tls.key.csr(),
            address=self._advertise,
            carrier=CARRIER_TUNNEL if self._tunnel.is_wanted else CARRIER_DIRECT,
            hostname=socket.gethostname(),
            version=__version__,
            tls_public=self._tls.key.tpm_public,
        )
        if isinstance(self._tpm, SoftwareSigner):
            params.software_public = self._tpm.spki_der
        else:
            params.ek_certificate = self._tpm.endorsement.certificate
            params.ek_chain.extend(self._tpm.endorsement.chain)
            params.ek_public, params.ak_public = self._tpm.endorsement.public, self._tpm.ak_public
        try:
            async with self._channel() as channel:
                result = await asyncio.wait_for(self._converse(channel, params), timeout=TIMEOUT_S)
        except TimeoutError as error:
            raise EnrollmentError(
                "ENROLLMENT_TIMEOUT", f"{self._address} did not finish the enrolment in {TIMEOUT_S:.0f} s"
            ) from error
        if result.agent_id != self._tpm.agent_id:
            raise EnrollmentError(
                "ENROLLMENT_RESULT_INVALID", f"the controller calls us {result.agent_id!r}; our key's id is {self._tpm.agent_id}"
            )
        installed = self._tls.install(result.certificate_pem, result.ca_pem)
        self._tunnel.told(result.tunnel_address)
        return installed

    async def _enroll_or_return(self) -> TlsIdentity:
        """With the token while there never was a certificate; if it is spent, the controller may know us already."""
        if self._tls.current is not None:
            return await self.enroll(token="")
        try:
            return await self.enroll(token=self._join.token)
        except EnrollmentError as error:
            if error.reason not in _SPENT_TOKEN:
                raise
            _LOG.warning("the join token is not accepted (%s): asking as an agent that is known already", error.reason)
            try:
                return await self.enroll(token="")
            except EnrollmentError as second:
                raise EnrollmentError(error.reason, f"{error.message} (and without a token: {second.message})") from second

    def _channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(root_certificates=self._tls.trust.pem)
        options = [
            ("grpc.ssl_target_name_override", controller_dns_name(self._join.fleet)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.aio.secure_channel(self._address, credentials, options=options)

    async def _converse(self, channel: grpc.aio.Channel, params: EnrollParams) -> EnrollResult:
        call = channel.stream_stream(
            METHOD, request_serializer=EnrollRequest.SerializeToString, response_deserializer=EnrollResponse.FromString
        )(None)
        try:
            await call.write(EnrollRequest(params=params))
            challenge = _step(await call.read(), "challenge").challenge
            await call.write(EnrollRequest(proof=await self._prove(params, challenge)))
            await call.done_writing()
            return _step(await call.read(), "result").result
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await _refusal(call, error) from error
        finally:
            call.cancel()

    async def _prove(self, params: EnrollParams, challenge: EnrollChallenge) -> EnrollProof:
        """That we hold the keys of the params: by the TPM that activates the credential, or by the software key's signature."""
        transcript = params.SerializeToString(deterministic=True), challenge.SerializeToString(deterministic=True)
        if isinstance(self._tpm, SoftwareSigner):
            return EnrollProof(software_signature=self._tpm.sign_enrollment(*transcript))
        secret = await self._worker.run(
            TpmPriority.CREDENTIAL,
            lambda device: device.activate_credential(challenge.credential_blob, challenge.encrypted_secret),
        )
        certify, certify_signature = await self._certification(challenge.nonce)
        return EnrollProof(hmac=enrollment_proof(secret, *transcript), certify=certify, certify_signature=certify_signature)

    async def _certification(self, nonce: bytes) -> tuple[bytes, bytes]:
        """That the TPM holds the TLS key, for this challenge; empty of a key in a file."""
        if not self._tls.key.tpm_public:
            return b"", b""
        return await self._tls.key.certify(certification_binding(nonce, self._tpm.agent_id))

    async def _wait(self, attempt: int, error: Exception) -> None:
        """Full jitter: a fleet that lost its controller does not come back in step."""
        ceiling = min(MAX_RETRY_S, self._first_retry_s * 2 ** min(attempt, 16))
        delay = random.uniform(0.0, ceiling)  # noqa: S311 - spreads load, guards nothing
        reason = error.reason if isinstance(error, TrustError) else type(error).__name__
        _LOG.warning("enrolment at %s failed (%s): %s; again in %.1f s", self._address, reason, error, delay)
        await asyncio.sleep(delay)


def _step(response: object, wanted: str) -> EnrollResponse:
    if not isinstance(response, EnrollResponse):
        raise asyncio.InvalidStateError  # the stream ended: its status says why
    if response.WhichOneof("step") != wanted:
        raise EnrollmentError(
            "ENROLLMENT_RESULT_INVALID", f"the controller sent {response.WhichOneof('step')}; {wanted} is accepted at this point"
        )
    return response


async def _refusal(call: grpc.aio.StreamStreamCall[EnrollRequest, EnrollResponse], error: Exception) -> Exception:
    """What the controller said, as an EnrollmentError when it gave a reason."""
    code, details = await call.code(), await call.details()
    try:
        status = await rpc_status.aio.from_call(call)  # type: ignore[attr-defined]  # absent from the stubs
    except (ValueError, DecodeError):
        status = None
    reason = reason_of(status) if status is not None else ""
    if reason:
        return EnrollmentError(reason, details or reason)
    if code == grpc.StatusCode.OK:
        return EnrollmentError("ENROLLMENT_RESULT_INVALID", "the controller ended the enrolment without a result")
    return EnrollmentError("ENROLLMENT_UNREACHABLE", f"{code.name}: {details or error}")
