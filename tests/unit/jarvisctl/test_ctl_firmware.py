# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl firmware keygen|sign|verify`: a round trip, and each reason why firmware must not run."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jarvisctl.cli import app
from typer.testing import CliRunner, Result

LIBRARY = "libjarvis_capture.so"


def ctl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def elf(machine: int, *, big_endian: bool = False) -> bytes:
    """An ELF header as far as e_machine, and something to hash."""
    ident = b"\x7fELF" + bytes([2, 2 if big_endian else 1, 1]) + bytes(9)
    return ident + struct.pack(">HH" if big_endian else "<HH", 3, machine) + b"code" * 100


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("keys")
    private, root = directory / "release.pem", directory / "root.json"
    result = ctl("firmware", "keygen", "--private", private, "--public", directory / "release.pub", "--root", root)
    assert result.exit_code == 0, result.output
    return private, root


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    directory = tmp_path_factory.mktemp("signed")
    (directory / LIBRARY).write_bytes(elf(62))
    result = ctl("firmware", "sign", directory / LIBRARY, "--key", keys[0], "--version", "1.2.3", "--security-version", "7")
    assert result.exit_code == 0, result.output
    return directory


@pytest.fixture
def firmware(signed: Path, tmp_path: Path) -> Path:
    """A signed release that a test may spoil."""
    return Path(shutil.copytree(signed, tmp_path / "firmware"))


def test_keygen_keeps_the_private_key_to_its_owner_and_never_overwrites_one(keys: tuple[Path, Path]) -> None:
    private, public = keys[0], keys[0].with_suffix(".pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"PUBLIC KEY" in public.read_bytes()
    before = private.read_bytes()
    again = ctl("firmware", "keygen", "--private", private, "--public", public)
    assert again.exit_code == 2
    assert "a release key is never overwritten" in again.stderr
    assert private.read_bytes() == before


def test_what_was_signed_is_verified_and_says_who_and_what(firmware: Path, keys: tuple[Path, Path]) -> None:
    result = ctl("firmware", "verify", firmware, "--root", keys[1], "--floor", "7", "--architecture", "x86_64")
    assert result.exit_code == 0, result.output
    assert "signed by 1 of 1 keys of release root version 1, 1 needed" in result.stdout
    assert "jarvis-capture 1.2.3 for x86_64" in result.stdout
    assert "security version 7" in result.stdout
    assert f"  {LIBRARY}  SHA-256 " in result.stdout


def test_verify_takes_the_library_itself_and_gives_json(firmware: Path, keys: tuple[Path, Path]) -> None:
    result = ctl("--output", "json", "firmware", "verify", firmware / LIBRARY, "--root", keys[1])
    value = json.loads(result.stdout)
    assert value["ok"] is True
    assert (value["name"], value["version"], value["security_version"]) == ("jarvis-capture", "1.2.3", 7)
    assert list(value["objects"]) == [LIBRARY]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "options", "reason"),
    [
        (lambda place: (place / LIBRARY).unlink(), [], "FIRMWARE_MISSING"),
        (lambda place: (place / "manifest.json").unlink(), [], "FIRMWARE_UNSIGNED"),
        (lambda place: (place / "manifest.sig").unlink(), [], "FIRMWARE_UNSIGNED"),
        (lambda place: flip(place / LIBRARY), [], "FIRMWARE_ALTERED"),
        (lambda place: flip(place / "manifest.json"), [], "FIRMWARE_SIGNATURE_INVALID"),
        (lambda place: flip(place / "manifest.sig"), [], "FIRMWARE_SIGNATURE_INVALID"),
        (lambda _: None, ["--floor", "8"], "FIRMWARE_BELOW_FLOOR"),
        (lambda _: None, ["--architecture", "aarch64"], "FIRMWARE_WRONG_ARCHITECTURE"),
    ],
)
def test_each_fault_is_named_and_leaves_with_4(
    firmware: Path, keys: tuple[Path, Path], spoil: Callable[[Path], None], options: list[str], reason: str
) -> None:
    spoil(firmware)
    result = ctl("firmware", "verify", firmware, "--root", keys[1], *options)
    assert result.exit_code == 4
    assert f"must not run: {reason}: " in result.stderr
    as_json = ctl("--output", "json", "firmware", "verify", firmware, "--root", keys[1], *options)
    assert as_json.exit_code == 4
    assert json.loads(as_json.stdout)["reason"] == reason


def test_another_release_key_does_not_verify(firmware: Path, tmp_path: Path) -> None:
    other = ["--private", tmp_path / "other.pem", "--public", tmp_path / "other.pub", "--root", tmp_path / "other.json"]
    assert ctl("firmware", "keygen", *other).exit_code == 0
    result = ctl("firmware", "verify", firmware, "--root", tmp_path / "other.json")
    assert result.exit_code == 4
    assert "FIRMWARE_SIGNATURE_INVALID" in result.stderr


