# SPDX-License-Identifier: Apache-2.0
"""EnrollmentService: a host proves its TPM and gets a certificate that names it by its endorsement key.

    params    -> token (unknown hosts), CSR, EK certificate chain, EK and AK templates, agent id from the EK
    challenge <- MakeCredential(EK, AK's Name, secret): only the TPM that holds both keys learns the secret
    proof     -> HMAC with the secret over both messages; the AK's certification of a TLS key in the TPM; one attempt, 60 s
    result    <- certificate

Open to everybody, so everything is bounded: message sizes (by the server), time, and calls under way. Refusals are audited, but
no faster than once a second: a stranger must not be able to fill the disk.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import code_pb2
from jarvis.capture.v1 import enrollment_pb2
from jarvis_trust.ca import certificate_not_after, public_key_from_csr, spki_sha256, spki_sha256_of_key
from jarvis_trust.credential import make_credential
from jarvis_trust.ek_certificate import verify_ek_certificate
from jarvis_trust.enrollment import check_enrollment_proof, new_secret
from jarvis_trust.errors import EnrollmentError, TrustError
from jarvis_trust.identities import Identity, Role, agent_id_from_ek
from jarvis_trust.joinfile import check_address
from jarvis_trust.software_identity import (
    agent_id_from_software,
    check_software_enrollment,
    parse_software_public,
    software_name,
)
from jarvis_trust.tls_certification import NONCE_BYTES, check_certification, check_tls_key
from jarvis_trust.tpm_structures import TpmPublic, parse_public
from jarvis_trust.tpm_templates import check_ak_template, check_ek_template

from jarvis_controller import certificate_rows
from jarvis_controller.agent_record import AgentRecord, Carrier
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.issuer import Issuer
from jarvis_controller.policy import Vendors
from jarvis_controller.records import EnrolledAgent
from jarvis_controller.rpc_status import bad_field, refuse, refuse_trust
from jarvis_controller.states import State
from jarvis_controller.store import Store

_log = structlog.get_logger()

_STEP_TIMEOUT_S = 60.0
_MAX_UNDER_WAY = 64
_MAX_CHAIN = 8
_TEXT = re.compile(r"[!-~](?:[ -~]{0,251}[!-~])?")
_NEEDS_TOKEN = {State.QUARANTINED, State.RETIRED}
_CARRIERS: Mapping[int, Carrier] = {
    enrollment_pb2.CARRIER_UNSPECIFIED: Carrier.DIRECT,
    enrollment_pb2.CARRIER_DIRECT: Carrier.DIRECT,
    enrollment_pb2.CARRIER_TUNNEL: Carrier.TUNNEL,
}
_CODES = {
    "TOKEN_UNKNOWN": code_pb2.PERMISSION_DENIED,
    "TOKEN_EXPIRED": code_pb2.PERMISSION_DENIED,
    "TOKEN_REUSED": code_pb2.PERMISSION_DENIED,
    "TOKEN_REQUIRED": code_pb2.PERMISSION_DENIED,
    "AK_CHANGED": code_pb2.PERMISSION_DENIED,
    "KEY_REVOKED": code_pb2.PERMISSION_DENIED,
    "ENROLLMENT_PROOF_INVALID": code_pb2.PERMISSION_DENIED,
    "EK_NOT_ALLOWED": code_pb2.PERMISSION_DENIED,
    "EK_VENDOR_NOT_ACCEPTED": code_pb2.PERMISSION_DENIED,
    "EK_MODEL_NOT_ACCEPTED": code_pb2.PERMISSION_DENIED,
    "TLS_KEY_NOT_CERTIFIED": code_pb2.PERMISSION_DENIED,
    "TLS_KEY_SIGNATURE_INVALID": code_pb2.PERMISSION_DENIED,
    "TLS_KEY_SIGNER_MISMATCH": code_pb2.PERMISSION_DENIED,
    "TLS_KEY_NONCE_MISMATCH": code_pb2.PERMISSION_DENIED,
    "TLS_KEY_NAME_MISMATCH": code_pb2.PERMISSION_DENIED,
    "AGENT_WITHOUT_TPM": code_pb2.PERMISSION_DENIED,
    "TPM_REQUIRED": code_pb2.PERMISSION_DENIED,
}
"""Any other reason is INVALID_ARGUMENT: the message itself is at fault."""


_IdentityFacts = tuple[str, bytes, bytes, tuple[TpmPublic, TpmPublic] | None]
"""Agent id; the key that it is proved by, and its Name; EK and AK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A host whose params hold; nothing is proved yet."""

    params: enrollment_pb2.EnrollParams
    agent_id: str
    ak_public: bytes
    ak_name: bytes
    keys: tuple[TpmPublic, TpmPublic] | None
    """EK and AK; None of an agent without a TPM, whose identity key is `ak_public`."""
    tls_key: ec.EllipticCurvePublicKey
    """The CSR's."""
    tls: TpmPublic | None
    """The same key as the TPM shows it; None: the TPM does not hold it."""
    token: str | None
    """None when the agent is known and in good standing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentPolicy:
    """What enrolment demands and gives."""

    fleet: str
    vendors: Callable[[], Vendors]
    """Which TPMs the policy in force accepts."""
    certificate_lifetime: timedelta
    tunnel_address: str
    """host:port, for agents that dial."""
    without_tpm: Callable[[str, Mapping[str, str]], bool]
    """Whether the policy in force admits an agent (id, labels) without a TPM."""


class EnrollmentService:
    """The one handler of the enrolment port. One instance per controller."""

    def __init__(
        self, *, policy: EnrollmentPolicy, issuer: Issuer, store: Store, on_enrolled: Callable[[AgentRecord], None]
    ) -> None:
        """Args: on_enrolled: called on the event loop after an agent got a certificate."""
        self._policy = policy
        self._issuer = issuer
        self._store = store
        self._on_enrolled = on_enrolled
        self._under_way = 0
        self._refusals_unsaid = 0
        self._refusal_said_s = float("-inf")

    async def enroll(
        self, requests: AsyncIterator[enrollment_pb2.EnrollRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[enrollment_pb2.EnrollResponse, None]:
        """Enroll."""
        if self._under_way >= _MAX_UNDER_WAY:
            raise refuse(
                code_pb2.RESOURCE_EXHAUSTED, "ENROLLMENT_BUSY", f"{_MAX_UNDER_WAY} enrolments are under way; try again later"
            )
        self._under_way += 1
        try:
            candidate = await self._candidate(await _step(requests, "params"))
            challenge, secret = _challenge(candidate)
            yield enrollment_pb2.EnrollResponse(challenge=challenge)
            proof = (await _step(requests, "proof")).proof
            transcript = (candidate.params.SerializeToString(deterministic=True), challenge.SerializeToString(deterministic=True))
            if candidate.keys is None:
                check_software_enrollment(candidate.ak_public, *transcript, proof.software_signature)
            else:
                check_enrollment_proof(secret, *transcript, proof.hmac)
                _check_tls_key(candidate, challenge.nonce, proof)
            record, certificate = await self._accept(candidate)
        except TrustError as error:
            await self._audit_refusal(context, error)
            raise refuse_trust(_CODES.get(error.reason, code_pb2.INVALID_ARGUMENT), error) from error
        finally:
            self._under_way -= 1
        yield enrollment_pb2.EnrollResponse(result=self._result(record, certificate))

    async def _candidate(self, request: enrollment_pb2.EnrollRequest) -> _Candidate:
        params = request.params
        _check_texts(params)
        agent_id, ak_public, ak_name, keys = (
            self._software_identity(params) if params.software_public else self._tpm_identity(params)
        )
        subject = Identity(fleet=self._policy.fleet, role=Role.AGENT, name=agent_id).uri
        known = await self._store.agent(agent_id)
        token: str | None = params.token
        labels: Mapping[str, str] = {} if known is None else known.labels
        retired = known is not None and known.state is State.RETIRED
        if known is not None and known.ak_name != ak_name and not retired:
            raise EnrollmentError("AK_CHANGED", f"ak_public is not the attestation key that agent {agent_id} enrolled with")
        revoked = await self._store.must_be_admitted(subject)
        if known is not None and known.state not in _NEEDS_TOKEN and not revoked:
            token = None  # its TPM alone brings it back
        elif not params.token:
            standing = "is not enrolled" if known is None else "has a revoked certificate" if revoked else f"is {known.state}"
            raise EnrollmentError("TOKEN_REQUIRED", f"token is empty: agent {agent_id} {standing} and needs a join token")
        if token is not None:
            of_token = await self._store.check_token(token, without_tpm=keys is None)
            labels = of_token if known is None or retired else known.labels
        if keys is None:
            self._check_without_tpm(agent_id, labels)
        tls_key = public_key_from_csr(params.csr)
        tls = await self._tls_key(params, tls_key, subject, has_tpm=keys is not None)
        return _Candidate(
            params=params,
            agent_id=agent_id,
            ak_public=ak_public,
            ak_name=ak_name,
            keys=keys,
            tls_key=tls_key,
            tls=tls,
            token=token,
        )

    async def _tls_key(
        self, params: enrollment_pb2.EnrollParams, tls_key: ec.EllipticCurvePublicKey, subject: str, *, has_tpm: bool
    ) -> TpmPublic | None:
        """The TLS key as the TPM shows it; None of one in a file."""
        if params.carrier == enrollment_pb2.CARRIER_TUNNEL and not params.tls_public and has_tpm:
            message = "tls_public is empty: an agent with the tunnel carrier keeps its TLS key in its TPM"
            raise EnrollmentError("TLS_KEY_REQUIRED", message)
        tls = check_tls_key(params.tls_public, tls_key) if params.tls_public else None
        # A key that the TPM holds cannot have been copied: it is certified again with the token alone.
        if tls is None and await self._store.is_revoked_key(subject, spki_sha256_of_key(tls_key)):
            raise EnrollmentError(
                "KEY_REVOKED", f"csr holds a key of {subject} whose certificate was revoked: a new key is accepted"
            )
        return tls

    def _tpm_identity(self, params: enrollment_pb2.EnrollParams) -> _IdentityFacts:
        ek, ak = parse_public(params.ek_public), parse_public(params.ak_public)
        check_ek_template(ek)
        check_ak_template(ak)
        vendors = self._policy.vendors()
        vendors.check(
            verify_ek_certificate(params.ek_certificate, tuple(params.ek_chain), vendors.roots, ek, datetime.now(UTC)),
            ek.spki_der,
        )
        return agent_id_from_ek(ek.spki_der), params.ak_public, ak.name, (ek, ak)

    def _software_identity(self, params: enrollment_pb2.EnrollParams) -> _IdentityFacts:
        parse_software_public(params.software_public)
        for field in ("ek_certificate", "ek_chain", "ek_public", "ak_public", "tls_public"):
            if len(getattr(params, field)):
                raise EnrollmentError("SOFTWARE_IDENTITY_INVALID", f"{field}: with software_public an empty one is accepted")
        agent_id = agent_id_from_software(params.software_public)
        return agent_id, params.software_public, software_name(params.software_public), None

    def _check_without_tpm(self, agent_id: str, labels: Mapping[str, str]) -> None:
        """The policy's word, at each enrolment and renewal."""
        if not self._policy.without_tpm(agent_id, labels):
            message = f"agent {agent_id} has no TPM, and the policy does not admit it without one"
            raise EnrollmentError("AGENT_WITHOUT_TPM", message)

    async def _accept(self, candidate: _Candidate) -> tuple[AgentRecord, bytes]:
        identity = Identity(fleet=self._policy.fleet, role=Role.AGENT, name=candidate.agent_id)
        certificate = self._issuer.issue(
            identity, candidate.tls_key, self._policy.certificate_lifetime, by=certificate_rows.ENROLLMENT
        )
        await self._issuer.record(self._store)
        params = candidate.params
        record = await self._store.enroll(
            EnrolledAgent(
                agent_id=candidate.agent_id,
                ek_certificate=params.ek_certificate,
                ek_public=params.ek_public,
                ak_public=candidate.ak_public,
                ak_name=candidate.ak_name,
                tls_spki=spki_sha256(certificate),
                certificate_expire_ns=int(certificate_not_after(certificate).timestamp()) * 10**9,
                address=params.address,
                carrier=_CARRIERS[params.carrier],
                hostname=params.hostname,
                version=params.version,
            ),
            candidate.token,
        )
        _log.info(
            "certificate issued",
            agent_id=record.agent_id,
            hostname=record.hostname,
            address=record.address,
            state=str(record.state),
        )
        self._on_enrolled(record)
        return record, certificate

    def _result(self, record: AgentRecord, certificate: bytes) -> enrollment_pb2.EnrollResult:
        result = enrollment_pb2.EnrollResult(
            agent_id=record.agent_id,
            certificate_pem=certificate + self._issuer.certificate_pem,
            ca_pem=self._issuer.ca_pem,
            tunnel_address=self._policy.tunnel_address,
        )
        result.expire_time.FromNanoseconds(record.certificate_expire_ns)
        return result

    async def _audit_refusal(self, context: grpc.aio.ServicerContext[Any, Any], error: TrustError) -> None:
        self._refusals_unsaid += 1
        now = time.monotonic()
        if now - self._refusal_said_s < 1.0:
            return
        self._refusal_said_s = now
        detail = {"message": error.message, "peer": context.peer(), "reason": error.reason, "refusals": self._refusals_unsaid}
        self._refusals_unsaid = 0
        await self._store.audit(AuditEntry(principal=CONTROLLER, action="enroll.refused", detail=detail))


