# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl firmware root|sign|revoke` as two of three key holders use it, in turns."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.unit.jarvisctl.test_ctl_firmware import LIBRARY, ctl, elf

NAMES = ("ada", "bob", "eve")


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three key pairs, NAME.pem and NAME.pub."""
    directory = tmp_path_factory.mktemp("holders")
    for name in NAMES:
        made = ctl("firmware", "keygen", "--private", directory / f"{name}.pem", "--public", directory / f"{name}.pub")
        assert made.exit_code == 0, made.output
    return directory


def make_root(holders: Path, target: Path, names: tuple[str, ...] = NAMES, *more: object) -> None:
    keys = [option for name in names for option in ("--key", holders / f"{name}.pub")]
    result = ctl("firmware", "root", "init", target, *keys, "--threshold", "2", *more)
    assert result.exit_code == 0, result.output


def sign_root(holders: Path, target: Path, *names: str) -> None:
    for name in names:
        result = ctl("firmware", "root", "sign", target, "--key", holders / f"{name}.pem")
        assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def root(holders: Path) -> Path:
    target = holders / "root.json"
    make_root(holders, target)
    sign_root(holders, target, "ada", "bob")
    return target


def test_a_root_counts_once_two_of_three_have_signed_it(holders: Path, tmp_path: Path) -> None:
    target = tmp_path / "root.json"
    make_root(holders, target)
    sign_root(holders, target, "ada", "ada")
    early = ctl("firmware", "root", "verify", target)
    assert (early.exit_code, "RELEASE_ROOT_UNSIGNED" in early.stderr) == (4, True)
    assert "not signed by enough keys yet" in ctl("firmware", "root", "show", target).stdout
    sign_root(holders, target, "eve")
    assert "signed as it must be" in ctl("firmware", "root", "verify", target).stdout


def test_who_is_in_no_version_cannot_sign_a_root(holders: Path, tmp_path: Path) -> None:
    target = tmp_path / "root.json"
    make_root(holders, target, ("ada", "bob"))
    refused = ctl("firmware", "root", "sign", target, "--key", holders / "eve.pem")
    assert refused.exit_code == 2
    assert "one of this version's keys, or of the version before, is accepted" in refused.stderr


def test_a_key_named_twice_makes_no_root_of_two(holders: Path, tmp_path: Path) -> None:
    keys = ["--key", holders / "ada.pub", "--key", holders / "ada.pub"]
    refused = ctl("firmware", "root", "init", tmp_path / "root.json", *keys, "--threshold", "2")
    assert refused.exit_code == 2
    assert not (tmp_path / "root.json").exists()


def test_a_release_is_signed_in_turns_and_says_who_is_missing(holders: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(elf(62))
    signing = ["--version", "1.2.3", "--security-version", "7", "--minimum-security-version", "5", "--expires-days", "30"]
    first = ctl("firmware", "sign", tmp_path / LIBRARY, "--key", holders / "ada.pem", *signing)
    assert first.exit_code == 0, first.output
    early = ctl("--output", "json", "firmware", "verify", tmp_path, "--root", root)
    value = json.loads(early.stdout)
    assert (early.exit_code, value["reason"]) == (4, "FIRMWARE_THRESHOLD_NOT_MET")
    assert (len(value["signed"]), len(value["missing"])) == (1, 2)
    # The second signer needs the manifest and the signatures so far, not the library.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("manifest.json", "manifest.sig"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    second = ctl("firmware", "sign", elsewhere / "manifest.json", "--key", holders / "bob.pem")
    assert (second.exit_code, second.stdout.count("signed by ")) == (0, 2)
    (tmp_path / "manifest.sig").write_bytes((elsewhere / "manifest.sig").read_bytes())
    verified = ctl("firmware", "verify", tmp_path, "--root", root)
    assert verified.exit_code == 0, verified.output
    assert "signed by 2 of 3 keys of release root version 1, 2 needed" in verified.stdout
    assert "security version 7, sets the floor 5" in verified.stdout


def test_a_new_manifest_does_not_keep_the_signatures_of_the_one_before(holders: Path, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(elf(62))
    for key, version in (("ada", "1.0.0"), ("bob", "1.0.1")):
        signed = ctl("firmware", "sign", tmp_path / LIBRARY, "--key", holders / f"{key}.pem", "--version", version)
        assert signed.stdout.count("signed by ") == 1


def test_keys_change_by_a_version_that_old_and_new_keys_sign(holders: Path, root: Path, tmp_path: Path) -> None:
    new, target = tmp_path / "new", tmp_path / "next.json"
    new.mkdir()
    assert ctl("firmware", "keygen", "--private", new / "joe.pem", "--public", new / "joe.pub").exit_code == 0
    keys = ["--key", holders / "ada.pub", "--key", new / "joe.pub", "--threshold", "2"]
    assert ctl("firmware", "root", "init", target, "--from", root, *keys).exit_code == 0
    sign_root(new, target, "joe")
    sign_root(holders, target, "ada")
    early = ctl("firmware", "root", "verify", target, "--pinned", root)
    assert "by the keys of version 1, is signed by 1" in early.stderr
    sign_root(holders, target, "bob")
    assert ctl("firmware", "root", "verify", target, "--pinned", root).exit_code == 0
    back = ctl("firmware", "root", "verify", root, "--pinned", target)
    assert (back.exit_code, "RELEASE_ROOT_ROLLBACK" in back.stderr) == (4, True)


def test_firmware_is_revoked_in_turns_and_the_list_only_grows(holders: Path, root: Path, tmp_path: Path) -> None:
    target, library = tmp_path / "revoked.json", tmp_path / LIBRARY
    library.write_bytes(elf(62))
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    first = ctl("firmware", "revoke", library, "--list", target, "--key", holders / "ada.pem", "--why", "CVE-2026-0001")
    assert first.exit_code == 0, first.output
    both = ctl("--output", "json", "firmware", "revoke", "--list", target, "--key", holders / "bob.pem", "--root", root)
    value = json.loads(both.stdout)
    assert (value["version"], value["digests"], len(value["signed"])) == (1, {digest: "CVE-2026-0001"}, 2)
    more = ["--list", target, "--key", holders / "ada.pem", "--why", "CVE-2026-0002"]
    grown = json.loads(ctl("--output", "json", "firmware", "revoke", "ab" * 32, *more).stdout)
    assert (grown["version"], set(grown["digests"]), len(grown["signatures"])) == (2, {digest, "ab" * 32}, 1)
    renewing = ["--renew", "--list", target, "--key", holders / "bob.pem"]
    renewed = json.loads(ctl("--output", "json", "firmware", "revoke", *renewing).stdout)
    assert (renewed["version"], renewed["digests"]) == (3, grown["digests"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["xyz", "--why", "x"], "WHAT is xyz: 64 lower-case hex digits or an existing file are accepted"),
        (["ab" * 32], "--why is missing"),
        ([], "WHAT is missing"),
        (["ab" * 32, "--why", "x", "--expires-days", "0"], "--expires-days is 0: 1 to 36500 are accepted"),
    ],
)
def test_what_cannot_be_revoked_writes_no_list(holders: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    target = tmp_path / "revoked.json"
    refused = ctl("firmware", "revoke", *arguments, "--list", target, "--key", holders / "ada.pem")
    assert refused.exit_code == 2
    assert sentence in refused.stderr
    assert not target.exists()
