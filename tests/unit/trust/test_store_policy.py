# SPDX-License-Identifier: Apache-2.0
"""Approvals of boot states: the fleet's, for one agent, over PCRs that mean something."""

from __future__ import annotations

import hashlib

import pytest
from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_trust.ca import generate_key
from jarvis_trust.commands import CommandSigner, generate_command_key
from jarvis_trust.errors import IdentityError, StoreKeyError
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.store_policy import StorePolicySigner, check_store_approval, policy_pcr_digest

PRIVATE, PUBLIC = generate_command_key()
SIGNER = StorePolicySigner(generate_key(), CommandSigner(PRIVATE))
AGENT, OTHER_AGENT = agent_id_from_ek(b"one"), agent_id_from_ek(b"another")
STATE = {4: hashlib.sha256(b"4").digest(), 7: hashlib.sha256(b"7").digest()}


def approval() -> StoreApproval:
    return SIGNER.approve(AGENT, STATE)


def check(found: StoreApproval, *, command_public_pem: bytes = PUBLIC, agent_id: str = AGENT, never: int = 14) -> None:
    check_store_approval(found, agent_id=agent_id, command_public_pem=command_public_pem, demanded=[7], never=never)


def refusal(found: StoreApproval, **options: object) -> str:
    with pytest.raises(StoreKeyError) as refused:
        check(found, **options)  # type: ignore[arg-type]
    assert refused.value.reason == "STORE_APPROVAL_INVALID"
    return refused.value.message.split(":")[0]


def test_the_fleets_approval_for_this_agent_is_taken() -> None:
    check(approval())
    assert approval().approved_policy == policy_pcr_digest(STATE)


def test_an_approval_for_another_agent_or_of_another_fleet_is_refused() -> None:
    assert refusal(approval(), agent_id=OTHER_AGENT) == "store_approval.policy_ref"
    _, stranger = generate_command_key()
    assert refusal(approval(), command_public_pem=stranger) == "store_approval.endorsement"


def test_a_key_that_the_command_key_does_not_endorse_approves_nothing() -> None:
    other = StorePolicySigner(generate_key(), CommandSigner(generate_command_key()[0]))
    forged = other.approve(AGENT, STATE)
    assert refusal(forged) == "store_approval.endorsement"
    forged.endorsement = approval().endorsement
    assert refusal(forged) == "store_approval.endorsement"


def test_an_approval_of_another_state_than_the_signed_one_is_refused() -> None:
    changed = approval()
    changed.approved_policy = policy_pcr_digest({7: bytes(32)})
    assert refusal(changed) == "store_approval.signature"
    changed.approved_policy = b"short"
    assert refusal(changed) == "store_approval.approved_policy"


@pytest.mark.parametrize("pcrs", [[], [4], [7, 14], [7, 7], [9, 7], [7, 24]])
def test_an_approval_over_other_pcrs_than_demanded_or_over_the_firmwares_is_refused(pcrs: list[int]) -> None:
    changed = approval()
    del changed.pcrs[:]
    changed.pcrs.extend(pcrs)
    assert refusal(changed) == "store_approval.pcrs"


def test_an_approval_over_nothing_is_never_made() -> None:
    with pytest.raises(StoreKeyError):
        SIGNER.approve(AGENT, {})


def test_only_a_p256_key_signs_approvals() -> None:
    with pytest.raises(IdentityError):
        StorePolicySigner(PRIVATE, CommandSigner(PRIVATE))


def test_garbage_in_the_key_or_the_signature_is_refused_by_name() -> None:
    changed = approval()
    changed.signature = b"\xff" * 72
    assert refusal(changed) == "store_approval.policy_key or signature"
