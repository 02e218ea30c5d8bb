# SPDX-License-Identifier: Apache-2.0
"""What jarvisctl trusts, and what it says of a certificate that is about to end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.identities import Identity, Role
from jarvisctl.config import CtlConfig, retired_cas, retired_path
from jarvisctl.credentials import load_credentials
from jarvisctl.errors import CtlError
from jarvisctl.trust_files import update_trust

OLD, NEW = FleetCA.create("lab"), FleetCA.create("lab")
BOTH = OLD.certificate_pem + NEW.certificate_pem


@pytest.fixture
def config(tmp_path: Path) -> CtlConfig:
    key = generate_key()
    vera = Identity(fleet="lab", role=Role.VIEWER, name="vera")
    (tmp_path / "vera.key").write_bytes(key)
    (tmp_path / "vera.key").chmod(0o600)
    (tmp_path / "vera.crt").write_bytes(NEW.issue(vera, public_key_of(key), timedelta(days=30)))
    (tmp_path / "ca.crt").write_bytes(OLD.certificate_pem)
    return CtlConfig(
        endpoint="controller:7440",
        fleet="lab",
        ca=tmp_path / "ca.crt",
        certificate=tmp_path / "vera.crt",
        key=tmp_path / "vera.key",
    )


def test_a_certificate_of_either_ca_is_accepted_once_both_are_trusted(config: CtlConfig) -> None:
    with pytest.raises(CtlError, match="was not issued by the CA"):
        load_credentials(config)
    assert update_trust(config, BOTH)
    assert load_credentials(config).ca_pem == CaBundle.parse(BOTH).pem


def test_a_ca_that_is_trusted_no_more_is_kept_for_old_signatures_alone(config: CtlConfig) -> None:
    update_trust(config, BOTH)
    assert not retired_path(config).exists()
    update_trust(config, NEW.certificate_pem)
    assert config.ca.read_bytes() == NEW.certificate_pem
    assert retired_cas(config) == OLD.certificate_pem
    assert update_trust(config, NEW.certificate_pem, OLD.certificate_pem) == []


def test_cas_of_another_fleet_are_not_taken_over(config: CtlConfig) -> None:
    with pytest.raises(CtlError, match="'other'"):
        update_trust(config, BOTH + FleetCA.create("other").certificate_pem)
    assert config.ca.read_bytes() == OLD.certificate_pem


@pytest.mark.parametrize(("days", "is_said"), [(20, False), (25, True)])
def test_an_end_that_is_near_is_said(config: CtlConfig, days: int, is_said: bool) -> None:
    update_trust(config, BOTH)
    credentials = load_credentials(config, datetime.now(UTC) + timedelta(days=days))
    assert ("certs renew" in credentials.expires_soon) is is_said
