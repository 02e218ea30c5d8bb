# SPDX-License-Identifier: Apache-2.0
"""Private files: nobody else can read them, nothing is half-written, nothing is replaced by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jarvis_trust.ca import generate_key
from jarvis_trust.errors import IdentityError
from jarvis_trust.keyfiles import load_private_key, read_private, replace_private, write_private


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_private_file_has_mode_0600_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o7777 == 0o600
    assert read_private(tmp_path / "key") == b"secret"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"first")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"second")
    assert read_private(tmp_path / "key") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_a_replaced_file_is_private_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"old")
    (tmp_path / "key").chmod(0o644)
    replace_private(tmp_path / "key", b"new")
    assert read_private(tmp_path / "key") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o601, 0o660, 0o666])
def test_a_file_that_others_have_any_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(IdentityError, match=f"{mode:04o}") as refused:
        read_private(tmp_path / "key")
    assert refused.value.reason == "KEY_FILE_EXPOSED"


def test_a_directory_a_device_a_fifo_and_a_huge_file_are_no_key_files(tmp_path: Path) -> None:
    write_private(tmp_path / "huge", bytes(70_000))
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (Path("/dev/null"), tmp_path / "huge", tmp_path / "fifo"):
        with pytest.raises(IdentityError) as refused:
            read_private(path)
        assert refused.value.reason == "KEY_FILE_INVALID"
    with pytest.raises(IsADirectoryError):
        read_private(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_somebody_else_owns_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    os.chown(tmp_path / "key", 65534, -1)
    with pytest.raises(IdentityError, match="uid 65534") as refused:
        read_private(tmp_path / "key")
    assert refused.value.reason == "KEY_FILE_EXPOSED"


def test_a_private_key_is_loaded_and_anything_else_is_refused(tmp_path: Path) -> None:
    pem = generate_key()
    write_private(tmp_path / "key", pem)
    assert load_private_key(tmp_path / "key") == pem
    write_private(tmp_path / "other", b"-----BEGIN PUBLIC KEY-----")
    with pytest.raises(IdentityError) as refused:
        load_private_key(tmp_path / "other")
    assert refused.value.reason == "KEY_FILE_INVALID"
    with pytest.raises(FileNotFoundError):
        load_private_key(tmp_path / "missing")
