# SPDX-License-Identifier: Apache-2.0
"""Approvals of boot states for agents' store keys: made from attestations that passed, delivered with their leases.

    PCR values of a quote in which nothing failed → StoreApproval → RenewLease (agent: jarvis_agent/store_key.py)

The key (`store-policy.key`, ECDSA P-256) is made at the controller's first start and endorsed by the command key. Losing it loses
no data: agents keep the approval of the boot state that they are in. It does lose the way to another boot state: keep it with the
CA's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jarvis.capture.v1.trust_pb2 import Evidence, StoreApproval
from jarvis_trust.ca import generate_key
from jarvis_trust.commands import CommandSigner
from jarvis_trust.keyfiles import load_private_key, write_private
from jarvis_trust.store_policy import StorePolicySigner

from jarvis_controller.verifier import Report

STORE_POLICY_KEY_FILE = "store-policy.key"


class StoreApprovals:
    """Approves for one fleet. Thread-safe."""

    def __init__(self, signer: StorePolicySigner, pcrs: Sequence[int]) -> None:
        """Args: pcrs: what a boot state is; ascending."""
        self._signer = signer
        self._pcrs = tuple(pcrs)

    @classmethod
    def open(cls, directory: Path, command: CommandSigner, pcrs: Sequence[int]) -> StoreApprovals:
        """With the key in the controller's directory, made when there is none.

        Raises:
            IdentityError: KEY_FILE_EXPOSED, KEY_FILE_INVALID, KEY_INVALID.
            OSError: it cannot be read or written.
        """
        path = directory / STORE_POLICY_KEY_FILE
        if not path.exists():
            write_private(path, generate_key())
        return cls(StorePolicySigner(load_private_key(path), command), pcrs)

    def approve(self, agent_id: str, report: Report, evidence: Evidence) -> StoreApproval | None:
        """The approval for what this evidence shows; None when it does not show it, or when a check failed, if only reported."""
        values = {value.index: value.digest for value in evidence.pcrs}
        is_shown = bool(self._pcrs) and set(self._pcrs) <= values.keys()
        if not is_shown or report.proved is None or not all(check.passed for check in report.checks):
            return None
        return self._signer.approve(agent_id, {pcr: values[pcr] for pcr in self._pcrs})