def test_a_file_that_is_no_release_root_is_said_to_be_none(firmware: Path) -> None:
    result = ctl("firmware", "verify", firmware, "--root", firmware / LIBRARY)
    assert result.exit_code == 4
    assert "RELEASE_ROOT_INVALID" in result.stderr


def test_a_short_release_key_signs_nothing(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(elf(62))
    short = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "short.pem").write_bytes(short.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "short.pem").chmod(0o600)
    result = ctl("firmware", "sign", tmp_path / LIBRARY, "--key", tmp_path / "short.pem", "--version", "1.0.0")
    assert result.exit_code == 2
    assert "RSA-2048; RSA-4096 with exponent 65537 is accepted" in result.stderr
    assert not (tmp_path / "manifest.json").exists()


def test_a_private_release_key_that_others_can_read_signs_nothing(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / LIBRARY).write_bytes(elf(62))
    exposed = tmp_path / "release.pem"
    exposed.write_bytes(keys[0].read_bytes())
    exposed.chmod(0o644)
    result = ctl("firmware", "sign", tmp_path / LIBRARY, "--key", exposed, "--version", "1.0.0")
    assert result.exit_code == 2
    assert "has mode 0644: only 0600 is accepted" in result.stderr


@pytest.mark.parametrize(
    ("content", "architecture"), [(elf(183), "aarch64"), (elf(22, big_endian=True), "s390x"), (elf(243), "riscv64")]
)
def test_the_architecture_is_read_from_the_elf_header(
    tmp_path: Path, keys: tuple[Path, Path], content: bytes, architecture: str
) -> None:
    (tmp_path / LIBRARY).write_bytes(content)
    result = ctl("--output", "json", "firmware", "sign", tmp_path / LIBRARY, "--key", keys[0], "--version", "1.0.0")
    assert json.loads(result.stdout)["architecture"] == architecture


def test_modules_are_named_in_the_same_manifest_and_each_is_checked(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / LIBRARY).write_bytes(elf(62))
    (tmp_path / "libjarvis_xdp.so").write_bytes(elf(62) + b"xdp")
    signing = ctl("firmware", "sign", tmp_path / LIBRARY, tmp_path / "libjarvis_xdp.so", "--key", keys[0], "--version", "1.0.0")
    assert signing.exit_code == 0, signing.output
    assert ctl("firmware", "verify", tmp_path, "--root", keys[1]).exit_code == 0
    flip(tmp_path / "libjarvis_xdp.so")
    altered = ctl("firmware", "verify", tmp_path, "--root", keys[1])
    assert "FIRMWARE_ALTERED: libjarvis_xdp.so has SHA-256" in altered.stderr
    (tmp_path / "libjarvis_xdp.so").unlink()
    missing = ctl("firmware", "verify", tmp_path, "--root", keys[1])
    assert "FIRMWARE_MISSING: the manifest names libjarvis_xdp.so" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--version", "1.2"], "version is '1.2'; three numbers such as 1.2.3 are accepted"),
        (["--version", "1.2.3", "--security-version", "-1"], "security_version is -1; an integer from 0 to"),
        (["--version", "1.2.3", "--name", "Jarvis Capture"], "name is 'Jarvis Capture'"),
    ],
)
def test_a_release_that_cannot_be_described_is_not_signed(
    tmp_path: Path, keys: tuple[Path, Path], arguments: list[str], sentence: str
) -> None:
    (tmp_path / LIBRARY).write_bytes(elf(62))
    result = ctl("firmware", "sign", tmp_path / LIBRARY, "--key", keys[0], *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_what_is_no_library_is_not_signed_by_accident(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / LIBRARY).write_text("#!/bin/sh\n", encoding="utf-8")
    result = ctl("firmware", "sign", tmp_path / LIBRARY, "--key", keys[0], "--version", "1.0.0")
    assert result.exit_code == 2
    assert "is no ELF file" in result.stderr
    missing = ctl("firmware", "sign", tmp_path / "gone.so", "--key", keys[0], "--version", "1.0.0")
    assert "there is no such file" in missing.stderr


def test_help_and_firmware_need_neither_grpc_nor_protobuf_nor_the_fleet() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from jarvisctl.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['firmware', 'verify', '/nonexistent', '--root', '/dev/null']).exit_code == 4\n"
        "print([name for name in sys.modules if name.split('.')[0] in {'grpc', 'google', 'jarvis'}])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.stdout == "[]\n"
