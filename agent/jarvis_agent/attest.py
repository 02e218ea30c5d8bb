# SPDX-License-Identifier: Apache-2.0
"""Evidence for a challenge: a quote whose extraData binds nonce, both TLS keys, identity, boot, process, manifest and event log.

Knows nothing of gRPC. The event log is read and the quote made inside one TPM operation, so that no event can come between.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_trust.ima_log import IMA_PCR
from jarvis_trust.quote import NONCE_BYTES, quote_binding
from jarvis_trust.software_identity import SoftwareSigner

from jarvis_agent.boot_log import BootLogFile
from jarvis_agent.errors import RequestError
from jarvis_agent.event_log import EventLog
from jarvis_agent.firmware import FirmwareState
from jarvis_agent.ima_log import ImaLogFile, ImaPart
from jarvis_agent.lease import LeaseKeeper
from jarvis_agent.software_identity import AbsentTpm
from jarvis_agent.tpm import TpmPriority
from jarvis_agent.tpm_device import Quote, TpmDevice
from jarvis_agent.tpm_watch import TpmWatch

MAX_PCRS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Attester:
    """Answers challenges. Used on the event loop."""

    tpm: TpmWatch | AbsentTpm
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
    ima_log: ImaLogFile
    software: SoftwareSigner | None = None
    """Of an agent without a TPM: what it signs with in the place of a quote."""

    async def evidence(
        self,
        *,
        nonce: bytes,
        pcrs: Sequence[int],
        controller_spki_sha256: bytes,
        shown_spki_sha256: bytes | None = None,
        known_boot_log_sha256: bytes = b"",
        known_ima: tuple[bytes, int] = (b"", 0),
    ) -> Evidence:
        """A fresh quote and everything that explains it. The lease for this nonce counts from here.

        Args:
            nonce: 32 bytes of the challenge.
            pcrs: indices to quote, 0..23, in any order.
            controller_spki_sha256: of the certificate that the caller showed on this connection.
            shown_spki_sha256: of the certificate that we showed on it; None = the one in force.
            known_boot_log_sha256: digest of the boot log that the caller holds already; empty = none.
            known_ima: boot id of the IMA list that the caller holds already, and its entries.

        Raises:
            RequestError: nonce or pcrs are not acceptable.
            LeaseError: NONCE_REUSED.
            TpmError: the TPM is lost or refuses.
            EventLogError: a log cannot be read, or IMA_LOG_TOO_LONG.
        """
        selection = _check_challenge(nonce, pcrs)
        self.leases.spend_nonce(nonce)
        agent_spki_sha256 = shown_spki_sha256 or self.agent_spki_sha256()
        # Before the quote, never after it: a lease may end early, not late.
        quoted_at = self.leases.note_challenge(nonce=nonce, tls_spki_sha256=agent_spki_sha256)

        if self.software is not None:
            evidence = self._signed(self.software, nonce, agent_spki_sha256, controller_spki_sha256)
            self.leases.note_quote(nonce=nonce, boottime=quoted_at, reset_count=0, tls_spki_sha256=agent_spki_sha256)
            return evidence
        boot_chain = any(pcr not in {self.event_log.pcr, IMA_PCR} for pcr in selection)

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
        ima = await self._ima(known_ima) if IMA_PCR in selection else ImaPart(data=b"", first=0)
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
            ima_log=ima.data,
            ima_first_entry=ima.first,
        )

    def _signed(self, signer: SoftwareSigner, nonce: bytes, agent_spki_sha256: bytes, controller_spki_sha256: bytes) -> Evidence:
        """What there is without a TPM: no PCRs, whichever were asked for."""
        event_log = self.event_log.read()
        signature = signer.sign_evidence(
            nonce=nonce,
            agent_spki_sha256=agent_spki_sha256,
            controller_spki_sha256=controller_spki_sha256,
            agent_id=self.agent_id,
            boot_id=self.boot_id,
            session_id=self.session_id,
            manifest=self.firmware.manifest,
            event_log=event_log,
        )
        return Evidence(
            event_log=event_log,
            manifest=self.firmware.manifest,
            manifest_signature=self.firmware.signature,
            boot_id=self.boot_id,
            session_id=self.session_id,
            software_signature=signature,
        )

    async def _ima(self, known: tuple[bytes, int]) -> ImaPart:
        """The list after the quote: it has every entry that PCR 10 had taken then. Securityfs may take its time."""
        boot_id, entries = known
        return await asyncio.to_thread(self.ima_log.read, entries if boot_id == self.boot_id else 0)


def _check_challenge(nonce: bytes, pcrs: Sequence[int]) -> list[int]:
    violations = []
    if len(nonce) != NONCE_BYTES:
        violations.append(("nonce", f"{len(nonce)} bytes; {NONCE_BYTES} are accepted"))
    if not 1 <= len(pcrs) <= MAX_PCRS or len(set(pcrs)) != len(pcrs) or max(pcrs) >= MAX_PCRS:
        violations.append(("pcrs", f"{list(pcrs)[:32]}; 1 to {MAX_PCRS} different indices 0..{MAX_PCRS - 1} are accepted"))
    if violations:
        raise RequestError(*violations)
    return sorted(pcrs)
