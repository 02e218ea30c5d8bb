# SPDX-License-Identifier: Apache-2.0
"""Modules of the firmware: measured before judged, refused with the whole firmware when altered, noted when they cannot be had.

Each load runs in a process of its own: a process has one firmware. The module is a small one that the test compiles.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from jarvis_native.loader import LIBRARY

from tests.support import MODULE, ReleaseKey, build_module, sign_firmware

LOAD = """
import json, sys
from pathlib import Path
from jarvis_native import load_firmware
from jarvis_native.engine import PacketCaptureEngine
from jarvis_trust.errors import FirmwareError
measured, answer = [], {}
for place, options in json.loads(sys.argv[1]):
    try:
        firmware = load_firmware(Path(place), measure=lambda found: measured.append([found.name, found.sha256.hex()]), **options)
        answer["modules"] = {name: digest.hex() for name, digest in firmware.modules.items()}
        answer["backends"] = {row.name: [row.usable, row.reason] for row in PacketCaptureEngine.get_available_backends()}
        answer["maps"] = [line.split()[5] for line in open("/proc/self/maps") if "/memfd:" in line]
        answer.pop("refused", None)
    except FirmwareError as error:
        answer["refused"], answer["message"] = error.reason, error.message
print(json.dumps(answer | {"measured": measured}))
"""


@pytest.fixture(scope="module")
def built_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("module") / MODULE
    build_module(target)
    return target


@pytest.fixture
def directory(firmware_directory: Path, tmp_path: Path, built_module: Path, release_key: ReleaseKey) -> Path:
    """Signed firmware that is the library and the small module."""
    place = tmp_path / "firmware"
    place.mkdir()
    for path in (firmware_directory / LIBRARY, built_module):
        shutil.copy(path, place)
    sign_firmware(place, release_key)
    return place


Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(program_environment: dict[str, str]) -> Load:
    """Loads from each place in turn in one new process; what came of it."""

    def run(*places: Path, **options: object) -> dict[str, Any]:
        order = json.dumps([(str(place), options) for place in places])
        done = subprocess.run(
            [sys.executable, "-c", LOAD, order], env=program_environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def alter(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def reason(answer: Mapping[str, Any], name: str) -> str:
    usable, text = answer["backends"][name]
    assert not usable
    return str(text)


def test_a_signed_module_is_measured_after_the_library_and_its_backend_is_listed(directory: Path, load: Load) -> None:
    answer = load(directory)
    assert answer["measured"] == [[name, digest(directory / name)] for name in (LIBRARY, MODULE)]
    assert answer["modules"] == {MODULE: digest(directory / MODULE)}
    assert reason(answer, "double") == "a test's module, for nothing"
    assert f"/memfd:{MODULE}" in answer["maps"]


def test_an_altered_module_is_measured_and_refuses_the_whole_firmware(directory: Path, load: Load) -> None:
    alter(directory / MODULE)
    answer = load(directory)
    assert answer["refused"] == "FIRMWARE_ALTERED"
    assert answer["message"].startswith(f"{MODULE} has SHA-256 {digest(directory / MODULE)}")
    assert answer["measured"] == [[name, digest(directory / name)] for name in (LIBRARY, MODULE)]
    assert "backends" not in answer


def test_a_module_is_measured_even_when_measuring_it_ends_the_load(directory: Path, program_environment: dict[str, str]) -> None:
    code = f"""
import pathlib
from jarvis_native import load_firmware
def measure(found):
    print(found.name)
    if found.name == {MODULE!r}:
        raise OSError("the TPM is gone")
try:
    load_firmware(pathlib.Path({str(directory)!r}), measure=measure)
except OSError as error:
    print(error, "/memfd:" in pathlib.Path("/proc/self/maps").read_text())
"""
    done = subprocess.run([sys.executable, "-c", code], env=program_environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [LIBRARY, MODULE, "the TPM is gone False"]


def test_a_module_whose_file_is_absent_is_noted_and_no_error(directory: Path, load: Load) -> None:
    (directory / MODULE).unlink()
    answer = load(directory)
    assert answer["modules"] == {}
    assert reason(answer, "double") == "its file, which the manifest names, is not in the firmware directory"


def test_a_module_that_was_not_built_is_noted(directory: Path, load: Load) -> None:
    assert reason(load(directory), "xdp") == "this release was built without it"


def test_a_module_that_the_manifest_does_not_name_is_neither_measured_nor_mapped(
    directory: Path, load: Load, release_key: ReleaseKey
) -> None:
    kept = (directory / MODULE).rename(directory / "aside")
    sign_firmware(directory, release_key)
    kept.rename(directory / MODULE)
    answer = load(directory)
    assert "double" not in answer["backends"]
    assert [name for name, _ in answer["measured"]] == [LIBRARY]


def test_a_module_whose_library_is_not_installed_is_measured_and_noted(
    directory: Path, tmp_path: Path, load: Load, release_key: ReleaseKey
) -> None:
    elsewhere = tmp_path / "libjarvis_nowhere.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-xc", "/dev/null", "-o", str(elsewhere)], check=True)
    build_module(directory / MODULE, link=("-Wl,--no-as-needed", str(elsewhere)))
    elsewhere.unlink()
    sign_firmware(directory, release_key)
    answer = load(directory)
    assert "libjarvis_nowhere.so: cannot open shared object file" in reason(answer, "double")
    assert "/proc/self/fd" not in reason(answer, "double")
    assert [MODULE, digest(directory / MODULE)] in answer["measured"]


def test_a_module_of_another_release_is_noted_with_the_cores_refusal(
    directory: Path, load: Load, release_key: ReleaseKey
) -> None:
    build_module(directory / MODULE, version="9.9.9")
    sign_firmware(directory, release_key)
    answer = load(directory)
    assert reason(answer, "double") == "module is of version 9.9.9: accepted is 0.1.0"
    assert answer["modules"] == {}


def test_unsigned_firmware_takes_the_modules_that_lie_beside_the_library(directory: Path, load: Load) -> None:
    for name in ("manifest.json", "manifest.sig"):
        (directory / name).unlink()
    answer = load(directory, allow_unsigned=True)
    assert answer["modules"] == {MODULE: digest(directory / MODULE)}
    assert reason(answer, "double") == "a test's module, for nothing"


def test_the_same_bytes_load_again_and_another_module_needs_a_new_process(
    directory: Path, tmp_path: Path, load: Load, release_key: ReleaseKey
) -> None:
    again = Path(shutil.copytree(directory, tmp_path / "again"))
    other = Path(shutil.copytree(directory, tmp_path / "other"))
    alter(other / MODULE)
    sign_firmware(other, release_key)
    assert "refused" not in load(directory, again)
    answer = load(directory, other)
    assert answer["refused"] == "FIRMWARE_ALREADY_LOADED"
    assert MODULE in answer["message"]
