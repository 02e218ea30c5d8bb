# SPDX-License-Identifier: Apache-2.0
"""Attacks by way of agents without a TPM: an identity that is a file must not become anybody else's, nor admit by itself.

Enrolments are tried at the arena's own controller, which names no such agent, and at one that does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jarvis.capture.v1.enrollment_pb2 import EnrollParams
from jarvis_trust.ca import generate_key
from jarvis_trust.keyfiles import write_private
from jarvis_trust.software_identity import SoftwareSigner

from testbed.attack.arena import Arena
from testbed.attack.enrollment import other_params, say
from testbed.attack.evidence import telling
from testbed.attack.model import Attack
from testbed.attack.stored import reasons_in
from testbed.fleet import Fleet, wait_for
from testbed.policy import PolicyText


def _software_params(arena: Arena) -> EnrollParams:
    params = other_params(arena)
    for field in ("ek_certificate", "ek_chain", "ek_public", "ak_public"):
        params.ClearField(field)
    params.software_public = SoftwareSigner(generate_key()).spki_der
    return params


def _not_named(arena: Arena) -> str:
    path = arena.directory / "join-without-tpm.json"
    arena.fleet.jarvisctl("enroll", "token", "--without-tpm", "-o", str(path))
    params = _software_params(arena)
    params.token = json.loads(path.read_text())["token"]
    path.unlink()
    return say(arena, params)


def _token_for_a_tpm(arena: Arena) -> str:
    return say(arena, _software_params(arena))


def _beside_a_tpm(arena: Arena) -> str:
    params = other_params(arena)
    params.software_public = SoftwareSigner(generate_key()).spki_der
    return say(arena, params)


def _other_curve(arena: Arena) -> str:
    params = _software_params(arena)
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    params.software_public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return say(arena, params)


def _trailing(arena: Arena) -> str:
    params = _software_params(arena)
    params.software_public += b"\0"
    return say(arena, params)


def _fleet_of(arena: Arena, key: bytes) -> Fleet:
    """A fleet that names the agent of this key."""
    fleet = Fleet(
        directory=arena.directory / "software-fleet",
        name="software",
        policy=PolicyText(interval_s=1, lease_s=60, without_tpm={"agents": [SoftwareSigner(key).agent_id]}),
    )
    fleet.__enter__()
    arena.other_fleets["software"] = fleet
    fleet.start()
    return fleet


def _withdrawn(arena: Arena) -> str:
    """It was named, enrolled and verified; then the policy's word is taken back."""
    key = generate_key()
    fleet = _fleet_of(arena, key)
    directory = fleet.directory / "host" / "state"
    directory.mkdir(parents=True, mode=0o700)
    write_private(directory / "identity.key", key)
    agent = fleet.add_agent("host", without_tpm=True)
    row = fleet.wait_for_state(agent, "verified", seconds=40)
    if row["assurance"] != "L0":
        return f"verified as {row['assurance']}"
    withdrawn = dataclasses.replace(fleet.policy, version=2, without_tpm={})
    fleet.jarvisctl("policy", "apply", str(fleet.set_policy(withdrawn)))
    return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=40)["reason"])


def _exposed_key(arena: Arena) -> str:
    """Others on the host can read the identity key: the agent does not start with it."""
    agent = arena.fleet.add_agent("exposed", without_tpm=True)
    try:
        path = agent.directory / "state" / "identity.key"
        wait_for("its key", path.exists, log=agent.log)
        agent.stop()
        path.chmod(0o640)
        agent.start()
        wait_for("it to refuse", lambda: "has mode 0640" in agent.log.read_text(), log=agent.log)
        return "KEY_FILE_EXPOSED"
    finally:
        agent.stop()


_TABLE: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "not-named": ("AGENT_WITHOUT_TPM", "a host without a TPM that the policy does not name", _not_named),
    "token-for-a-tpm": ("TPM_REQUIRED", "a host without a TPM, with a join token made for one that has it", _token_for_a_tpm),
    "beside-a-tpm": ("SOFTWARE_IDENTITY_INVALID", "a software key that is to prove what a TPM's keys claim", _beside_a_tpm),
    "other-curve": ("SOFTWARE_IDENTITY_INVALID", "an identity key of another curve", _other_curve),
    "second-encoding": ("SOFTWARE_IDENTITY_INVALID", "a second encoding of a key, for a second id", _trailing),
    "tpm-left-out": (
        "ATTEST_INVALID+ATTEST_MAGIC_WRONG+ATTEST_TYPE_WRONG+TPM_SIGNATURE_INVALID",
        "an agent that enrolled with a TPM answers as one without",
        telling("software-evidence"),
    ),
    "exposed-key": ("KEY_FILE_EXPOSED", "an identity key that others can read", _exposed_key),
    "withdrawn": ("AGENT_WITHOUT_TPM", "a host that the policy named once", _withdrawn),
}

ATTACKS = tuple(
    Attack(name=f"without-tpm/{name}", tries=tries, expected=expected, run=run, is_fast=name in {"not-named", "tpm-left-out"})
    for name, (expected, tries, run) in _TABLE.items()
)
