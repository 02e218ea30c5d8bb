# SPDX-License-Identifier: Apache-2.0
"""Loading firmware: sealed, measured, judged, in that order, and one per process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jarvis_native import loader
from jarvis_native.loader import LIBRARY, Firmware, MeasuredObject, load_firmware
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE
from jarvis_trust.release_signatures import generate_release_key

from tests.support import ReleaseKey, sign_firmware

CopyFirmware = Callable[[], Path]


def refused(directory: Path, key: ReleaseKey, *, floor: int = 0) -> tuple[FirmwareError, list[MeasuredObject]]:
    """The error of a load that must fail, and what was measured before."""
    measured: list[MeasuredObject] = []
    with pytest.raises(FirmwareError) as caught:
        load_firmware(directory, release_root=key.root, floor=floor, measure=measured.append)
    return caught.value, measured


def digest_of(directory: Path) -> bytes:
    return hashlib.sha256((directory / LIBRARY).read_bytes()).digest()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_signed_firmware_loads_and_says_its_version(firmware: Firmware, firmware_directory: Path) -> None:
    assert firmware.version == "0.1.0"
    assert firmware.digest == digest_of(firmware_directory)
    assert firmware.manifest is not None
    assert firmware.manifest.objects[LIBRARY] == firmware.digest.hex()
    assert firmware.manifest_bytes == (firmware_directory / MANIFEST_FILE).read_bytes()
    assert firmware.signature == (firmware_directory / SIGNATURE_FILE).read_bytes()


def test_the_library_is_mapped_from_a_sealed_memfd_that_stays_open(firmware: Firmware) -> None:
    mapped = {fd for fd in loader._mapped if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(f"/memfd:{LIBRARY}")}
    assert len(mapped) == 1
    wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(mapped.pop(), fcntl.F_GET_SEALS) == wanted
    assert f"/memfd:{LIBRARY}" in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_what_was_sealed_cannot_be_written(firmware: Firmware) -> None:
    fd = next(iter(loader._mapped))
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_the_same_bytes_load_again_as_the_same_firmware(
    firmware: Firmware, copy_firmware: CopyFirmware, release_key: ReleaseKey
) -> None:
    measured: list[MeasuredObject] = []
    again = load_firmware(copy_firmware(), release_root=release_key.root, measure=measured.append)
    assert again is firmware
    objects = {LIBRARY: firmware.digest, **firmware.modules}
    assert measured == [MeasuredObject(name=name, sha256=digest) for name, digest in objects.items()]


def test_other_bytes_need_a_new_process(firmware: Firmware, copy_firmware: CopyFirmware, release_key: ReleaseKey) -> None:
    directory = copy_firmware()
    with (directory / LIBRARY).open("ab") as library:
        library.write(b"\0")
    sign_firmware(directory, release_key)
    error, measured = refused(directory, release_key)
    assert error.reason == "FIRMWARE_ALREADY_LOADED"
    assert error.digest == measured[0].sha256 == digest_of(directory)


def test_a_missing_library_is_refused_without_a_measurement(tmp_path: Path, release_key: ReleaseKey) -> None:
    error, measured = refused(tmp_path, release_key)
    assert (error.reason, error.digest, measured) == ("FIRMWARE_MISSING", None, [])
    assert str(tmp_path / LIBRARY) in error.message


@pytest.mark.parametrize("kind", ["directory", "fifo", "empty"])
def test_what_is_no_file_with_bytes_is_missing(tmp_path: Path, release_key: ReleaseKey, kind: str) -> None:
    path = tmp_path / LIBRARY
    {"directory": path.mkdir, "fifo": lambda: os.mkfifo(path), "empty": path.touch}[kind]()
    error, _ = refused(tmp_path, release_key)
    assert error.reason == "FIRMWARE_MISSING"


@pytest.mark.parametrize("name", [MANIFEST_FILE, SIGNATURE_FILE])
def test_unsigned_firmware_is_measured_and_refused(copy_firmware: CopyFirmware, release_key: ReleaseKey, name: str) -> None:
    directory = copy_firmware()
    (directory / name).unlink()
    error, measured = refused(directory, release_key)
    assert error.reason == "FIRMWARE_UNSIGNED"
    assert name in error.message
    assert error.digest == measured[0].sha256 == digest_of(directory)


def test_one_flipped_byte_is_measured_and_refused(copy_firmware: CopyFirmware, release_key: ReleaseKey) -> None:
    directory = copy_firmware()
    with (directory / LIBRARY).open("r+b") as library:
        library.seek(4096)
        byte = library.read(1)
        library.seek(4096)
        library.write(bytes([byte[0] ^ 1]))
    error, measured = refused(directory, release_key)
    assert error.reason == "FIRMWARE_ALTERED"
    assert error.digest == measured[0].sha256 == digest_of(directory)


def test_another_releases_signature_is_refused(copy_firmware: CopyFirmware, release_key: ReleaseKey) -> None:
    directory = copy_firmware()
    private_pem, public_pem = generate_release_key()
    sign_firmware(directory, ReleaseKey(private_pem=private_pem, public_pem=public_pem))
    error, _ = refused(directory, release_key)
    assert error.reason == "FIRMWARE_SIGNATURE_INVALID"


def test_firmware_below_the_floor_is_refused(copy_firmware: CopyFirmware, release_key: ReleaseKey) -> None:
    error, measured = refused(copy_firmware(), release_key, floor=2)
    assert error.reason == "FIRMWARE_BELOW_FLOOR"
    assert error.digest == measured[0].sha256


def test_firmware_of_another_architecture_is_refused(copy_firmware: CopyFirmware, release_key: ReleaseKey) -> None:
    directory = copy_firmware()
    sign_firmware(directory, release_key, architecture="pdp11")
    error, _ = refused(directory, release_key)
    assert error.reason == "FIRMWARE_WRONG_ARCHITECTURE"


def test_measuring_comes_before_judging_and_its_failure_ends_the_load(
    copy_firmware: CopyFirmware, release_key: ReleaseKey
) -> None:
    directory = copy_firmware()
    (directory / MANIFEST_FILE).unlink()  # would be refused next

    def unable(_measured: MeasuredObject) -> None:
        raise OSError("the TPM is gone")

    with pytest.raises(OSError, match="the TPM is gone"):
        load_firmware(directory, release_root=release_key.root, measure=unable)


def test_a_refused_load_leaves_no_descriptor_behind(copy_firmware: CopyFirmware, release_key: ReleaseKey) -> None:
    directory = copy_firmware()
    (directory / SIGNATURE_FILE).unlink()
    before = open_descriptors()
    for _ in range(3):
        refused(directory, release_key)
    assert open_descriptors() == before


def test_a_release_root_that_is_named_but_missing_is_refused(
    copy_firmware: CopyFirmware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JARVIS_RELEASE_ROOT", str(tmp_path / "nowhere.json"))
    with pytest.raises(FirmwareError) as caught:
        load_firmware(copy_firmware())
    assert caught.value.reason == "RELEASE_ROOT_MISSING"
    assert "nowhere.json" in caught.value.message


def run_python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_manifest_that_names_another_version_is_refused(
    copy_firmware: CopyFirmware, release_key: ReleaseKey, program_environment: dict[str, str]
) -> None:
    directory = copy_firmware()
    sign_firmware(directory, release_key, version="9.9.9")
    code = """
