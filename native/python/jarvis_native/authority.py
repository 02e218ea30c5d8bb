# SPDX-License-Identifier: Apache-2.0
"""Authority: leases and signed commands as the native core judges them, whatever Python thinks of them.

    authority = Authority(firmware, agent_id=..., command_public_key=..., ...)
    quoted_ns = authority.note_challenge(nonce, tls_spki_sha256)      then the quote
    authority.accept_lease(lease_bytes, signature)
    authority.admit(method, payload, authorization)
    engine.bind(authority, payload); engine.start()

One call a lease or command, nothing a packet. Safe from any thread. See jarvis_capture.h for what each refusal means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jarvis_native.arguments import c_string
from jarvis_native.errors import InvalidArgument, check
from jarvis_native.loader import Firmware

KEY_BYTES, SESSION_BYTES, AK_NAME_BYTES, DIGEST_BYTES, NONCE_BYTES = 32, 16, 34, 32, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """A lease as the core took it."""

    sequence: int
    """0: there was none yet."""
    quoted_ns: int
    """CLOCK_BOOTTIME when its challenge was noted."""
    end_ns: int
    """CLOCK_BOOTTIME at which it ends."""
    in_force: bool


class Authority:
    """Who may have packets looked at, and until when.

    Args:
        firmware: the loaded library.
        agent_id: 32 characters of a-z 2-7.
        command_public_key: Ed25519, 32 bytes, from enrolment.
        session_id: of this process, 16 bytes.
        ak_name: of the attestation key, 34 bytes.
        firmware_sha256: of the library's file as measured, 32 bytes.
        lease_sequence: the highest seen before this process.
        audit_sequence: of the controller's audit chain, likewise.
        audit_head: its head there, 32 bytes; empty = none was seen.

    Raises:
        InvalidArgument: naming the field.
    """

    def __init__(
        self,
        firmware: Firmware,
        *,
        agent_id: str,
        command_public_key: bytes,
        session_id: bytes,
        ak_name: bytes,
        firmware_sha256: bytes,
        lease_sequence: int = 0,
        audit_sequence: int = 0,
        audit_head: bytes = b"",
    ) -> None:
        self._ffi, self._lib = ffi, lib = firmware.ffi, firmware.lib
        if audit_head:
            _sized("audit_head", audit_head, DIGEST_BYTES)
        kept = [
            c_string(ffi, "agent_id", agent_id),
            ffi.from_buffer("uint8_t[]", _sized("command_public_key", command_public_key, KEY_BYTES)),
            ffi.from_buffer("uint8_t[]", _sized("session_id", session_id, SESSION_BYTES)),
            ffi.from_buffer("uint8_t[]", _sized("ak_name", ak_name, AK_NAME_BYTES)),
            ffi.from_buffer("uint8_t[]", _sized("firmware_sha256", firmware_sha256, DIGEST_BYTES)),
            ffi.from_buffer("uint8_t[]", audit_head) if audit_head else ffi.NULL,
        ]
        config = ffi.new("struct capture_authority_config *")
        config.struct_size = ffi.sizeof("struct capture_authority_config")
        config.agent_id, config.command_public_key, config.session_id, config.ak_name = kept[:4]
        config.firmware_sha256, config.audit_head = kept[4:]
        config.lease_sequence, config.audit_sequence = lease_sequence, audit_sequence
        out, info = ffi.new("capture_authority_t **"), self._error_info()
        check(ffi, lib, lib.capture_authority_create(config, out, info), info)
        self._authority: Any = ffi.gc(out[0], lib.capture_authority_release)

    @property
    def handle(self) -> Any:
        """The `capture_authority_t *`; alive as long as this object or a capture that is bound to it."""
        return self._authority

    def note_challenge(self, nonce: bytes, tls_spki_sha256: bytes) -> int:
        """Before a challenge is answered: the CLOCK_BOOTTIME instant (ns) from which its lease counts.

        Args:
            nonce: 32 bytes of the challenge.
            tls_spki_sha256: of the TLS key that is served, 32 bytes.

        Raises:
            AuthorityRefused: NONCE_REUSED.
        """
        _sized("nonce", nonce, NONCE_BYTES)
        _sized("tls_spki_sha256", tls_spki_sha256, DIGEST_BYTES)
        at, info = self._ffi.new("uint64_t *"), self._error_info()
        self._check(self._lib.capture_authority_note_challenge(self._authority, nonce, tls_spki_sha256, at, info), info)
        return int(at[0])

    def accept_lease(self, lease: bytes, signature: bytes) -> LeaseTerms:
        """Puts a lease in force, or ends the one in force earlier.

        Args:
            lease: the bytes of a Lease as they were signed.
            signature: Ed25519, 64 bytes.

        Raises:
            AuthorityRefused: LEASE_SIGNATURE_INVALID, LEASE_INVALID, LEASE_NOT_OURS, LEASE_STALE, LEASE_EXPIRED, AUDIT_TRUNCATED.
        """
        out, info = self._ffi.new("struct capture_lease *"), self._error_info()
        code = self._lib.capture_authority_accept_lease(self._authority, lease, len(lease), signature, len(signature), out, info)
        self._check(code, info)
        return _terms(out)

    def lease(self) -> LeaseTerms:
        """The newest lease."""
        out = self._ffi.new("struct capture_lease *")
        self._check(self._lib.capture_authority_get_lease(self._authority, out))
        return _terms(out)

    def admit(self, method: str, payload: bytes, authorization: bytes) -> bool:
        """Judges one command; False when it is a repetition under its lease, which entitles to nothing more.

        Args:
            method: full name, as called.
            payload: the request's bytes as received, 1 MiB at most.
            authorization: the bytes of its CommandAuthorization.

        Raises:
            LeaseOver: AGENT_UNATTESTED, LEASE_EXPIRED.
            AuthorityRefused: COMMAND_SIGNATURE_INVALID, COMMAND_INVALID, LEASE_METHOD_DENIED, LEASE_STALE, COMMAND_EXPIRED,
                REQUEST_ID_REUSED, COMMAND_LIMIT.
        """
        name, info = c_string(self._ffi, "method", method), self._error_info()
        code = self._lib.capture_authority_admit(
            self._authority, name, payload, len(payload), authorization, len(authorization), info
        )
        return bool(self._check(code, info) != self._lib.CAPTURE_COMMAND_REPEATED)

    def _error_info(self) -> Any:
        return self._ffi.new("struct capture_error_info *")

    def _check(self, code: int, info: Any = None) -> int:
        return check(self._ffi, self._lib, code, info)


def _terms(lease: Any) -> LeaseTerms:
    return LeaseTerms(sequence=lease.sequence, quoted_ns=lease.quoted_ns, end_ns=lease.end_ns, in_force=lease.in_force)


def _sized(field: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise InvalidArgument(f"{field} has {len(value)} bytes: accepted are {size}", field=field)
    return value
