# SPDX-License-Identifier: Apache-2.0
"""What a running controller makes of releases that are revoked or expired, and of a root that changes under it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jarvis_controller.release_policy import ReleasePolicy
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_root import SignedRoot, encode_root_file, read_root_file, root_version
from jarvis_trust.release_signatures import load_release_public_key, sign_bytes
from jarvis_trust.revocations import Revocations, encode_revocations_file

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.fleet import eventually, running_fleet
from tests.unit.controller.releases import make_release


def revoked(key: ReleaseKey, version: int, *digests: bytes) -> bytes:
    listed = Revocations(
        version=version,
        created="2026-11-22T00:00:00Z",
        expires="2100-01-01T00:00:00Z",
        digests={digest.hex(): "CVE-2026-0001" for digest in digests},
    )
    return encode_revocations_file(listed, [sign_bytes(listed.to_bytes(), key.private_pem)])


async def test_a_revocation_is_in_force_at_once_and_audited(tmp_path: Path, release_key: ReleaseKey) -> None:
    listed = tmp_path / "revoked.json"
    listed.write_bytes(revoked(release_key, 1))
    async with running_fleet(tmp_path, release_key, revocations=listed) as fleet:
        agent = await fleet.add_agent()
        listed.write_bytes(revoked(release_key, 2, fleet.release.sha256))
        await fleet.wait_for_state(agent, "QUARANTINED")  # no interval is waited for: it is 60 s
        row = await fleet.agent_row(agent)
        assert "is revoked: CVE-2026-0001" in row.reason
        audited = [event.action for event in await fleet.controller.store.audit_page(0, 100)]
        assert "releases.changed" in audited
        assert fleet.controller.releases.revocations is not None
        assert fleet.controller.releases.revocations.version == 2


async def test_a_list_that_goes_back_or_is_unsigned_changes_nothing(tmp_path: Path, release_key: ReleaseKey) -> None:
    root, listed, state = tmp_path / "root.json", tmp_path / "revoked.json", tmp_path / "state"
    state.mkdir()
    root.write_bytes(release_key.root)
    listed.write_bytes(revoked(release_key, 5, bytes(32)))
    policy = ReleasePolicy(root_path=root, revocations_path=listed, state_directory=state)
    for data, reason in ((revoked(release_key, 4), "REVOCATIONS_ROLLBACK"), (b"{}", "REVOCATIONS_INVALID")):
        listed.write_bytes(data)
        with pytest.raises(FirmwareError) as refused:
            policy.reload()
        assert refused.value.reason == reason
        assert policy.now().revocations is not None
        assert policy.now().revocations.version == 5  # type: ignore[union-attr]
        with pytest.raises(FirmwareError):  # nor does a restart help
            ReleasePolicy(root_path=root, revocations_path=listed, state_directory=state)


async def test_an_expired_release_is_stale_and_comes_back_by_itself(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key, policy=PolicyText(interval_s=0.5, lease_s=5.0)) as fleet:
        agent = await fleet.add_agent()
        good = agent.release
        agent.release = make_release(release_key, expires="2026-11-22T10:00:01Z")
        await fleet.wait_for_state(agent, "STALE")
        assert "FIRMWARE_EXPIRED: the manifest of jarvis-capture 1.0.0 expired" in (await fleet.agent_row(agent)).reason
        agent.release = good
        await fleet.wait_for_state(agent, "VERIFIED")


def next_root(key: ReleaseKey) -> bytes:
    """The same key, the next version."""
    (first,) = read_root_file(key.root)
    now = datetime.now(UTC)
    public = [load_release_public_key(key.public_pem)]
    root = root_version(public, threshold=1, version=2, created=now, expires=now + timedelta(days=9))
    return encode_root_file([first, SignedRoot(root=root, signatures=(sign_bytes(root.to_bytes(), key.private_pem),))])


async def test_a_root_that_goes_on_is_taken_over_while_the_controller_runs(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        agent = await fleet.add_agent()
        fleet.config.release_root.write_bytes(next_root(release_key))

        async def taken() -> bool:
            return fleet.controller.releases.root.current.version == 2

        await eventually(taken, "the new root is in force")
        await fleet.wait_for_state(agent, "VERIFIED")