from jarvis_native import load_firmware
try:
    load_firmware()
except Exception as error:
    print(error.reason, error.digest is not None, error)
"""
    answer = run_python(code, program_environment | {"JARVIS_FIRMWARE_DIR": str(directory)})
    assert answer.startswith("FIRMWARE_VERSION_MISMATCH True")
    assert "9.9.9" in answer


def test_a_signed_file_that_is_no_library_is_refused(
    tmp_path: Path, release_key: ReleaseKey, program_environment: dict[str, str]
) -> None:
    (tmp_path / LIBRARY).write_bytes(b"not an ELF file")
    sign_firmware(tmp_path, release_key)
    code = """
from jarvis_native import load_firmware
try:
    load_firmware()
except Exception as error:
    print(error.reason)
"""
    assert run_python(code, program_environment | {"JARVIS_FIRMWARE_DIR": str(tmp_path)}) == "FIRMWARE_UNLOADABLE"


def test_a_script_may_allow_unsigned_firmware_and_judge_it_later(
    copy_firmware: CopyFirmware, program_environment: dict[str, str]
) -> None:
    directory = copy_firmware()
    code = f"""
import pathlib, shutil
from jarvis_native import load_firmware
signed = pathlib.Path({str(directory)!r})
bare = signed.with_name("bare")
bare.mkdir()
shutil.copy(signed / "{LIBRARY}", bare)
first = load_firmware(bare, allow_unsigned=True)
second = load_firmware(signed)
print(first.manifest is None, second.manifest is not None, first.lib is second.lib, first.digest == second.digest)
"""
    assert run_python(code, program_environment) == "True True True True"