async def _step(requests: AsyncIterator[enrollment_pb2.EnrollRequest], wanted: str) -> enrollment_pb2.EnrollRequest:
    try:
        request = await asyncio.wait_for(anext(requests), _STEP_TIMEOUT_S)
    except TimeoutError:
        raise refuse(code_pb2.DEADLINE_EXCEEDED, "ENROLLMENT_TIMEOUT", f"no {wanted} within {_STEP_TIMEOUT_S:g} s") from None
    except StopAsyncIteration:
        raise bad_field("step", f"the stream ended; {wanted} was due") from None
    found = request.WhichOneof("step")
    if found != wanted:
        raise bad_field("step", f"{found}: {wanted} was due")
    return request


def _challenge(candidate: _Candidate) -> tuple[enrollment_pb2.EnrollChallenge, bytes]:
    secret = new_secret()
    nonce = secrets.token_bytes(NONCE_BYTES)
    if candidate.keys is None:
        return enrollment_pb2.EnrollChallenge(nonce=nonce), b""
    ek, ak = candidate.keys
    blob, encrypted = make_credential(ek, ak.name, secret)
    return enrollment_pb2.EnrollChallenge(credential_blob=blob, encrypted_secret=encrypted, nonce=nonce), secret


def _check_tls_key(candidate: _Candidate, nonce: bytes, proof: enrollment_pb2.EnrollProof) -> None:
    """What the host says of its TLS key being in its TPM is the AK's word for this challenge."""
    if candidate.tls is not None and candidate.keys is not None:
        check_certification(
            tls=candidate.tls,
            ak=candidate.keys[1],
            certify=proof.certify,
            signature=proof.certify_signature,
            nonce=nonce,
            agent_id=candidate.agent_id,
        )


def _check_texts(params: enrollment_pb2.EnrollParams) -> None:
    """What will be shown to operators and written to logs must not carry control characters."""
    if params.carrier not in _CARRIERS:
        raise bad_field("params.carrier", f"{params.carrier}: CARRIER_DIRECT (1) and CARRIER_TUNNEL (2) are accepted")
    if params.address or _CARRIERS[params.carrier] is Carrier.DIRECT:
        check_address(params.address)
    for field in ("hostname", "version"):
        value = getattr(params, field)
        if _TEXT.fullmatch(value) is None:
            raise bad_field(f"params.{field}", f"{value[:60]!r}: 1-253 printable ASCII characters are accepted")
    if len(params.ek_chain) > _MAX_CHAIN:
        raise bad_field("params.ek_chain", f"{len(params.ek_chain)} certificates: at most {_MAX_CHAIN} are accepted")
