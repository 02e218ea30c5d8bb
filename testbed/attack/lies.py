# SPDX-License-Identifier: Apache-2.0
"""What a rooted host's agent can say of itself: runs inside the puppet's process, with its genuine TPM and attestation key.

    lie's name (file JARVIS_LIE) + challenge -> evidence that is wrong in that way; no name: honest evidence

The lies are lies_signed.py's and lies_contents.py's: they edit the answer after the quote, or have the TPM sign what it should
not have been asked for. What the TPM's restricted key signs the host cannot choose; that is why each can be found out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jarvis.capture.v1.trust_pb2 import Evidence, PcrValue
from jarvis_agent.attest import Attester
from jarvis_agent.tpm import TpmPriority
from jarvis_agent.tpm_device import TpmDevice
from jarvis_trust.eventlog import encode_event
from jarvis_trust.quote import quote_binding

honest_evidence = Attester.evidence
recorded: list[Evidence] = []
"""An answer that was right once."""


@dataclass(slots=True, kw_only=True)
class Ask:
    """One challenge, at the moment of the quote."""

    attester: Attester
    device: TpmDevice
    nonce: bytes
    pcrs: Sequence[int]
    controller_spki: bytes
    event_log: bytes
    said: dict[str, Any] = field(default_factory=dict)
    """What goes into the answer instead of the truth; what extraData binds is bound as it is said."""

    def binding(self, **changes: Any) -> bytes:
        """extraData, with any field of it changed."""
        attester = self.attester
        fields: dict[str, Any] = {
            "nonce": self.nonce,
            "agent_spki_sha256": attester.agent_spki_sha256(),
            "controller_spki_sha256": self.controller_spki,
            "agent_id": attester.agent_id,
            "boot_id": attester.boot_id,
            "session_id": attester.session_id,
            "manifest": attester.firmware.manifest,
            "event_log": self.event_log,
        }
        bound = {name: value for name, value in self.said.items() if name in fields}
        return quote_binding(**{**fields, **bound, **changes})

    def evidence(self, *, pcrs: Sequence[int] | None = None, extra: bytes | None = None) -> Evidence:
        """A genuine quote over these PCRs, with what is said beside it."""
        selected = list(self.pcrs if pcrs is None else pcrs)
        quote = self.device.quote(extra_data=self.binding() if extra is None else extra, pcrs=selected)
        return self.answer(quote.attest, quote.signature, quote.pcrs)

    def answer(self, attest: bytes, signature: bytes, pcrs: dict[int, bytes]) -> Evidence:
        """Everything around a quote."""
        attester = self.attester
        return Evidence(
            attest=attest,
            signature=signature,
            pcrs=[PcrValue(index=index, digest=value) for index, value in sorted(pcrs.items())],
            event_log=self.said.get("event_log", self.event_log),
            manifest=self.said.get("manifest", attester.firmware.manifest),
            manifest_signature=self.said.get("manifest_signature", attester.firmware.signature),
            boot_id=self.said.get("boot_id", attester.boot_id),
            session_id=self.said.get("session_id", attester.session_id),
        )

    def records(self) -> list[dict[str, Any]]:
        """The event log, record by record."""
        return [json.loads(line) for line in self.event_log.splitlines()]

    def relog(self, records: Sequence[dict[str, Any]]) -> Evidence:
        """A log of other records, well formed and bound by the quote."""
        lines = [encode_event(number, record["pcr"], record["content"]) for number, record in enumerate(records)]
        self.said["event_log"] = b"".join(lines)
        return self.evidence()


Lie = Callable[[Ask], Evidence]
LIES: dict[str, Lie] = {}


def lie(function: Lie) -> Lie:
    """Makes it known by its name."""
    LIES[function.__name__.lstrip("_").replace("_", "-")] = function
    return function


def _told() -> str:
    return Path(os.environ["JARVIS_LIE"]).read_text().strip()


def install() -> None:
    """Takes the honest answer's place in this process."""

    async def evidence(
        self: Attester, *, nonce: bytes, pcrs: Sequence[int], controller_spki_sha256: bytes, **known: Any
    ) -> Evidence:
        name = _told()
        if not name:
            answer = await honest_evidence(
                self,
                nonce=nonce,
                pcrs=pcrs,
                controller_spki_sha256=controller_spki_sha256,
                **known,
            )
            recorded[:] = [answer]
            return answer

        def operation(device: TpmDevice) -> Evidence:
            ask = Ask(
                attester=self,
                device=device,
                nonce=nonce,
                pcrs=sorted(pcrs),
                controller_spki=controller_spki_sha256,
                event_log=self.event_log.read(),
            )
            return LIES[name](ask)

        return await self.tpm.run(TpmPriority.QUOTE, operation)

    Attester.evidence = evidence  # type: ignore[method-assign]
