# SPDX-License-Identifier: Apache-2.0
"""Attacks with releases: what is no release, or not this fleet's, does not get onto an agent's disk, let alone into its process.

Each has what it takes to command: a stolen controller certificate and the fleet's own command key at the agent, an admin's
certificate at the controller. What it lacks is the release key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from collections.abc import Callable
from functools import partial

from google.protobuf.message import Message
from jarvis.capture.v1 import agent_pb2, release_pb2
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, sign_manifest

from testbed.attack.arena import FLOOR, RELEASE_KEY, Arena
from testbed.attack.model import Attack
from testbed.attack.peers import call
from testbed.fleet import FIRMWARE

_RELEASE_SERVICE = "/jarvis.capture.v1.ReleaseService/"
_LIBRARY = "libjarvis_capture.so"
_ADMIN = "spiffe://arena/operator/admin/ada"
_HOUR_NS = 3600 * 10**9
_PART = 48 * 1024

_Files = dict[str, bytes]


def _release(*, version: str, security_version: int = FLOOR) -> _Files:
    """A genuine release of what was built, not the one that runs."""
    built = Manifest.from_bytes((FIRMWARE / MANIFEST_FILE).read_bytes())
    library = (FIRMWARE / _LIBRARY).read_bytes()
    objects = {_LIBRARY: hashlib.sha256(library).hexdigest()}
    changed = dataclasses.replace(built, version=version, security_version=security_version, objects=objects)
    manifest, signature = sign_manifest(changed, RELEASE_KEY.read_bytes())
    return {MANIFEST_FILE: manifest, SIGNATURE_FILE: signature, _LIBRARY: library}


def _command(arena: Arena, rpc: str, request: Message) -> str:
    """Signed as the controller would sign it, to the victim."""
    payload = request.SerializeToString(deterministic=True)
    authorization = arena.signer.authorize(
        agent_id=arena.victim.agent_id,
        method=AGENT_SERVICE + rpc,
        session_id=arena.info_of(arena.victim).session_id,
        lease_sequence=arena.status_of(arena.victim).lease_sequence,
        request_id=str(uuid.uuid4()),
        principal=_ADMIN,
        expires_ns=12 * _HOUR_NS,
        payload=payload,
    )
    with arena.to_agent(arena.controller) as channel:
        return call(channel, AGENT_SERVICE + rpc, payload, [(AUTHORIZATION_METADATA_KEY, authorization.SerializeToString())])[0]


def _stage(arena: Arena, files: _Files, *, parts_of: str = "") -> str:
    """Stages files in their order until one is refused; of the file that is named all but the last part only."""
    digest = hashlib.sha256(files[MANIFEST_FILE]).digest()
    for name, data in files.items():
        offsets = list(range(0, len(data), _PART))
        for offset in offsets[:-1] if name == parts_of else offsets:
            part = agent_pb2.StageReleaseRequest(
                manifest_sha256=digest, file_name=name, offset=offset, data=data[offset : offset + _PART], size=len(data)
            )
            ended = _command(arena, "StageRelease", part)
            if ended != "OK":
                return ended
    return "OK"


def _activate(arena: Arena, manifest: bytes) -> str:
    digest = hashlib.sha256(manifest).digest()
    return _command(arena, "ActivateRelease", agent_pb2.ActivateReleaseRequest(manifest_sha256=digest))


def _part(arena: Arena, **changes: object) -> str:
    """The first part of a genuine library, whose manifest and signature are there, with a field changed."""
    files = _release(version="7.0.1")
    _stage(arena, {name: files[name] for name in (MANIFEST_FILE, SIGNATURE_FILE)})
    fields: dict[str, object] = {
        "manifest_sha256": hashlib.sha256(files[MANIFEST_FILE]).digest(),
        "file_name": _LIBRARY,
        "offset": 0,
        "data": files[_LIBRARY][:_PART],
        "size": len(files[_LIBRARY]),
    }
    return _command(arena, "StageRelease", agent_pb2.StageReleaseRequest(**{**fields, **changes}))  # type: ignore[arg-type]


def _named(file_name: str) -> Callable[[Arena], str]:
    return partial(_part, file_name=file_name)


def _flipped(files: _Files, name: str) -> _Files:
    data = bytearray(files[name])
    data[len(data) // 2] ^= 1
    return {**files, name: bytes(data)}


def _forged(arena: Arena) -> str:
    return _stage(arena, _flipped(_release(version="7.0.2"), SIGNATURE_FILE))


def _altered(arena: Arena) -> str:
    return _stage(arena, _flipped(_release(version="7.0.3"), _LIBRARY))


def _truncated(arena: Arena) -> str:
    files = _release(version="7.0.4")
    _stage(arena, files, parts_of=_LIBRARY)
    return _activate(arena, files[MANIFEST_FILE])


def _changed_after_staging(arena: Arena) -> str:
    """Root on the host changes what was staged; the command that follows is genuine."""
    files = _release(version="7.0.5")
    _stage(arena, files)
    digest = hashlib.sha256(files[MANIFEST_FILE]).hexdigest()
    path = arena.victim.directory / "state" / "releases" / digest / _LIBRARY
    path.write_bytes(_flipped(files, _LIBRARY)[_LIBRARY])
    return _activate(arena, files[MANIFEST_FILE])


def _another_version(arena: Arena) -> str:
    """Genuine and whole, but the library says another version than its manifest: seen by the trial, in another process."""
    files = _release(version="7.0.6")
    before = arena.info_of(arena.victim).session_id
    _stage(arena, files)
    ended = _activate(arena, files[MANIFEST_FILE])
    return ended if arena.info_of(arena.victim).session_id == before else f"{ended}, and the agent's process is another"


def _downgrade(arena: Arena) -> str:
    """The administrator of the fleet, or who stole that certificate, has a release of before the last hole was closed."""
    files = _release(version="0.0.1", security_version=FLOOR - 1)
    digest = hashlib.sha256(files[MANIFEST_FILE]).digest()
    for name, data in files.items():
        part = release_pb2.AddReleaseRequest(manifest_sha256=digest, file_name=name, data=data[: 512 * 1024], size=len(data))
        ended, _ = call(arena.admin, _RELEASE_SERVICE + "AddRelease", part.SerializeToString())
        if ended != "OK":
            return ended
    return "OK"


_TABLE: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "traversal": ("INVALID_ARGUMENT", "a file ../../tls/agent.key of a release", _named("../../tls/agent.key")),
    "absolute-path": ("INVALID_ARGUMENT", "a file /etc/ld.so.preload of a release", _named("/etc/ld.so.preload")),
    "file-not-named": ("INVALID_ARGUMENT", "a file that the manifest does not name", _named("libevil.so")),
    "directory-name": ("INVALID_ARGUMENT", "a path for a digest", partial(_part, manifest_sha256=b"../" * 10 + b"xx")),
    "oversized": ("INVALID_ARGUMENT", "an object of 1 TiB", partial(_part, size=1 << 40)),
    "offset-gap": ("INVALID_ARGUMENT", "a part with a gap before it", partial(_part, offset=1)),
    "offset-overflow": ("INVALID_ARGUMENT", "a part at offset 2^64-1", partial(_part, offset=(1 << 64) - 1)),
    "forged": ("FIRMWARE_SIGNATURE_INVALID", "a release that the release key did not sign", _forged),
    "altered-object": ("RELEASE_ALTERED", "a signed manifest with another library under it", _altered),
    "truncated": ("RELEASE_INCOMPLETE", "the activation of a release that lacks its last part", _truncated),
    "changed-after-staging": ("RELEASE_ALTERED", "a library changed on the disk after staging", _changed_after_staging),
    "never-staged": ("RELEASE_INCOMPLETE", "the activation of a manifest that never came", partial(_activate, manifest=b"none")),
    "another-version": ("FIRMWARE_VERSION_MISMATCH", "a release whose library is another version", _another_version),
    "downgrade": ("FIRMWARE_BELOW_FLOOR", "a genuine release below the floor handed to the controller", _downgrade),
}  # fmt: skip
_FAST = {"traversal", "altered-object"}

ATTACKS = tuple(
    Attack(name=f"releases/{name}", tries=tries, expected=expected, run=run, is_fast=name in _FAST)
    for name, (expected, tries, run) in _TABLE.items()
)
