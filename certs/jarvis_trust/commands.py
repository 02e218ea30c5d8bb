# SPDX-License-Identifier: Apache-2.0
"""Leases and command authorisations: Ed25519 under the fleet's command-signing key.

    controller:  CommandSigner.sign_lease(Lease) -> SignedLease          CommandSigner.authorize(...) -> CommandAuthorization
    agent:       verify_lease(SignedLease) -> Lease                      verify_authorization(...), payload as received

Only signatures and forms are checked here. Whether a lease is fresh and names this agent, and whether a command's lease and
expiry are current, depends on the agent's clock and state and is judged there.
"""

from __future__ import annotations

import re
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from google.protobuf.message import DecodeError
from jarvis.capture.v1.trust_pb2 import CommandAuthorization, Lease, SignedLease

from jarvis_trust.collector_allow_list import AllowList
from jarvis_trust.encoding import framed, u64
from jarvis_trust.errors import CommandError, IdentityError, LeaseError, PolicyError
from jarvis_trust.identities import Identity, validate_agent_id

AGENT_SERVICE: Final = "/jarvis.capture.v1.AgentService/"
LEASED_METHODS: Final = frozenset(
    AGENT_SERVICE + rpc
    for rpc in (
        "StartCapture",
        "StopCapture",
        "UpdateInterfaces",
        "GetMetrics",
        "StreamMetrics",
        "ListFlows",
        "StreamFlows",
        "EnableExport",
        "DisableExport",
        "ListExports",
        "StageRelease",
        "ActivateRelease",
    )
)
"""Full names of the methods that need a lease and an authorisation: those marked [lease] in agent.proto."""

AUTHORIZATION_METADATA_KEY: Final = "jarvis-authorization-bin"
MAX_LEASE_BYTES: Final = 16 * 1024
MAX_LEASE_NS: Final = 24 * 3600 * 10**9
MAX_METHODS: Final = 64

_LEASE_TAG = "jarvis-lease-v1"
_COMMAND_TAG = "jarvis-command-v1"
_SIGNATURE_BYTES = 64
_METHOD = re.compile(r"/[A-Za-z0-9_.]{1,128}/[A-Za-z0-9_]{1,64}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_LEASE_BYTE_FIELDS = {
    # TPM2B_NAME contents: algorithm id and SHA-256.
    "ak_name": 34,
    "tls_spki_sha256": 32,
    "firmware_sha256": 32,
    "session_id": 16,
    "audit_head": 32,
    "nonce": 32,
}


