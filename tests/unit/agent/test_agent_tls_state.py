# SPDX-License-Identifier: Apache-2.0
"""What an agent keeps of its certificate, of the CAs that it trusts, and of the join file that it used."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from jarvis_agent.tls_key import SoftwareTlsKey
from jarvis_agent.tls_state import TlsState
from jarvis_trust.ca import FleetCA, public_key_of
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role

OLD, NEW = FleetCA.create("lab"), FleetCA.create("lab")
AGENT = Identity(fleet="lab", role=Role.AGENT, name="a" * 32)
BOTH = OLD.certificate_pem + NEW.certificate_pem
TOKEN = "t" * 43


def state(directory: Path) -> TlsState:
    return TlsState(directory, identity=AGENT, ca_pem=OLD.certificate_pem)


def _pem(tls: TlsState) -> bytes:
    assert isinstance(tls.key, SoftwareTlsKey)
    return tls.key.key_pem


def issued(tls: TlsState, ca: FleetCA, identity: Identity = AGENT) -> bytes:
    return ca.issue(identity, public_key_of(_pem(tls)), timedelta(hours=1))


def test_the_join_files_ca_is_trusted_until_the_controller_sends_others(tmp_path: Path) -> None:
    tls = state(tmp_path)
    assert tls.trust.pem == OLD.certificate_pem
    tls.install(issued(tls, OLD), BOTH)
    assert state(tmp_path).trust.sha256 == CaBundle.parse(BOTH).sha256


def test_a_certificate_of_a_new_ca_comes_with_it(tmp_path: Path) -> None:
    tls = state(tmp_path)
    with pytest.raises(IdentityError, match="not issued by a CA"):
        tls.install(issued(tls, NEW))
    tls.install(issued(tls, NEW), BOTH)
    again = state(tmp_path)
    assert again.current is not None
    again.install(issued(again, NEW), NEW.certificate_pem)
    with pytest.raises(IdentityError, match="not issued by a CA"):
        again.install(issued(again, OLD))


def test_a_ca_of_another_fleet_is_not_taken_over(tmp_path: Path) -> None:
    tls = state(tmp_path)
    with pytest.raises(IdentityError, match="'other'"):
        tls.install(issued(tls, OLD), BOTH + FleetCA.create("other").certificate_pem)
    assert tls.trust.pem == OLD.certificate_pem
    assert tls.current is None


def test_a_refused_certificate_leaves_the_cas_as_they_were(tmp_path: Path) -> None:
    tls = state(tmp_path)
    stranger = Identity(fleet="lab", role=Role.AGENT, name="b" * 32)
    with pytest.raises(IdentityError, match="names"):
        tls.install(issued(tls, NEW, stranger), NEW.certificate_pem)
    assert state(tmp_path).trust.pem == OLD.certificate_pem


def test_another_join_file_begins_anew_with_another_key(tmp_path: Path) -> None:
    tls = state(tmp_path)
    tls.joins_with(TOKEN, OLD.certificate_pem)
    tls.install(issued(tls, NEW), NEW.certificate_pem)
    key = _pem(tls)
    tls.joins_with("u" * 43, BOTH)
    assert tls.current is None
    assert _pem(tls) != key
    assert tls.trust.sha256 == CaBundle.parse(BOTH).sha256
    again = state(tmp_path)
    assert (_pem(again), again.current) == (_pem(tls), None)


def test_the_same_join_file_changes_nothing(tmp_path: Path) -> None:
    tls = state(tmp_path)
    tls.joins_with(TOKEN, OLD.certificate_pem)
    tls.install(issued(tls, NEW), BOTH)
    again = state(tmp_path)
    again.joins_with(TOKEN, OLD.certificate_pem)
    assert again.current is not None
    assert _pem(again) == _pem(tls)
    assert again.trust.sha256 == CaBundle.parse(BOTH).sha256


def test_a_host_that_joined_before_this_was_noted_goes_on(tmp_path: Path) -> None:
    tls = state(tmp_path)
    tls.install(issued(tls, OLD))
    again = state(tmp_path)
    again.joins_with(TOKEN, OLD.certificate_pem)
    assert again.current is not None


def test_the_token_itself_is_not_kept(tmp_path: Path) -> None:
    state(tmp_path).joins_with(TOKEN, OLD.certificate_pem)
    assert all(TOKEN.encode() not in path.read_bytes() for path in tmp_path.iterdir())
