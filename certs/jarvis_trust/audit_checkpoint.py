# SPDX-License-Identifier: Apache-2.0
"""Signed checkpoints of the audit chain: what somebody who can rewrite the whole database cannot make.

    controller:  CheckpointSigner(audit.pem).sign(number, head, time) -> AuditCheckpoint
    operator:    CheckpointVerifier(fleet CA) <- certificates, checkpoints, every entry's hash in order; finish() at the end

The key is of its own kind (ECDSA P-256, certified by the fleet CA for this alone), so that an operator can check it with the CA
that it holds anyhow, and so that changing the command key says nothing about the past. Checkpoints are numbered without a gap.
"""

from __future__ import annotations

import hashlib
from collections import deque
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from google.protobuf.timestamp_pb2 import Timestamp
from jarvis.capture.v1.audit_pb2 import AuditCheckpoint

from jarvis_trust.audit import GENESIS, AuditHead
from jarvis_trust.ca import audit_signer_uri, load_certificate, uri_of_certificate
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.encoding import framed, u64
from jarvis_trust.errors import AuditError, IdentityError

MAX_UNCOVERED_ENTRIES = 1000
"""The most entries that may follow the last checkpoint: the most that a controller can be told to wait."""
MAX_UNCOVERED_NS = 2 * 3600 * 10**9
"""The longest that an entry may wait for one: twice what a controller can be told."""

_TAG = "jarvis-audit-checkpoint-v1"


def checkpoint_signing_bytes(number: int, head: AuditHead, time_unix_ns: int) -> bytes:
    """What is signed: number, sequence, hash and time (ns since 1970, UTC) under the domain tag."""
    return framed(_TAG, u64(number), u64(head.sequence), head.hash, u64(time_unix_ns))