class CommandSigner:
    """Holds the fleet's command-signing key. Thread-safe."""

    def __init__(self, private_pem: bytes) -> None:
        """Args: private_pem: Ed25519, PKCS#8 PEM. Raises IdentityError (KEY_INVALID) for any other key."""
        try:
            key = load_pem_private_key(private_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError("KEY_INVALID", f"command-signing key is not an unencrypted PEM private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError("KEY_INVALID", f"command-signing key is a {type(key).__name__}; Ed25519 is accepted")
        self._key = key

    @property
    def public_pem(self) -> bytes:
        """The half that join files carry to agents."""
        return _public_pem(self._key)

    def sign_lease(self, lease: Lease) -> SignedLease:
        """Signs the lease's bytes.

        Raises:
            LeaseError: LEASE_INVALID when verify_lease would refuse it.
        """
        check_lease(lease)
        data = lease.SerializeToString(deterministic=True)
        return SignedLease(lease=data, signature=self._key.sign(lease_signing_bytes(data)))

    def endorse(self, tag: str, data: bytes) -> bytes:
        """A signature over other data of the fleet's than leases and commands, under a domain tag of its own.

        Args:
            tag: of the kind of data; never one of leases or commands.
            data: what is endorsed.
        """
        return self._key.sign(framed(tag, data))

    def authorize(
        self,
        *,
        agent_id: str,
        method: str,
        session_id: bytes,
        lease_sequence: int,
        request_id: str,
        principal: str,
        expires_ns: int,
        payload: bytes,
    ) -> CommandAuthorization:
        """The authorisation of one command for one agent.

        Args:
            agent_id: whom it is for.
            method: full name, e.g. "/jarvis.capture.v1.AgentService/StartCapture".
            session_id: of the agent's process, from its quote, 16 bytes.
            lease_sequence: of the lease that covers it.
            request_id: UUID, lower case; the agent answers a repeated one with the first answer.
            principal: SPIFFE id on whose behalf.
            expires_ns: ns after the quote of that lease, on the agent's CLOCK_BOOTTIME.
            payload: the request's bytes exactly as they will be sent.

        Raises:
            CommandError: COMMAND_INVALID, naming the field.
        """
        authorization = CommandAuthorization(
            lease_sequence=lease_sequence, request_id=request_id, principal=principal, expires_ns=expires_ns
        )
        _check_command(authorization, agent_id=agent_id, method=method, session_id=session_id)
        authorization.signature = self._key.sign(
            command_signing_bytes(authorization, agent_id=agent_id, method=method, session_id=session_id, payload=payload)
        )
        return authorization


def generate_command_key() -> tuple[bytes, bytes]:
    """A new command-signing key: (private PKCS#8 PEM, public SubjectPublicKeyInfo PEM)."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _public_pem(key)


def command_public_raw(public_pem: bytes) -> bytes:
    """The 32 bytes of a command key (RFC 8032), as the native core takes it.

    Raises:
        IdentityError: KEY_INVALID when it is not an Ed25519 public key in PEM.
    """
    return _command_key(public_pem).public_bytes(Encoding.Raw, PublicFormat.Raw)


def verify_endorsement(command_public_pem: bytes, tag: str, data: bytes, signature: bytes) -> bool:
    """Whether the fleet's command key has endorsed this data under this tag.

    Raises:
        IdentityError: KEY_INVALID when the pinned key is not Ed25519.
    """
    return _verifies(command_public_pem, signature, framed(tag, data))


def verify_lease(signed: SignedLease, command_public_pem: bytes) -> Lease:
    """The lease, once its signature and form hold.

    Raises:
        LeaseError: LEASE_SIGNATURE_INVALID, LEASE_INVALID.
        IdentityError: KEY_INVALID when the pinned key is not Ed25519.
    """
    if len(signed.lease) > MAX_LEASE_BYTES:
        raise _invalid_lease(f"{len(signed.lease)} bytes; at most {MAX_LEASE_BYTES} are accepted")
    if not _verifies(command_public_pem, signed.signature, lease_signing_bytes(signed.lease)):
        raise LeaseError("LEASE_SIGNATURE_INVALID", "the lease is not signed with the fleet's command key")
    try:
        lease = Lease.FromString(signed.lease)
    except DecodeError as error:
        raise _invalid_lease("its bytes are not a Lease message") from error
    check_lease(lease)
    return lease


def verify_authorization(
    authorization: CommandAuthorization,
    command_public_pem: bytes,
    *,
    agent_id: str,
    method: str,
    session_id: bytes,
    payload: bytes,
) -> None:
    """The command on this agent, method, process and payload was signed by the fleet's command key.

    Args:
        authorization: from the call's metadata.
        command_public_pem: the pinned key, Ed25519.
        agent_id: this agent's.
        method: full name of the method that was called.
        session_id: of this process.
        payload: the request's bytes exactly as received.

    Raises:
        CommandError: COMMAND_SIGNATURE_INVALID, COMMAND_INVALID.
        IdentityError: KEY_INVALID when the pinned key is not Ed25519.
    """
    data = command_signing_bytes(authorization, agent_id=agent_id, method=method, session_id=session_id, payload=payload)
    if not _verifies(command_public_pem, authorization.signature, data):
        raise CommandError(
            "COMMAND_SIGNATURE_INVALID", f"{method}: not signed with the fleet's command key for this agent, process and payload"
        )
    _check_command(authorization, agent_id=agent_id, method=method, session_id=session_id)


def lease_signing_bytes(lease: bytes) -> bytes:
    """What is signed for a lease."""
    return framed(_LEASE_TAG, lease)


def command_signing_bytes(
    authorization: CommandAuthorization, *, agent_id: str, method: str, session_id: bytes, payload: bytes
) -> bytes:
    """What is signed for a command; the signature in `authorization` plays no part."""
    return framed(
        _COMMAND_TAG,
        agent_id.encode(),
        method.encode(),
        session_id,
        u64(authorization.lease_sequence),
        authorization.request_id.encode(),
        authorization.principal.encode(),
        u64(authorization.expires_ns),
        payload,
    )


def check_lease(lease: Lease) -> None:
    """Every field that a lease must have, in its range.

    Raises:
        LeaseError: LEASE_INVALID, naming the field.
    """
    try:
        validate_agent_id(lease.agent_id)
    except IdentityError as error:
        raise _invalid_lease(error.message) from error
    for field, size in _LEASE_BYTE_FIELDS.items():
        found = len(getattr(lease, field))
        if found != size:
            raise _invalid_lease(f"{field} has {found} bytes; {size} are accepted")
    if not 1 <= len(lease.methods) <= MAX_METHODS or len(set(lease.methods)) != len(lease.methods):
        raise _invalid_lease(f"methods has {len(lease.methods)} names; 1 to {MAX_METHODS} different ones are accepted")
    for method in lease.methods:
        if _METHOD.fullmatch(method) is None:
            raise _invalid_lease(f"methods has {method[:80]!r}; full names such as {AGENT_SERVICE}StartCapture are accepted")
    if lease.sequence == 0:
        raise _invalid_lease("sequence is 0; 1 and above are accepted")
    if not 1 <= lease.duration_ns <= MAX_LEASE_NS:
        raise _invalid_lease(f"duration_ns is {lease.duration_ns}; 1 to {MAX_LEASE_NS} (24 h) are accepted")
    try:
        AllowList.parse(lease.export_collectors)
    except PolicyError as error:
        raise _invalid_lease(f"export_{error.message}") from error


def _check_command(authorization: CommandAuthorization, *, agent_id: str, method: str, session_id: bytes) -> None:
    try:
        validate_agent_id(agent_id)
        Identity.parse(authorization.principal)
    except IdentityError as error:
        raise _invalid_command(error.message) from error
    if _METHOD.fullmatch(method) is None:
        raise _invalid_command(f"method is {method[:80]!r}; a full name such as {AGENT_SERVICE}StartCapture is accepted")
    if len(session_id) != 16:
        raise _invalid_command(f"session_id has {len(session_id)} bytes; 16 are accepted")
    if authorization.lease_sequence == 0:
        raise _invalid_command("lease_sequence is 0; 1 and above are accepted")
    if _UUID.fullmatch(authorization.request_id) is None:
        raise _invalid_command(f"request_id is {authorization.request_id[:60]!r}; a lower-case UUID is accepted")
    if not 1 <= authorization.expires_ns <= MAX_LEASE_NS:
        raise _invalid_command(f"expires_ns is {authorization.expires_ns}; 1 to {MAX_LEASE_NS} (24 h) are accepted")


def _command_key(public_pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(public_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError("KEY_INVALID", f"command key is not a PEM public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError("KEY_INVALID", f"command key is a {type(key).__name__}; Ed25519 is accepted")
    return key


def _verifies(public_pem: bytes, signature: bytes, data: bytes) -> bool:
    key = _command_key(public_pem)
    if len(signature) != _SIGNATURE_BYTES:
        return False
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _invalid_lease(message: str) -> LeaseError:
    return LeaseError("LEASE_INVALID", f"lease: {message}")


def _invalid_command(message: str) -> CommandError:
    return CommandError("COMMAND_INVALID", f"command authorization: {message}")
