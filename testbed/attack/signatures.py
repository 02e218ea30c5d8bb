# SPDX-License-Identifier: Apache-2.0
"""Attacks on the release chain, in a fleet whose root demands two of two keys: each host comes up with a release of its own.

The attacker has one of the two keys, old releases, the host's disk, or keys of his own; never two of the fleet's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jarvis_trust.encoding import canonical_json, rfc3339_utc
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from jarvis_trust.release_root import ROOT_FILE, RootVersion, SignedRoot, encode_root_file, root_version
from jarvis_trust.release_signatures import (
    Signature,
    encode_signatures,
    generate_release_key,
    key_id,
    load_release_public_key,
    sign_bytes,
)
from jarvis_trust.revocations import Revocations, encode_revocations_file

from testbed.attack.arena import RELEASE_KEY, Arena
from testbed.attack.model import Attack
from testbed.attack.stored import reasons_in
from testbed.fleet import FIRMWARE, Agent, Fleet, wait_for
from testbed.policy import PolicyText

_MINIMUM = 4
_REVOKED_AT = "2026-11-22T11:00:00Z"
"""`created` of the manifest that is revoked."""
_REFUSED = re.compile(r"firmware refused \(([A-Z_]+)\)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """PEM of the fleet's two keys and of the attacker's."""

    first: bytes
    second: bytes
    own: bytes
    public: tuple[bytes, bytes, bytes]

    def id_of(self, position: int) -> str:
        return key_id(load_release_public_key(self.public[position]))


Signing = Callable[[bytes, _Keys], bytes]


def _keys(arena: Arena) -> _Keys:
    """Made once: the arena's own release key is one of the two."""
    if "release-second" not in arena.notes:
        arena.notes["release-second"], arena.notes["release-second-public"] = generate_release_key()
        arena.notes["release-own"], arena.notes["release-own-public"] = generate_release_key()
    public = RELEASE_KEY.with_suffix(".pub").read_bytes(), arena.notes["release-second-public"], arena.notes["release-own-public"]
    return _Keys(
        first=RELEASE_KEY.read_bytes(), second=arena.notes["release-second"], own=arena.notes["release-own"], public=public
    )


def _both(data: bytes, keys: _Keys) -> bytes:
    return encode_signatures([sign_bytes(data, keys.first), sign_bytes(data, keys.second)])


def _one(data: bytes, keys: _Keys) -> bytes:
    return encode_signatures([sign_bytes(data, keys.first)])


def _one_twice(data: bytes, keys: _Keys) -> bytes:
    return canonical_json({"signatures": [sign_bytes(data, keys.first).to_object() for _ in range(2)]})


def _lent(data: bytes, keys: _Keys) -> bytes:
    genuine = sign_bytes(data, keys.first)
    return encode_signatures([genuine, Signature(keyid=keys.id_of(1), value=genuine.value)])


def _and_own(data: bytes, keys: _Keys) -> bytes:
    return encode_signatures([sign_bytes(data, keys.first), sign_bytes(data, keys.own)])


def _own(data: bytes, keys: _Keys) -> bytes:
    return encode_signatures([sign_bytes(data, keys.own)])


def _manifest(**changes: object) -> bytes:
    """Of what was built, of security version 6."""
    built = Manifest.from_bytes((FIRMWARE / MANIFEST_FILE).read_bytes())
    return dataclasses.replace(built, **{"security_version": 6, **changes}).to_bytes()  # type: ignore[arg-type]


def _root_of(*public: bytes) -> RootVersion:
    now = datetime.now(UTC)
    keys = [load_release_public_key(pem) for pem in public]
    return root_version(keys, threshold=len(keys), version=1, created=now, expires=now + timedelta(days=30))


def _root_file(root: RootVersion, *private: bytes) -> bytes:
    signatures = tuple(sign_bytes(root.to_bytes(), pem) for pem in private)
    return encode_root_file([SignedRoot(root=root, signatures=signatures)])


