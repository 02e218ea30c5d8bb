# SPDX-License-Identifier: Apache-2.0
"""The CAs that a party trusts: which are accepted, who issued a leaf, and the digest that leases carry."""

from __future__ import annotations

from datetime import timedelta

import pytest
from jarvis_trust.ca import FleetCA, generate_key, load_certificate, public_key_of
from jarvis_trust.ca_bundle import MAX_CAS, CaBundle, ca_id, issued_by
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role

OLD, NEW, OTHER = FleetCA.create("lab"), FleetCA.create("lab"), FleetCA.create("other")
BOTH = CaBundle.parse(OLD.certificate_pem + NEW.certificate_pem)


def leaf(ca: FleetCA) -> bytes:
    return ca.issue(Identity(fleet=ca.fleet, role=Role.VIEWER, name="vera"), public_key_of(generate_key()), timedelta(hours=1))


def test_both_cas_of_a_change_are_trusted() -> None:
    for ca in (OLD, NEW):
        issuer = BOTH.issuer_of(load_certificate(leaf(ca)))
        assert issuer == load_certificate(ca.certificate_pem)


def test_a_ca_of_the_same_name_and_subject_is_another_one() -> None:
    forged = load_certificate(leaf(FleetCA.create("lab")))
    assert BOTH.issuer_of(forged) is None
    assert not issued_by(forged, load_certificate(OLD.certificate_pem))


def test_the_digest_is_another_one_when_another_ca_issues() -> None:
    turned = CaBundle.parse(NEW.certificate_pem + OLD.certificate_pem)
    assert len({BOTH.sha256, turned.sha256, CaBundle.parse(OLD.certificate_pem).sha256}) == 3
    assert CaBundle.parse(BOTH.pem).sha256 == BOTH.sha256


def test_the_same_ca_twice_is_one() -> None:
    assert CaBundle.parse(OLD.certificate_pem * 3).sha256 == CaBundle.parse(OLD.certificate_pem).sha256


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (b"", "not certificates in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n", "not certificates in PEM"),
        (b"x" * 65537, "at most 65536"),
        (OLD.certificate_pem + OTHER.certificate_pem, "'other'"),
        (OLD.certificate_pem + leaf(OLD), "not a fleet CA"),
        (b"".join(FleetCA.create("lab").certificate_pem for _ in range(MAX_CAS + 1)), f"at most {MAX_CAS}"),
    ],
)
def test_what_is_no_set_of_cas_of_one_fleet_is_refused(pem: bytes, said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        CaBundle.parse(pem)


def test_the_cas_must_be_of_the_fleet_that_is_asked_for() -> None:
    with pytest.raises(IdentityError, match="that of 'lab' is accepted"):
        CaBundle.parse(OTHER.certificate_pem, fleet="lab")


def test_two_cas_of_a_fleet_have_different_ids() -> None:
    assert len({ca_id(certificate) for certificate in BOTH.certificates}) == 2
