# SPDX-License-Identifier: Apache-2.0
"""Files on disk, written atomically: private ones 0600 and refused when others can read them.

Standard library only.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from jarvis_trust.errors import IdentityError

_MAX_BYTES = 64 * 1024


def write_private(path: Path, data: bytes) -> None:
    """Creates `path` with mode 0600, all or nothing and on disk when this returns; an existing file is never replaced.

    Raises:
        FileExistsError: there is such a file already.
        OSError: the file system's own reason.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask made of it
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary)  # fails where a rename would replace
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def replace_private(path: Path, data: bytes) -> None:
    """Like write_private, but takes the place of an existing file in one step (renewed certificates and keys)."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_private(temporary, data)
    rename_private(temporary, path)


def rename_private(temporary: Path, path: Path) -> None:
    """The last step of replace_private, for a file beside `path` whose contents are on disk already.

    Raises:
        OSError: the file system's own reason.
    """
    temporary.replace(path)
    sync_directory(path.parent)


def replace_public(path: Path, data: bytes) -> None:
    """Writes a file that is no secret, mode 0644, in the place of an existing one: the whole of it or the one before."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_private(temporary, data)
    temporary.chmod(0o644)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """What was renamed or made in it is on disk when this returns.

    Raises:
        OSError: the file system's own reason.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_private(path: Path) -> bytes:
    """The contents of a file that only its owner can reach.

    Raises:
        IdentityError: KEY_FILE_EXPOSED (group or others have any access, or somebody else owns it), KEY_FILE_INVALID (not a
            regular file, too long).
        OSError: it cannot be opened.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())  # of the open file, so that a swap of the name changes nothing
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError("KEY_FILE_INVALID", f"{path} is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise IdentityError(
                "KEY_FILE_EXPOSED", f"{path} has mode {mode:04o}: group and others must have no access, 0600 is accepted"
            )
        if status.st_uid not in {0, os.geteuid()}:
            raise IdentityError(
                "KEY_FILE_EXPOSED", f"{path} belongs to uid {status.st_uid}: root or uid {os.geteuid()} is accepted"
            )
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise IdentityError("KEY_FILE_INVALID", f"{path} is longer than {_MAX_BYTES} bytes")
    return data


def load_private_key(path: Path) -> bytes:
    """The PEM of an unencrypted private key, from a file that only its owner can reach.

    Raises:
        IdentityError: as read_private, and KEY_FILE_INVALID when it holds no PEM private key.
        OSError: it cannot be opened.
    """
    pem = read_private(path)
    if b"PRIVATE KEY-----" not in pem:
        raise IdentityError("KEY_FILE_INVALID", f"{path} holds no PEM private key")
    return pem


def _open_without_waiting(path: str, flags: int) -> int:
    # A FIFO in the file's place would otherwise make us wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)