def _release(directory: Path, manifest: bytes, signatures: bytes) -> None:
    if not directory.exists():
        shutil.copytree(FIRMWARE, directory, ignore=shutil.ignore_patterns(ROOT_FILE))
    (directory / MANIFEST_FILE).write_bytes(manifest)
    (directory / SIGNATURE_FILE).write_bytes(signatures)


def fleet_of(arena: Arena) -> Fleet:
    """Two of two keys, one manifest revoked; started by the first attack on it, ended with the arena."""
    if (fleet := arena.other_fleets.get("releases")) is not None:
        return fleet
    keys, directory = _keys(arena), arena.directory / "releases"
    directory.mkdir()
    root, revoked = directory / ROOT_FILE, directory / "revoked.json"
    root.write_bytes(_root_file(_root_of(*keys.public[:2]), keys.first, keys.second))
    now = datetime.now(UTC).replace(microsecond=0)
    listed = Revocations(
        version=1,
        created=rfc3339_utc(now),
        expires=rfc3339_utc(now + timedelta(days=30)),
        digests={hashlib.sha256(_manifest(created=_REVOKED_AT)).hexdigest(): "CVE-2026-0001"},
    )
    revoked.write_bytes(
        encode_revocations_file(listed, [sign_bytes(listed.to_bytes(), key) for key in (keys.first, keys.second)])
    )
    _release(
        directory / "firmware",
        _manifest(minimum_security_version=_MINIMUM),
        _both(_manifest(minimum_security_version=_MINIMUM), keys),
    )
    fleet = Fleet(
        directory=arena.directory / "release-fleet",
        name="releases",
        policy=PolicyText(interval_s=1, lease_s=60),
        firmware=directory / "firmware",
        release_root=root,
        settings={"revocations": str(revoked)},
    )
    fleet.__enter__()
    arena.other_fleets["releases"] = fleet
    fleet.start()
    return fleet


def _verified(fleet: Fleet) -> Agent:
    """A host of its own that runs a release signed by both."""
    agent = fleet.add_agent(f"host-{len(fleet.agents)}")
    fleet.wait_for_state(agent, "verified", seconds=60)
    return agent


def _host(signing: Signing, state: str = "quarantined", **changes: object) -> Callable[[Arena], str]:
    """The host's release is exchanged for another; what the controller says of it."""

    def run(arena: Arena) -> str:
        fleet = fleet_of(arena)
        agent = _verified(fleet)
        agent.stop()
        manifest = _manifest(**changes)
        _release(agent.directory / "firmware", manifest, signing(manifest, _keys(arena)))
        agent.start()
        try:
            wait_for("a refusal", lambda: reasons_in(_row(fleet, agent, state)) not in {"", "ATTESTATION_STALE"}, seconds=40)
            return reasons_in(_row(fleet, agent, state))
        finally:
            agent.stop()

    return run


def _row(fleet: Fleet, agent: Agent, state: str) -> str:
    (row,) = [row for row in fleet.rows("agents", "list") if row["agent_id"] == agent.agent_id]
    return str(row["reason"]) if row["state"] == state else ""


def _own_root(arena: Arena) -> str:
    """Root and release are exchanged together and the agent's memory is wiped: it loads them, the controller pins its own."""
    fleet, keys = fleet_of(arena), _keys(arena)
    agent = _verified(fleet)
    agent.stop()
    manifest = _manifest()
    _release(agent.directory / "firmware", manifest, _own(manifest, keys))
    (agent.directory / ROOT_FILE).write_bytes(_root_file(_root_of(keys.public[2]), keys.own))
    (agent.directory / "state" / "release-root.json").unlink()
    agent.start()
    try:
        return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=40)["reason"])
    finally:
        agent.stop()


def _agent_refuses(change: Callable[[Agent, _Keys], None]) -> Callable[[Arena], str]:
    """What the host's own agent says of what it finds at its next start."""

    def run(arena: Arena) -> str:
        fleet, keys = fleet_of(arena), _keys(arena)
        agent = _verified(fleet)
        wait_for("the TPM's floor to rise", lambda: "rollback floor rose" in agent.log.read_text(), log=agent.log)
        agent.stop()
        change(agent, keys)
        before = len(_REFUSED.findall(agent.log.read_text()))
        agent.start()
        try:
            wait_for("a refusal", lambda: len(_REFUSED.findall(agent.log.read_text())) > before, log=agent.log)
            return str(_REFUSED.findall(agent.log.read_text())[-1])
        finally:
            agent.stop()

    return run


