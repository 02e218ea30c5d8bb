# SPDX-License-Identifier: Apache-2.0
"""policy.toml: every mistake is named, with its value and what would be accepted, and nothing of a bad file is taken."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_controller.policy import FleetPolicy
from jarvis_controller.policy_file import parse_policy
from jarvis_controller.verifier import NOT_EVALUATED, REPORTABLE
from jarvis_trust.collector_allow_list import AllowList
from jarvis_trust.errors import PolicyError
from jarvis_trust.policy_document import MAX_DOCUMENT_BYTES, PolicyDocument, read_document

from testbed.boot import boot_log, signed_reference, uefi_boot
from testbed.policy import PolicyText
from tests.support import ROOT, ReleaseKey
from tests.unit.controller.software_tpm import Vendor

EXAMPLE = ROOT / "controller" / "policy.example.toml"
ROOT_PEM = Vendor().root_pem
PCRS = (0, 1, 2, 3, 4, 5, 6, 7)
ID = "a" * 32
L2 = {"selector": "site=dmz", "level": "L2", "references": ["good.json"]}


@pytest.fixture(scope="module")
def files(release_key: ReleaseKey) -> dict[str, bytes]:
    return {"vendor.pem": ROOT_PEM, **signed_reference(boot_log(uefi_boot()), release_key.private_pem, pcrs=PCRS)}


def policy_of(text: PolicyText | str, files: dict[str, bytes], release_key: ReleaseKey) -> FleetPolicy:
    toml = text if isinstance(text, str) else text.toml(["vendor.pem"])
    return parse_policy(PolicyDocument(text=toml, files=files), release_key.release_root)


def test_what_is_not_said_has_its_default(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    text = 'name = "lab"\nversion = 3\n[vendors]\nroots = ["vendor.pem"]\n[[rule]]\nselector = ""\nlevel = "L1"\n'
    policy = policy_of(text, files, release_key)
    mine = policy.for_agent(ID, {"site": "dmz"})
    assert (policy.name, policy.version, policy.vendors.roots) == ("lab", 3, (ROOT_PEM,))
    assert (mine.interval_s, mine.lease_ns, mine.pcr, mine.quoted_pcrs) == (60.0, 600 * 10**9, 14, (14,))
    assert (mine.firmware_floor, mine.firmware_versions, mine.boot, mine.reported) == (0, frozenset(), None, frozenset())
    assert not policy.without_tpm.permits(ID, {"tpm": "none"})
    assert policy.collectors == AllowList.parse([])


def test_the_first_rule_that_means_an_agent_is_its_rule(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    strict = {**L2, "require_secure_boot": True, "interval_s": 5, "lease_s": 20}
    rules = [strict, {"selector": "site", "level": "L1", "lease_s": 90}]
    policy = policy_of(PolicyText(boot_pcrs=PCRS, rules=rules), files, release_key)
    dmz, lab, other = (policy.for_agent(ID, labels) for labels in ({"site": "dmz"}, {"site": "lab"}, {}))
    assert dmz.boot is not None
    assert (dmz.boot.pcrs, dmz.boot.require_secure_boot, dmz.boot.references[0].name) == (PCRS, True, "good")
    assert (dmz.interval_s, dmz.lease_ns, dmz.rule) == (5.0, 20 * 10**9, "site=dmz")
    assert (lab.boot, lab.interval_s, lab.lease_ns) == (None, 60.0, 90 * 10**9)
    assert (other.boot, other.lease_ns, other.rule) == (None, 600 * 10**9, "")
    assert {one.quoted_pcrs for one in (dmz, lab, other)} == {(*PCRS, 14)}


def test_hosts_without_a_tpm_are_named_by_id_or_label(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    named = {"agents": [ID], "selector": "tpm=none,!prod"}
    permits = policy_of(PolicyText(without_tpm=named), files, release_key).without_tpm.permits
    assert permits(ID, {})
    assert permits("b" * 32, {"tpm": "none"})
    assert not permits("b" * 32, {"tpm": "none", "prod": "1"})
    assert not permits("b" * 32, {})


def test_a_reason_has_its_own_word_before_that_of_its_check(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    failures = {
        "boot-events": "report",
        "SECURE_BOOT_OFF": "quarantine",
        "TPM_FIRMWARE_CHANGED": "report",
        "signature": "quarantine",
    }
    assert policy_of(PolicyText(failures=failures), files, release_key).reported == {
        ("boot-events", "BOOT_EVENT_INVALID"),
        ("boot-events", NOT_EVALUATED),
        ("tpm-firmware", "TPM_FIRMWARE_CHANGED"),
    }


def test_what_may_be_exported_to_is_read_entry_by_entry(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    entries = ("192.0.2.0/24", "[2001:db8::]/32:4739", "*.siem.example", "file")
    collectors = policy_of(PolicyText(collectors=entries), files, release_key).collectors
    assert collectors.entries == entries
    assert collectors.permits_files
    assert collectors.permits("a.siem.example", 2055)
    assert not collectors.permits("2001:db8::1", 2055)


@pytest.mark.parametrize(
    "name",
    ["signature", "qualifying-data", "ak", "challenge", "pcr-values", "manifest", "firmware", "clock", "SIGNATURE_INVALID",
     "NONCE_MISMATCH", "FIRMWARE_UNTRUSTED_MEASUREMENT", "NOT_EVALUATED", "VERIFIER_ERROR"],
)  # fmt: skip
def test_what_proves_the_quote_or_the_firmware_cannot_be_only_reported(
    files: dict[str, bytes], release_key: ReleaseKey, name: str
) -> None:
    with pytest.raises(PolicyError, match=rf"failures\.{name} = 'report': \"quarantine\".*boot-reference.*is accepted"):
        policy_of(PolicyText(failures={name: "report"}), files, release_key)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, r"name = '': 1-64 of"),
        ({"version": 0}, r"version = 0: a whole number of 1\.\."),
        ({"roots": ["nowhere.pem"]}, r"vendors\.roots = 'nowhere\.pem': the file did not come"),
        ({"roots": ["good.json"]}, r"vendors\.roots = 'good\.json': a file of certificates in PEM"),
        ({"vendors": {"ek_sha256": ["AB"]}}, r"vendors\.ek_sha256\[0\] = 'AB': 64 lower-case hex digits"),
        ({"vendors": {"manufacturers": ["a", "a"]}}, r"vendors\.manufacturers = \['a', 'a'\]: a list of different strings"),
        ({"vendors": {"serials": []}}, r"unknown field 'vendors\.serials'; accepted are ek_sha256, manufact"),
        ({"floor": -1}, r"firmware\.floor = -1: a whole number of 0\.\."),
        ({"interval_s": 0.1}, r"attestation\.interval_s = 0\.1: a number of 0\.5\.\.3600"),
        ({"interval_s": 900.0}, r"attestation\.lease_s = 600\.0: more than interval_s = 900\.0"),
        ({"lease_s": 86401}, r"attestation\.lease_s = 86401: a number of 1\.\.86400"),
        ({"boot_pcrs": [1, 0]}, r"attestation\.boot_pcrs = \[1, 0\]: different PCRs of 0\.\.15 in"),
        ({"boot_pcrs": [14]}, r"attestation\.boot_pcrs = \[14\]: different PCRs"),
        ({"boot_pcrs": [16]}, r"attestation\.boot_pcrs = \[16\]: different PCRs"),
        ({"rules": [{**L2, "level": "L9"}]}, r"rule\[0\]\.level = 'L9': one of L1"),
        ({"rules": [{"selector": "site=dmz"}]}, r"rule\[0\]\.level is missing"),
        ({"rules": [{"level": "L1"}]}, r"rule\[0\]\.selector is missing"),
        ({"rules": [{"selector": "=x", "level": "L1"}]}, r"rule\[0\]\.selector = '=x': a label selector"),
        ({"rules": [{"selector": " ", "level": "L1"}]}, r'rule\[0\]\.selector = .*"", which means every other agent'),
        ({"rules": [L2]}, r"attestation\.boot_pcrs = \[\]: at least one PCR, for rule\[0\]\.level = L2"),
        ({"rules": [{**L2, "references": []}], "boot_pcrs": PCRS}, r"rule\[0\]\.references = \[\]: at least one signed"),
        ({"rules": [{**L2, "level": "L1"}], "boot_pcrs": PCRS}, r"rule\[0\]\.references = \['good\.json'\]: no reference set"),
        ({"rules": [{**L2, "references": ["vendor.pem"]}], "boot_pcrs": PCRS}, r"= 'vendor\.pem\.sig': the file did not come"),
        ({"rules": [{**L2, "require_secure_boot": True}], "boot_pcrs": [0]}, r"require_secure_boot = True: false, or level L2"),
        ({"rules": [{**L2, "interval_s": 30, "lease_s": 20}], "boot_pcrs": PCRS}, r"rule\[0\]\.lease_s = 20\.0: more than"),
        ({"failures": {"boot-log": "ignore"}}, r"failures\.boot-log = 'ignore': one of quarantine, report"),
        ({"failures": {"no-such-check": "quarantine"}}, r"unknown field 'failures\.no-such-check'; accepted are tpm-reset"),
        ({"without_tpm": {"agents": ["short"]}}, r"without_tpm\.agents\[0\] = 'short': a full agent id"),
        ({"without_tpm": {"selector": ""}}, r"without_tpm\.selector = '': at least one label term"),
        ({"collectors": ["siem.example", "192.0.2.1/24"]}, r"export\.collectors\[1\] = '192\.0\.2\.1/24': the network itself, "),
        ({"collectors": ["127.1"]}, r"export\.collectors\[0\] = '127\.1': an address or network"),
        ({"collectors": ["siem.example:0"]}, r"export\.collectors\[0\] = 'siem\.example:0': a port of 1\.\.65535"),
        ({"collectors": ["a.example", "a.example"]}, r"export\.collectors = \['a\.example', 'a\.example'\]: a list of different"),
        ({"collectors": [f"192.0.2.{n}" for n in range(65)]}, r"export\.collectors = '65 entries': a list of at most 64"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(
    files: dict[str, bytes], release_key: ReleaseKey, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(PolicyError, match=said) as refusal:
        policy_of(PolicyText(**changes), files, release_key)
    assert refusal.value.reason == "POLICY_INVALID"


@pytest.mark.parametrize("pcr", [16, 23, "true", '"14"'])
def test_firmware_is_measured_into_a_pcr_that_user_space_cannot_reset(
    files: dict[str, bytes], release_key: ReleaseKey, pcr: object
) -> None:
    text = PolicyText().toml(["vendor.pem"]).replace("[attestation]", f"[attestation]\npcr = {pcr}")
    with pytest.raises(PolicyError, match=r"attestation\.pcr = .*: a whole number of 0\.\.15 is accepted"):
        policy_of(text, files, release_key)


@pytest.mark.parametrize(
    "text", ["version = " + "9" * 5000, "a = " + "[" * 20_000, "a = {b = " * 20_000], ids=["digits", "arrays", "tables"]
)
def test_what_the_parser_itself_cannot_bear_is_no_policy(release_key: ReleaseKey, text: str) -> None:
    with pytest.raises(PolicyError, match="not TOML") as refused:
        parse_policy(PolicyDocument(text=text, files={}), release_key.release_root)
    assert refused.value.reason == "POLICY_INVALID"


def test_there_must_be_a_rule_for_all_others(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    text = PolicyText().toml(["vendor.pem"])
    with pytest.raises(PolicyError, match=r"rule\[0\]\.selector = 'site=dmz'"):
        policy_of(text.replace('selector = ""', 'selector = "site=dmz"'), files, release_key)
    with pytest.raises(PolicyError, match=r"rule = '0 tables'"):
        policy_of(text.replace('[[rule]]\nselector = ""\nlevel = "L1"\n', ""), files, release_key)


def test_a_reference_set_that_the_release_key_did_not_sign_is_refused(files: dict[str, bytes], release_key: ReleaseKey) -> None:
    spoiled = {**files, "good.json.sig": files["good.json.sig"][:-1] + b"\0"}
    with pytest.raises(PolicyError, match=r"rule\[0\]\.references = 'good\.json': .*FIRMWARE_SIGNATURE_INVALID"):
        policy_of(PolicyText(boot_pcrs=PCRS, rules=[L2]), spoiled, release_key)


FIELDS: dict[str, list[tuple[str, ...]]] = {
    "text": [("name",), ("rule", "selector"), ("rule", "level"), ("failures", "boot-log"), ("without_tpm", "selector")],
    "list": [
        ("vendors", "roots"), ("vendors", "ek_sha256"), ("vendors", "manufacturers"), ("vendors", "models"),
        ("firmware", "versions"), ("attestation", "boot_pcrs"), ("rule", "references"), ("without_tpm", "agents"),
        ("ima", "paths"), ("ima", "allowed"), ("ima", "required"), ("export", "collectors"),
    ],
    "number": [
        ("version",), ("firmware", "floor"), ("attestation", "pcr"), ("attestation", "interval_s"), ("attestation", "lease_s"),
        ("rule", "interval_s"), ("rule", "lease_s"),
    ],
    "flag": [("rule", "require_secure_boot"), ("ima", "accept_violations")],
    "table": [("vendors",), ("firmware",), ("attestation",), ("failures",), ("ima",), ("without_tpm",), ("export",)],
}  # fmt: skip
"""Every field by its kind."""
VALUES: dict[str, st.SearchStrategy[str]] = {
    "text": st.text("abcxyz", max_size=5).map(lambda text: f'"{text}"'),
    "list": st.just("[[1]]"),
    "number": st.sampled_from(["-7", "nan", "1e99", "-inf"]),
    "flag": st.sampled_from(["true", "false"]),
    "table": st.just("{ x = 1 }"),
    "time": st.just("2026-11-22T10:00:00Z"),
}


def test_the_property_test_knows_every_field_of_the_example() -> None:
    table = tomllib.loads(uncommented())
    known = {path for paths in FIELDS.values() for path in paths}
    for name, value in table.items():
        inner = value[0] if isinstance(value, list) else value
        names = {(name, field) for field in inner} if isinstance(inner, dict) else {(name,)}
        if name == "failures":
            assert {field for _, field in names} == set(REPORTABLE)
        else:
            assert names <= known, name


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_value_of_another_kind_is_refused_by_the_name_of_its_field(data: st.DataObject, release_key: ReleaseKey) -> None:
    kind = data.draw(st.sampled_from(sorted(FIELDS)))
    path = data.draw(st.sampled_from(FIELDS[kind]))
    value = data.draw(st.sampled_from(sorted(set(VALUES) - {kind})).flatmap(VALUES.__getitem__))
    tables: dict[str, str] = {
        "vendors": 'roots = ["vendor.pem"]', "firmware": "", "attestation": "", "rule": 'selector = ""\nlevel = "L1"',
        "failures": "", "ima": "", "without_tpm": "", "export": "",
    }  # fmt: skip
    top = 'name = "lab"\nversion = 1\n'
    if len(path) == 2:
        kept = [line for line in tables[path[0]].splitlines() if not line.startswith(f"{path[1]} =")]
        tables[path[0]] = "\n".join([*kept, f"{path[1]} = {value}"])
    else:
        top = "".join(f"{line}\n" for line in top.splitlines() if not line.startswith(f"{path[0]} =")) + f"{path[0]} = {value}\n"
        tables.pop(path[0], None)
    text = top + "".join(f"{'[[rule]]' if name == 'rule' else f'[{name}]'}\n{body}\n" for name, body in tables.items())
    name = ".".join(path).replace("rule.", "rule[0].")
    with pytest.raises(PolicyError) as refusal:
        parse_policy(PolicyDocument(text=text, files={"vendor.pem": ROOT_PEM}), release_key.release_root)
    assert name in refusal.value.message
    assert "accepted" in refusal.value.message


def uncommented() -> str:
    return re.sub(r"(?m)^# (\S+ = )", r"\1", EXAMPLE.read_text())


def test_the_example_names_every_field_with_its_default(release_key: ReleaseKey) -> None:
    given_files = {"ek-roots/vendor.pem": ROOT_PEM}
    plain = policy_of(EXAMPLE.read_text(), given_files, release_key)
    text = uncommented().replace('selector = "tpm=none"\n', "").replace('selector = "site=dmz,!lab"\n', "")
    full = policy_of(text, given_files, release_key)
    same = ("vendors", "firmware_floor", "firmware_versions", "pcr", "boot_pcrs", "reported", "collectors")
    assert [getattr(plain, name) for name in same] == [getattr(full, name) for name in same]
    assert [dataclasses.replace(rule, selector=full.rules[0].selector) for rule in plain.rules] == list(full.rules)
    assert not full.without_tpm.agents


def test_a_document_holds_every_file_that_the_text_names_and_its_hash_covers_them(
    tmp_path: Path, files: dict[str, bytes], release_key: ReleaseKey
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "policy.toml"
    path.write_text(PolicyText(boot_pcrs=PCRS, rules=[L2]).toml(["vendor.pem"]))
    document = read_document(path)
    assert document.files == files
    assert PolicyDocument.from_message(document.to_message()) == document
    for name in files:
        assert PolicyDocument(text=document.text, files={**files, name: b"other"}).sha256 != document.sha256
    assert PolicyDocument(text=document.text + "\n", files=files).sha256 != document.sha256
    assert parse_policy(document, release_key.release_root).document.sha256 == document.sha256
    (tmp_path / "good.json.sig").unlink()
    with pytest.raises(PolicyError, match=r"rule\[0\]\.references: .*good\.json\.sig: No such file") as refusal:
        read_document(path)
    assert refusal.value.reason == "POLICY_UNREADABLE"


def test_a_document_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=f"{MAX_DOCUMENT_BYTES} are accepted"):
        PolicyDocument(text="x" * MAX_DOCUMENT_BYTES, files={"a": b"b"})
    (tmp_path / "policy.toml").write_bytes(b"#" * (MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(PolicyError, match="has more than"):
        read_document(tmp_path / "policy.toml")
