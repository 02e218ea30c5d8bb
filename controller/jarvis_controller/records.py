# SPDX-License-Identifier: Apache-2.0
"""What is handed to the store: the facts of an enrolment and of a passed attestation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jarvis_controller.agent_record import Carrier, TpmMoment
from jarvis_controller.ima_state import ImaState


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledAgent:
    """An agent whose AK was proved to live beside its EK, and the certificate it was given."""

    agent_id: str
    ek_certificate: bytes
    ek_public: bytes
    """TPMT_PUBLIC; empty, as the certificate is, of an agent without a TPM."""
    ak_public: bytes
    """TPMT_PUBLIC; of an agent without a TPM the SubjectPublicKeyInfo of its identity key."""
    ak_name: bytes
    tls_spki: bytes
    """SHA-256 of the SubjectPublicKeyInfo."""
    certificate_expire_ns: int
    """Unix epoch."""
    address: str
    hostname: str
    version: str
    carrier: Carrier = Carrier.DIRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedAttestation:
    """What a passed attestation proved, and the lease that it yields."""

    ak_name: bytes
    """The key that was judged: compared again when the result is stored."""
    tpm: TpmMoment | None
    """None of an agent without one."""
    boot_id: bytes
    session_id: bytes
    tls_spki: bytes
    firmware_sha256: bytes
    firmware_version: str
    security_version: int
    objects: Mapping[str, str]
    """The manifest's: file name -> SHA-256 hex."""
    lease_ns: int
    assurance: str
    """"L1"; "L2" when measured boot was judged too, "L3" when IMA's list was besides; "L0" of an agent without a TPM."""
    reported: str = ""
    """Failures that the policy only has reported, in one line."""
    channel_bound: bool = False
    """The connection itself showed `tls_spki`."""
    ima: ImaState | None = None
    """IMA's list up to the quote, to go on from; None when it was not judged."""
    ima_unquoted: int = 0
    """Entries that came behind those that PCR 10 had taken when it was quoted; they come again and are judged then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEvidence:
    """What a host's firmware measured, as this host's TPM quoted it."""

    log: bytes
    """The TCG event log; it replays to `pcrs`."""
    pcrs: Mapping[int, bytes]
    reference: str
    """"NAME version N" of the matching reference set, or empty."""
    secure_boot: bool | None
    key_digests: Mapping[str, bytes]
    """PK, KEK, db, dbx -> SHA-256 of the contents."""
    kernel_command_line: str
    """Empty when its PCR was not quoted, or nothing was measured there."""


class RequestConflictError(Exception):
    """A request id that was used for another request."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id {request_id!r} was used for another request in the last 24 h")
        self.request_id = request_id