def _older(agent: Agent, keys: _Keys) -> None:
    manifest = _manifest(security_version=_MINIMUM - 1)
    _release(agent.directory / "firmware", manifest, _both(manifest, keys))


def _older_and_wiped(agent: Agent, keys: _Keys) -> None:
    _older(agent, keys)
    for path in (agent.directory / "state").glob("*.json"):
        path.unlink()


def _other_root(agent: Agent, keys: _Keys) -> None:
    (agent.directory / ROOT_FILE).write_bytes(_root_file(_root_of(keys.public[2]), keys.own))


def _own_version(agent: Agent, keys: _Keys) -> None:
    """The genuine root with a next version of the attacker's."""
    genuine = _root_of(*keys.public[:2])
    first = SignedRoot(root=genuine, signatures=tuple(sign_bytes(genuine.to_bytes(), key) for key in (keys.first, keys.second)))
    own = dataclasses.replace(_root_of(keys.public[2]), version=2)
    second = SignedRoot(root=own, signatures=(sign_bytes(own.to_bytes(), keys.own), sign_bytes(own.to_bytes(), keys.first)))
    (agent.directory / ROOT_FILE).write_bytes(encode_root_file([first, second]))


ATTACKS = (
    Attack(
        name="signatures/one-signature-of-two",
        tries="a release that one of the two keys signed",
        expected="FIRMWARE_THRESHOLD_NOT_MET",
        run=_host(_one),
        is_fast=True,
    ),
    Attack(
        name="signatures/one-key-twice",
        tries="theupdateframework/specification#155: two different signatures of one key",
        expected="FIRMWARE_THRESHOLD_NOT_MET",
        run=_host(_one_twice),
    ),
    Attack(
        name="signatures/signature-under-another-id",
        tries="one key's signature under the ids of both",
        expected="FIRMWARE_THRESHOLD_NOT_MET",
        run=_host(_lent),
    ),
    Attack(
        name="signatures/one-key-and-an-own-one",
        tries="a stolen key's signature and one of a key of the attacker's own",
        expected="FIRMWARE_THRESHOLD_NOT_MET",
        run=_host(_and_own),
    ),
    Attack(
        name="signatures/own-root",
        tries="the host's root exchanged for one of the attacker's own, its memory of the genuine one wiped",
        expected="FIRMWARE_SIGNATURE_INVALID",
        run=_own_root,
    ),
    Attack(
        name="signatures/expired",
        tries="freeze: a release that both keys signed, beyond its time",
        expected="FIRMWARE_EXPIRED",
        run=_host(_both, "stale", created="2026-01-01T00:00:00Z", expires="2026-02-01T00:00:00Z"),
    ),
    Attack(
        name="signatures/revoked",
        tries="a release that both keys signed and that is revoked",
        expected="FIRMWARE_REVOKED",
        run=_host(_both, created=_REVOKED_AT),
    ),
    Attack(
        name="signatures/below-the-tpms-floor",
        tries="an old release that both keys signed, on a host that ran one which set a higher floor",
        expected="FIRMWARE_BELOW_FLOOR",
        run=_agent_refuses(_older),
    ),
    Attack(
        name="signatures/below-the-tpms-floor-wiped",
        tries="the same after the agent's memory was wiped",
        expected="FIRMWARE_BELOW_FLOOR",
        run=_agent_refuses(_older_and_wiped),
    ),
    Attack(
        name="signatures/another-root",
        tries="the root exchanged for one of the attacker's own, before an agent that knows the genuine one",
        expected="RELEASE_ROOT_NOT_SUCCESSOR",
        run=_agent_refuses(_other_root),
    ),
    Attack(
        name="signatures/own-root-appended",
        tries="a next version of the root that one of the two old keys signed",
        expected="RELEASE_ROOT_UNSIGNED",
        run=_agent_refuses(_own_version),
    ),
)
