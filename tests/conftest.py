# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test folders share: the built native library, a release key, signed firmware, the loaded firmware."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from jarvis_native.loader import Firmware, load_firmware
from jarvis_trust.release_signatures import generate_release_key

from tests.support import ROOT, ReleaseKey, copy_objects, find_library, sign_firmware


@pytest.fixture(scope="session", autouse=True)
def programs_can_be_interrupted() -> None:
    """A shell starts background jobs with SIGINT ignored, and programs started from here would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def native_library() -> Path:
    """Path of libjarvis_capture.so as built."""
    return find_library()


@pytest.fixture(scope="session")
def release_key() -> ReleaseKey:
    """The session's release key."""
    private_pem, public_pem = generate_release_key()
    return ReleaseKey(private_pem=private_pem, public_pem=public_pem)


@pytest.fixture(scope="session")
def firmware_directory(tmp_path_factory: pytest.TempPathFactory, native_library: Path, release_key: ReleaseKey) -> Path:
    """Signed firmware with its release key beside it, as an installation has it. Not to be changed: see copy_firmware."""
    directory = tmp_path_factory.mktemp("firmware")
    copy_objects(native_library, directory)
    sign_firmware(directory, release_key)
    (directory / "root.json").write_bytes(release_key.root)
    return directory


@pytest.fixture
def copy_firmware(firmware_directory: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy of the signed firmware that a test may spoil."""

    def copy() -> Path:
        return Path(shutil.copytree(firmware_directory, tmp_path / "firmware"))

    return copy


@pytest.fixture(scope="session")
def firmware(firmware_directory: Path, release_key: ReleaseKey) -> Firmware:
    """The firmware of this test process (a process has one), loaded as the programs do."""
    return load_firmware(firmware_directory, release_root=release_key.root)


@pytest.fixture(scope="session")
def program_environment(firmware_directory: Path) -> dict[str, str]:
    """Environment for a program started as a subprocess: our source roots, the signed firmware."""
    roots = [ROOT / root for root in ("proto", "native/python", "certs", "agent", "controller", ".")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "JARVIS_FIRMWARE_DIR": str(firmware_directory),
        "JARVIS_RELEASE_ROOT": str(firmware_directory / "root.json"),
    }
