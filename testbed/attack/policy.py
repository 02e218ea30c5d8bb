# SPDX-License-Identifier: Apache-2.0
"""Attacks on the policy, with an administrator's certificate or the controller's configuration; hosts that it does not accept.

What is refused leaves the fleet under attack as it is; what has to be in force first is in a fleet of its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable

from jarvis.capture.v1 import policy_pb2
from jarvis_trust.release_signatures import generate_release_key

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.attack.peers import call
from testbed.attack.stored import reasons_in
from testbed.boot import boot_log, signed_reference, uefi_boot
from testbed.fleet import Fleet, FleetError, program, wait_for
from testbed.policy import PolicyText

_APPLY = "/jarvis.capture.v1.PolicyService/ApplyPolicy"
_GET = "/jarvis.capture.v1.PolicyService/GetPolicy"
_PCRS = list(range(9))


def _in_force(arena: Arena) -> policy_pb2.PolicyDocument:
    ended, answer = call(arena.admin, _GET)
    if ended != "OK":
        raise FleetError(f"the policy in force cannot be asked for: {ended}")
    return policy_pb2.GetPolicyResponse.FromString(answer).policy.document


def apply(arena: Arena, text: PolicyText, files: dict[str, bytes] | None = None) -> str:
    """The policy in force, written otherwise and applied by an administrator."""
    document = _in_force(arena)
    roots = [file.name for file in document.files]
    document.text = text.toml(roots)
    document.files.extend(policy_pb2.PolicyFile(name=name, data=data) for name, data in (files or {}).items())
    return call(arena.admin, _APPLY, policy_pb2.ApplyPolicyRequest(document=document).SerializeToString())[0]


def next_policy(arena: Arena) -> PolicyText:
    """The policy in force under the version after it."""
    return dataclasses.replace(arena.fleet.policy, version=arena.fleet.policy.version + 1)


def _lower_floor(arena: Arena) -> str:
    return apply(arena, dataclasses.replace(arena.fleet.policy, floor=0))


def _look_away(failure: str) -> Callable[[Arena], str]:
    return lambda arena: apply(arena, dataclasses.replace(next_policy(arena), failures={failure: "report"}))


def _foreign_set(arena: Arena) -> str:
    private_pem, _ = generate_release_key()
    files = signed_reference(boot_log(uefi_boot(kernel=b"a rootkit")), private_pem, pcrs=_PCRS, version=2)
    text = dataclasses.replace(next_policy(arena), boot_pcrs=_PCRS, references=["good.json"])
    return apply(arena, text, files)


def _no_vendor(arena: Arena) -> str:
    document = _in_force(arena)
    document.text = next_policy(arena).toml()
    return call(arena.admin, _APPLY, policy_pb2.ApplyPolicyRequest(document=document).SerializeToString())[0]


def _oversized(arena: Arena) -> str:
    document = _in_force(arena)
    document.text += "#" * 1_030_000
    return call(arena.admin, _APPLY, policy_pb2.ApplyPolicyRequest(document=document).SerializeToString())[0]


def _fleet(arena: Arena, policy: PolicyText) -> Fleet:
    directory = arena.directory / f"policy-{len(list(arena.directory.glob('policy-*')))}"
    return Fleet(directory=directory, name="policy", policy=policy)


def _edited_file(arena: Arena) -> str:
    """policy.toml is made laxer under the same version, and the controller started again."""
    with _fleet(arena, PolicyText(floor=1)) as fleet:
        fleet.start()
        fleet.stop()
        fleet.set_policy(PolicyText(floor=0))
        command = [program("jarvis-controller"), "run", "--config", str(fleet.controller_directory / "controller.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return reasons_in(done.stderr) if done.returncode == 2 else "OK"


def _older_file(arena: Arena) -> str:
    """An older, laxer policy.toml is put back and the controller started again: what was applied stays in force."""
    with _fleet(arena, PolicyText(interval_s=1, lease_s=60)) as fleet:
        fleet.start()
        agent = fleet.add_agent("host")
        fleet.wait_for_state(agent, "verified", seconds=60)
        applied = fleet.set_policy(PolicyText(version=2, interval_s=1, lease_s=60, versions=["9.9.9"]))
        fleet.jarvisctl("policy", "apply", str(applied))
        fleet.wait_for_state(agent, "quarantined")
        fleet.stop()
        fleet.set_policy(PolicyText(interval_s=1, lease_s=60))
        fleet.start()
        fleet.jarvisctl("agents", "release", agent.agent_id, "--reason", "the old policy is back")
        return reasons_in(fleet.wait_for_state(agent, "quarantined")["reason"])


def _refused_host(vendors: dict[str, list[str]]) -> Callable[[Arena], str]:
    """A genuine TPM of an accepted root that the policy names out asks to join."""

    def run(arena: Arena) -> str:
        with _fleet(arena, PolicyText(vendors=vendors)) as fleet:
            fleet.start()
            agent = fleet.add_agent("host")

            def refused() -> str:
                rows = fleet.rows("audit", "list", check=False)
                found = [json.loads(row["detail"])["reason"] for row in rows if row["action"] == "enroll.refused"]
                return found[0] if found else ""

            return str(wait_for("the host to be refused", refused, seconds=60, log=agent.log))

    return run


_TABLE: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "floor-lowered": ("POLICY_VERSION_OLD", "a laxer policy under the version that is in force", _lower_floor),
    "signature-looked-away-from": (
        "POLICY_INVALID", "a policy that only reports quotes without a good signature", _look_away("signature"),
    ),
    "nonce-looked-away-from": ("POLICY_INVALID", "a policy that only reports replays", _look_away("qualifying-data")),
    "firmware-looked-away-from": ("POLICY_INVALID", "a policy that only reports foreign firmware", _look_away("firmware")),
    "foreign-reference-set": ("POLICY_INVALID", "a boot as recorded by somebody else than the release key's owner", _foreign_set),
    "no-vendor": ("POLICY_INVALID", "a policy under which every TPM would be genuine", _no_vendor),
    "oversized": ("REQUEST_TOO_LARGE", "a policy of more than 992 KiB", _oversized),
    "file-edited": ("POLICY_VERSION_REUSED", "policy.toml made laxer under the same version", _edited_file),
    "file-put-back": (
        "FIRMWARE_VERSION_NOT_ACCEPTED", "an older policy.toml put back, and firmware that it accepted", _older_file,
    ),
    "vendor-not-named": (
        "EK_VENDOR_NOT_ACCEPTED", "a genuine TPM of a manufacturer that is not named", _refused_host({"manufacturers": ["id:0"]}),
    ),
    "model-not-named": ("EK_MODEL_NOT_ACCEPTED", "a genuine TPM of another model", _refused_host({"models": ["other"]})),
    "ek-not-named": ("EK_NOT_ALLOWED", "a genuine TPM whose key is not on the list", _refused_host({"ek_sha256": ["ab" * 32]})),
}  # fmt: skip

ATTACKS = tuple(
    Attack(name=f"policy/{name}", tries=tries, expected=expected, run=run, is_fast=name == "signature-looked-away-from")
    for name, (expected, tries, run) in _TABLE.items()
)
