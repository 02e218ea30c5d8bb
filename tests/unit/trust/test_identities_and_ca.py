# SPDX-License-Identifier: Apache-2.0
"""SPIFFE identities, roles, the agent id, and the fleet CA's certificates as OpenSSL sees them."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jarvis_trust.ca import (
    FleetCA,
    certificate_not_after,
    fleet_of_ca,
    generate_key,
    identity_of_certificate,
    load_certificate,
    make_csr,
    public_key_from_csr,
    public_key_of,
    spki_sha256,
)
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role, agent_id_from_ek, controller_dns_name, validate_fleet_name

AGENT_ID = "abcdefghijklmnopqrstuvwxyz234567"
AGENT = Identity(fleet="lab.example", role=Role.AGENT, name=AGENT_ID)
CONTROLLER = Identity(fleet="lab.example", role=Role.CONTROLLER, name="c1")
ADMIN = Identity(fleet="lab.example", role=Role.ADMIN, name="bob")
CA = FleetCA.create("lab.example")
KEY = generate_key()
HOUR = timedelta(hours=1)


def leaf(identity: Identity, lifetime: timedelta = HOUR) -> bytes:
    return CA.issue(identity, public_key_of(KEY), lifetime)


@pytest.mark.parametrize(
    ("identity", "uri"),
    [
        (AGENT, f"spiffe://lab.example/agent/{AGENT_ID}"),
        (CONTROLLER, "spiffe://lab.example/controller/c1"),
        (Identity(fleet="lab", role=Role.VIEWER, name="a.b"), "spiffe://lab/operator/viewer/a.b"),
        (Identity(fleet="lab", role=Role.OPERATOR, name="a_b"), "spiffe://lab/operator/operator/a_b"),
        (ADMIN, "spiffe://lab.example/operator/admin/bob"),
    ],
)
def test_an_identity_and_its_spiffe_id_say_the_same(identity: Identity, uri: str) -> None:
    assert identity.uri == uri
    assert Identity.parse(uri) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://lab",
        "spiffe://lab/agent",
        f"spiffe://lab/agent/{AGENT_ID}/",
        f"spiffe://lab/agent/{AGENT_ID}\n",
        f"spiffe://lab/agent/{AGENT_ID.upper()}",
        f"spiffe://lab/agent/{AGENT_ID}2",
        "spiffe://lab/agent/short",
        f"spiffe://Lab/agent/{AGENT_ID}",
        f"spiffe:///agent/{AGENT_ID}",
        f"spiffe://lab:1/agent/{AGENT_ID}",
        f"SPIFFE://lab/agent/{AGENT_ID}",
        f"https://lab/agent/{AGENT_ID}",
        "spiffe://lab/controller/C1",
        "spiffe://lab/controller/c1?x",
        "spiffe://lab/controller/c1#x",
        "spiffe://lab/controller/%63",
        "spiffe://lab/controller/a.b",
        "spiffe://lab/controller/-a",
        "spiffe://lab/controller/../operator/admin/bob",
        "spiffe://lab/operator/bob",
        "spiffe://lab/operator/root/bob",
        "spiffe://lab/operator/admin/",
        "spiffe://lab/operator/admin/.",
        "spiffe://lab/operator/admin/..",
        "spiffe://lab/operator/admin/bob/x",
        "spiffe://lab/operator/admin/böb",
        "spiffe://lab/operator/admin/" + "a" * 64,
        "spiffe://" + "a" * 600 + "/controller/c1",
    ],
)
def test_any_other_spelling_is_no_identity(uri: str) -> None:
    with pytest.raises(IdentityError):
        Identity.parse(uri)


@given(text=st.text(alphabet=st.sampled_from("spiffe:/labgentcorud.-_%\n2é"), max_size=80))
@example(text="spiffe://lab/controller/c")
@settings(max_examples=200, deadline=None)
def test_what_parses_is_its_own_only_spelling(text: str) -> None:
    try:
        identity = Identity.parse(text)
    except IdentityError:
        return
    assert identity.uri == text


FLEETS = ["", "Lab", "lab_1", "-lab", "lab-", "lab..x", ".lab", "lab.", "lab\n", "a" * 64, "a." * 65 + "a"]


@pytest.mark.parametrize("fleet", FLEETS)
def test_a_fleet_name_that_dns_could_not_carry_is_refused(fleet: str) -> None:
    with pytest.raises(IdentityError) as refused:
        validate_fleet_name(fleet)
    assert refused.value.reason == "FLEET_NAME_INVALID"


def test_operator_roles_are_ranked_and_the_others_stand_alone() -> None:
    permitted = {(holder, required) for holder in Role for required in Role if holder.permits(required)}
    assert permitted == {(role, role) for role in Role} | {
        (Role.ADMIN, Role.OPERATOR),
        (Role.ADMIN, Role.VIEWER),
        (Role.OPERATOR, Role.VIEWER),
    }


def test_the_agent_id_follows_from_the_endorsement_key() -> None:
    # printf 'spki' | sha256sum | cut -c1-40 | xxd -r -p | base32 | tr A-Z a-z
    assert agent_id_from_ek(b"spki") == GOLDEN_AGENT_ID
    assert agent_id_from_ek(b"spkj") != GOLDEN_AGENT_ID


def test_only_controllers_bear_the_name_that_clients_dial() -> None:
    shared = controller_dns_name("lab.example")
    assert CONTROLLER.dns_names == ("c1.controllers.lab.example", shared)
    assert AGENT.dns_names == (f"{AGENT_ID}.agents.lab.example",)
    assert ADMIN.dns_names == ()


@pytest.mark.parametrize("identity", [AGENT, CONTROLLER, ADMIN])
def test_a_leaf_names_its_identity_and_no_other(identity: Identity) -> None:
    pem = leaf(identity)
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity.uri]
    assert tuple(names.get_values_for_type(x509.DNSName)) == identity.dns_names
    assert identity_of_certificate(pem) == identity
    assert spki_sha256(pem) == spki_sha256(load_certificate(pem).public_bytes(Encoding.DER))


def test_operators_only_call_while_agents_and_controllers_serve_too() -> None:
    for identity, serves in ((AGENT, True), (CONTROLLER, True), (ADMIN, False)):
        usage = load_certificate(leaf(identity)).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert ExtendedKeyUsageOID.CLIENT_AUTH in usage
        assert (ExtendedKeyUsageOID.SERVER_AUTH in usage) is serves


@pytest.mark.parametrize(("identity", "purpose"), [(AGENT, "sslserver"), (CONTROLLER, "sslserver"), (ADMIN, "sslclient")])
def test_openssl_accepts_the_chain_for_its_purpose(tmp_path: Path, identity: Identity, purpose: str) -> None:
    (tmp_path / "ca.pem").write_bytes(CA.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes(leaf(identity))
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "leaf.pem: OK\n", done.stderr


def test_openssl_refuses_an_operator_as_a_server(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(CA.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes(leaf(ADMIN))
    command = ["openssl", "verify", "-purpose", "sslserver", "-CAfile", "ca.pem", "leaf.pem"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_a_leaf_lives_as_long_as_asked_and_never_longer_than_the_ca() -> None:
    now = datetime(2026, 11, 22, 10, 0, 0, 500_000, tzinfo=UTC)
    ca = FleetCA.create("lab.example", now=now)
    pem = ca.issue(CONTROLLER, public_key_of(KEY), HOUR, now=now)
    assert certificate_not_after(pem) == datetime(2026, 11, 22, 11, 0, 0, tzinfo=UTC)
    assert load_certificate(pem).not_valid_before_utc == datetime(2026, 11, 22, 9, 55, 0, tzinfo=UTC)
    forever = ca.issue(CONTROLLER, public_key_of(KEY), timedelta(days=36500), now=now)
    assert certificate_not_after(forever) == certificate_not_after(ca.certificate_pem)
    later = ca.issue(CONTROLLER, public_key_of(KEY), HOUR, now=now)
    assert load_certificate(later).serial_number != load_certificate(pem).serial_number


def test_a_ca_issues_for_its_own_fleet_for_p256_and_for_a_time_only() -> None:
    stranger = Identity(fleet="other.example", role=Role.CONTROLLER, name="c1")
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    for arguments, reason in (
        ((stranger, public_key_of(KEY), HOUR), "IDENTITY_INVALID"),
        ((CONTROLLER, p384, HOUR), "KEY_INVALID"),
        ((CONTROLLER, public_key_of(KEY), timedelta(0)), "LIFETIME_INVALID"),
    ):
        with pytest.raises(IdentityError) as refused:
            CA.issue(*arguments)
        assert refused.value.reason == reason


def test_a_saved_ca_issues_as_before_and_is_never_overwritten(tmp_path: Path) -> None:
    CA.save(tmp_path)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    again = FleetCA.load(tmp_path)
    assert (again.fleet, again.certificate_pem) == ("lab.example", CA.certificate_pem)
    assert identity_of_certificate(again.issue(AGENT, public_key_of(KEY), HOUR)) == AGENT
    with pytest.raises(FileExistsError):
        FleetCA.create("lab.example").save(tmp_path)


def test_a_ca_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    CA.save(tmp_path)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(IdentityError, match="0640") as refused:
        FleetCA.load(tmp_path)
    assert refused.value.reason == "KEY_FILE_EXPOSED"


def test_a_ca_whose_key_is_another_or_whose_certificate_is_a_leaf_is_refused(tmp_path: Path) -> None:
    CA.save(tmp_path)
    (tmp_path / "ca.key").write_bytes(KEY)
    with pytest.raises(IdentityError, match="not the key of") as refused:
        FleetCA.load(tmp_path)
    assert refused.value.reason == "CA_INVALID"
    (tmp_path / "ca.crt").write_bytes(leaf(CONTROLLER))
    with pytest.raises(IdentityError, match="not a fleet CA") as refused:
        FleetCA.load(tmp_path)
    assert refused.value.reason == "CA_INVALID"


def test_a_csr_gives_its_key_and_nothing_else() -> None:
    assert public_key_from_csr(make_csr(KEY)) == public_key_of(KEY)
    assert x509.load_der_x509_csr(make_csr(KEY)).subject == x509.Name([])


def test_a_csr_for_a_key_that_the_sender_does_not_hold_is_refused() -> None:
    der = bytearray(make_csr(KEY))
    der[-1] ^= 1
    with pytest.raises(IdentityError, match="not signed with the key") as refused:
        public_key_from_csr(bytes(der))
    assert refused.value.reason == "CSR_INVALID"


def test_csrs_of_other_keys_sizes_and_forms_are_refused() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "controller")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    rsa_csr = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()).public_bytes(Encoding.DER)
    p384_csr = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(Encoding.DER)
    for der in (rsa_csr, p384_csr, b"", make_csr(KEY) + b"\0", make_csr(KEY)[:-1], bytes(5000)):
        with pytest.raises(IdentityError) as refused:
            public_key_from_csr(der)
        assert refused.value.reason == "CSR_INVALID"


CSR, LEAF = make_csr(KEY), load_certificate(leaf(AGENT)).public_bytes(Encoding.DER)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_mutated_csr_or_certificate_raises_nothing_but_a_reason(data: st.DataObject) -> None:
    for valid, readers in ((CSR, (public_key_from_csr,)), (LEAF, (identity_of_certificate, spki_sha256, fleet_of_ca))):
        position = data.draw(st.integers(0, len(valid) - 1))
        changed = valid[:position] + data.draw(st.binary(max_size=3)) + valid[position + data.draw(st.integers(0, 3)) :]
        for read in readers:
            try:
                read(changed)
            except IdentityError as refused:
                assert refused.reason  # noqa: PT017 - any reason will do, but nothing else may escape


def with_names(*names: x509.GeneralName) -> bytes:
    """A bare certificate with these alternative names only."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([])).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.now(UTC)).not_valid_after(datetime.now(UTC) + HOUR)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_certificate_with_two_uris_or_none_has_no_identity() -> None:
    uris = [x509.UniformResourceIdentifier(identity.uri) for identity in (AGENT, ADMIN)]
    for pem, words in (
        (with_names(x509.DNSName("x")), "0 URI names"),
        (with_names(*uris), "2 URI names"),
        (with_names(), "no subjectAltName"),
    ):
        with pytest.raises(IdentityError, match=words) as refused:
            identity_of_certificate(pem)
        assert refused.value.reason == "CERTIFICATE_INVALID"


def test_a_certificate_that_does_not_say_that_it_is_a_ca_is_none() -> None:
    with pytest.raises(IdentityError, match="not a fleet CA") as refused:
        fleet_of_ca(with_names(x509.UniformResourceIdentifier("spiffe://lab.example")))
    assert refused.value.reason == "CA_INVALID"


def test_garbage_certificates_and_keys_are_refused() -> None:
    for data in (b"", b"garbage", b"-----BEGIN CERTIFICATE-----\n", bytes(70_000)):
        with pytest.raises(IdentityError) as refused:
            load_certificate(data)
        assert refused.value.reason == "CERTIFICATE_INVALID"
    p384 = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for data in (b"", b"garbage", p384, rsa_key):
        with pytest.raises(IdentityError) as refused:
            make_csr(data)
        assert refused.value.reason == "KEY_INVALID"


GOLDEN_AGENT_ID = "n7xmzdawyvkr3h7lh227o7rnu5z362f5"