class CheckpointSigner:
    """Holds the audit key. Thread-safe."""

    def __init__(self, pem: bytes) -> None:
        """Args: pem: private key (PKCS#8) and certificate. Raises IdentityError (KEY_INVALID, CERTIFICATE_INVALID)."""
        start = pem.find(b"-----BEGIN CERTIFICATE-----")
        if start < 0:
            raise IdentityError("CERTIFICATE_INVALID", "the audit key has no certificate beside it")
        certificate = load_certificate(pem[start:])
        try:
            key = load_pem_private_key(pem[:start], password=None)
        except (ValueError, TypeError) as error:
            raise IdentityError("KEY_INVALID", f"the audit key is not an unencrypted PEM private key: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise IdentityError("KEY_INVALID", "the audit key is not the P-256 key of its certificate")
        self._key = key
        self.certificate = certificate.public_bytes(Encoding.DER)
        """DER."""
        self.not_after = certificate.not_valid_after_utc
        self.signer_sha256 = hashlib.sha256(self.certificate).digest()

    def sign(self, number: int, head: AuditHead, time_unix_ns: int) -> AuditCheckpoint:
        """A checkpoint of the chain up to `head`."""
        data = checkpoint_signing_bytes(number, head, time_unix_ns)
        checkpoint = AuditCheckpoint(
            number=number,
            sequence=head.sequence,
            hash=head.hash,
            signer_sha256=self.signer_sha256,
            signature=self._key.sign(data, ec.ECDSA(hashes.SHA256())),
        )
        checkpoint.time.FromNanoseconds(time_unix_ns)
        return checkpoint


class CheckpointVerifier:
    """Checks a chain's checkpoints beside the chain. One use; not thread-safe.

    Give it every checkpoint first (add), then every verified entry in order (entry), then ask for the end (finish).
    """

    def __init__(self, ca_pem: bytes, *, after: int = 0, head: AuditHead = GENESIS) -> None:
        """A verifier that begins after a checkpoint that is known to be good, or at the chain's begin.

        Args:
            ca_pem: the fleet CA, pinned by the caller; after a change of the CA those of before too.
            after: number of that checkpoint.
            head: what it covers.

        Raises:
            IdentityError: ca_pem is no fleet CA.
        """
        self._ca = CaBundle.parse(ca_pem)
        self._fleet = self._ca.fleet
        self._signers: dict[bytes, x509.Certificate] = {}
        self._expected: deque[tuple[AuditHead, int]] = deque()
        self._last = head
        self.count = after
        """Number of the last checkpoint that was added."""
        self._oldest_uncovered_ns: int | None = None

    def trust(self, certificate_der: bytes) -> None:
        """Accepts a signer's certificate that the fleet CA issued for an audit key.

        Raises:
            AuditError: AUDIT_SIGNER_UNTRUSTED.
        """
        try:
            certificate = load_certificate(certificate_der)
            uri = uri_of_certificate(certificate)
        except IdentityError as error:
            raise _untrusted() from error
        if self._ca.issuer_of(certificate) is None:
            raise _untrusted()
        if not uri.startswith(audit_signer_uri(self._fleet, "")):
            raise AuditError(
                "AUDIT_SIGNER_UNTRUSTED", f"a checkpoint's signer is {uri[:120]}, which is not the fleet's audit key", sequence=0
            )
        self._signers[hashlib.sha256(certificate_der).digest()] = certificate

    def add(self, checkpoint: AuditCheckpoint) -> None:
        """Takes the next checkpoint, once its number, place, time and signature hold.

        Raises:
            AuditError: AUDIT_CHECKPOINT_MISSING (a number is left out), AUDIT_CHECKPOINT_INVALID, AUDIT_SIGNER_UNTRUSTED.
        """
        number, sequence = self.count + 1, checkpoint.sequence
        if checkpoint.number != number:
            message = f"checkpoint {number} is missing: checkpoint {checkpoint.number} is in its place"
            raise AuditError("AUDIT_CHECKPOINT_MISSING", message, sequence=sequence)
        if sequence <= self._last.sequence or len(checkpoint.hash) != 32:
            raise _invalid(number, f"it covers entry {sequence} after one that covers {self._last.sequence}", sequence)
        head = AuditHead(sequence=sequence, hash=checkpoint.hash)
        self._check_signature(checkpoint, head)
        self.count, self._last = number, head
        self._expected.append((head, number))

    def entry(self, head: AuditHead, time_unix_ns: int) -> None:
        """Tells the hash of the next verified entry, and its time (ns since 1970, UTC).

        Raises:
            AuditError: AUDIT_CHECKPOINT_MISMATCH: the chain was rewritten before this entry.
        """
        if head.sequence > self._last.sequence and self._oldest_uncovered_ns is None:
            self._oldest_uncovered_ns = time_unix_ns
        if not self._expected or self._expected[0][0].sequence != head.sequence:
            return
        wanted, number = self._expected.popleft()
        if wanted.hash != head.hash:
            message = f"audit entry {head.sequence} is not the one that checkpoint {number} was signed for: it was rewritten"
            raise AuditError("AUDIT_CHECKPOINT_MISMATCH", message, sequence=head.sequence)

    def finish(self, head: AuditHead, now_unix_ns: int) -> int:
        """The number of entries after the last checkpoint, once the chain reaches it and they are few and young.

        Raises:
            AuditError: AUDIT_TRUNCATED, AUDIT_CHECKPOINT_MISSING.
        """
        if self._expected:
            wanted, number = self._expected[-1]
            message = f"audit chain ends at entry {head.sequence}; checkpoint {number} was signed for entry {wanted.sequence}"
            raise AuditError("AUDIT_TRUNCATED", message, sequence=head.sequence + 1)
        uncovered = head.sequence - self._last.sequence
        oldest = self._oldest_uncovered_ns
        late = oldest is not None and now_unix_ns - oldest > MAX_UNCOVERED_NS
        if uncovered > MAX_UNCOVERED_ENTRIES or late:
            message = (
                f"{uncovered} entries follow the last checkpoint (entry {self._last.sequence}):"
                f" at most {MAX_UNCOVERED_ENTRIES} entries, none older than 2 h, are left without one by a controller"
            )
            raise AuditError("AUDIT_CHECKPOINT_MISSING", message, sequence=self._last.sequence + 1)
        return uncovered

    def _check_signature(self, checkpoint: AuditCheckpoint, head: AuditHead) -> None:
        number = checkpoint.number
        certificate = self._signers.get(checkpoint.signer_sha256)
        if certificate is None:
            message = f"checkpoint {number}: its signer's certificate was not given"
            raise AuditError("AUDIT_SIGNER_UNTRUSTED", message, sequence=head.sequence)
        time_ns = _nanoseconds(checkpoint.time)
        instant = datetime.fromtimestamp(time_ns // 10**9, UTC) if 0 <= time_ns < 2**63 else None
        if instant is None or not certificate.not_valid_before_utc <= instant <= certificate.not_valid_after_utc:
            raise _invalid(number, "it is of a time at which its signer's certificate was not valid", head.sequence)
        key = certificate.public_key()
        try:
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise _invalid(number, "its signer's key is not ECDSA", head.sequence)
            key.verify(checkpoint.signature, checkpoint_signing_bytes(number, head, time_ns), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise _invalid(number, "its signature does not hold", head.sequence) from error


def _untrusted() -> AuditError:
    return AuditError("AUDIT_SIGNER_UNTRUSTED", "a checkpoint's signer was not certified by the fleet CA", sequence=0)


def _nanoseconds(time: Timestamp) -> int:
    # ToNanoseconds refuses nothing either, and this does not depend on how it treats a negative fraction.
    return time.seconds * 10**9 + time.nanos


def _invalid(number: int, message: str, sequence: int) -> AuditError:
    return AuditError("AUDIT_CHECKPOINT_INVALID", f"checkpoint {number}: {message}", sequence=sequence)
