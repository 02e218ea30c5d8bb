# SPDX-License-Identifier: Apache-2.0
"""Evidence for a challenge: a quote whose extraData binds nonce, both TLS keys, identity, boot, process, manifest and event log.

Knows nothing of gRPC. The event log is read and the quote made inside one TPM operation, so that no event can come between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_trust.quote import NONCE_BYTES, quote_binding

from jarvis_agent.boot_log import BootLogFile
from jarvis_agent.errors import RequestError
from jarvis_agent.event_log import EventLog
from jarvis_agent.firmware import FirmwareState
from jarvis_agent.lease import LeaseKeeper
from jarvis_agent.tpm import TpmPriority
from jarvis_agent.tpm_device import Quote, TpmDevice
from jarvis_agent.tpm_watch import TpmWatch

MAX_PCRS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Attester:
    """Answers challenges. Used on the event loop."""

    tpm: TpmWatch
    event_log: EventLog
    firmware: FirmwareState
    leases: LeaseKeeper
    agent_id: str
    boot_id: bytes
    """The kernel's, 16 bytes."""
    session_id: bytes
    """Of this process, 16 bytes."""
    agent_spki_sha256: Callable[[], bytes]
    """Digest of the TLS key that is served now."""
    boot_log: BootLogFile

    async def evidence(
        self,
        *,
        nonce: bytes,
        pcrs: Sequence[int],
        controller_spki_sha256: bytes,
        shown_spki_sha256: bytes | None = None,
        known_boot_log_sha256: bytes = b"",
    ) -> Evidence:
        """A fresh quote and everything that explains it. The lease for this nonce counts from here.

        Args:
            nonce: 32 bytes of the challenge.
            pcrs: indices to quote, 0..23, in any order.
            controller_spki_sha256: of the certificate that the caller showed on this connection.
            shown_spki_sha256: of the certificate that we showed on it; None = the one in force.
            known_boot_log_sha256: digest of the boot log that the caller holds already; empty = none.

        Raises:
            RequestError: nonce or pcrs are not acceptable.
            LeaseError: NONCE_REUSED.
            TpmError: the TPM is lost or refuses.
            EventLogError: a log cannot be read.
        """
        selection = _check_challenge(nonce, pcrs)
        self.leases.spend_nonce(nonce)
        agent_spki_sha256 = shown_spki_sha256 or self.agent_spki_sha256()
        # Before the quote, never after it: a lease may end early, not late.
        quoted_at = self.leases.note_challenge(nonce=nonce, tls_spki_sha256=agent_spki_sha256)

        boot_chain = any(pcr != self.event_log.pcr for pcr in selection)

        def operation(device: TpmDevice) -> tuple[bytes, bytes, Quote]:
            event_log = self.event_log.read()
            boot_log = self.boot_log.read() if boot_chain else b""
            extra_data = quote_binding(
                nonce=nonce,
                agent_spki_sha256=agent_spki_sha256,
                controller_spki_sha256=controller_spki_sha256,
                agent_id=self.agent_id,
                boot_id=self.boot_id,
                session_id=self.session_id,
                manifest=self.firmware.manifest,
                event_log=event_log,
            )
            return event_log, boot_log, device.quote(extra_data=extra_data, pcrs=selection)

        event_log, boot_log, quote = await self.tpm.run(TpmPriority.QUOTE, operation)
        self.tpm.check_reset_count(quote.reset_count)
        self.leases.note_quote(nonce=nonce, boottime=quoted_at, reset_count=quote.reset_count, tls_spki_sha256=agent_spki_sha256)
        boot_digest = hashlib.sha256(boot_log).digest() if boot_log else b""
        return Evidence(
            attest=quote.attest,
            signature=quote.signature,
            pcrs=[PcrValue(index=index, digest=quote.pcrs[index]) for index in selection],
            event_log=event_log,
            manifest=self.firmware.manifest,
            manifest_signature=self.firmware.signature,
            boot_id=self.boot_id,
            session_id=self.session_id,
            boot_log=b"" if boot_digest == known_boot_log_sha256 else boot_log,
            boot_log_sha256=boot_digest,
        )


def _check_challenge(nonce: bytes, pcrs: Sequence[int]) -> list[int]:
    violations = []
    if len(nonce) != NONCE_BYTES:
        violations.append(("nonce", f"{len(nonce)} bytes; {NONCE_BYTES} are accepted"))
    if not 1 <= len(pcrs) <= MAX_PCRS or len(set(pcrs)) != len(pcrs) or max(pcrs) >= MAX_PCRS:
        violations.append(("pcrs", f"{list(pcrs)[:32]}; 1 to {MAX_PCRS} different indices 0..{MAX_PCRS - 1} are accepted"))
    if violations:
        raise RequestError(*violations)
    return sorted(pcrs)
