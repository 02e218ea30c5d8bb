# SPDX-License-Identifier: Apache-2.0
"""Firmware: the native library, loaded from bytes that were measured and judged and can no longer change.

Data flow: file → sealed memfd (one read) → SHA-256 of the memfd → `measure` (the caller logs and extends its PCR) → manifest,
signatures, expiry, floor and revocations judged on that digest → dlopen of /proc/self/fd/N. Measuring comes before judging, so
what is refused was measured too; and the seal makes what is mapped the very bytes that were hashed, whatever happens to the file
meanwhile.

Modules (modules.py: backends that need a library which not every host has) go the same way, each measured before it is judged;
all are judged before anything is mapped, and one altered module refuses the whole firmware.

The descriptor is never closed: glibc knows a library by its path and would hand out the old one for a descriptor number used
again. For the same reason a process loads one firmware only; an update runs in a new process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest, verify_manifest
from jarvis_trust.release_root import ROOT_FILE, ReleaseRoot
from jarvis_trust.revocations import check_revoked

from jarvis_native import modules

LIBRARY = "libjarvis_capture.so"
"""File name of the library, and of its object in the manifest."""
SYSTEM_RELEASE_ROOT = Path("/etc/jarvis-capture") / ROOT_FILE

MAX_LIBRARY_BYTES = 256 << 20
"""More than any build of the library has; keeps a mistaken path from filling memory."""
MAX_TEXT_BYTES = 1 << 20
"""Bound for manifest, signature and root files."""

_MFD_EXEC = 0x0010  # Linux 6.3: says that the memfd is to be executable, whatever vm.memfd_noexec defaults to
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredObject:
    """What `measure` is told of a native object before it is judged."""

    name: str
    """Its name in the manifest."""
    sha256: bytes
    """SHA-256 of the sealed bytes, 32 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """The loaded native library and what vouches for it. One per process; safe to use from any thread."""

    lib: Any
    """cffi library object."""
    ffi: Any
    """cffi FFI with the declarations of jarvis_capture.h."""
    digest: bytes
    """SHA-256 of the loaded bytes, 32 bytes."""
    version: str
    """What the library says of itself, MAJOR.MINOR.PATCH."""
    manifest: Manifest | None
    """The verified manifest; None when a script allowed unsigned firmware."""
    manifest_bytes: bytes
    """manifest.json as read; empty when unsigned."""
    signature: bytes
    """manifest.sig as read; empty when unsigned."""
    directory: Path
    """Where it was loaded from."""
    modules: Mapping[str, bytes]
    """SHA-256 of each module that is mapped, by object name; which of them is in force `capture_get_backends` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    """One object's bytes, hashed, and no longer to be changed. Whoever seals it closes it, unless it was mapped."""

    name: str
    fd: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What firmware is judged by; see load_firmware."""

    release_root: bytes | None
    floor: int
    floor_source: str
    revoked: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What vouches for the bytes; nothing when unsigned ones were allowed."""

    manifest: Manifest | None = None
    manifest_bytes: bytes = b""
    signature: bytes = b""


_lock = threading.Lock()
_loaded: Firmware | None = None
_mapped: set[int] = set()
"""Descriptors that dlopen has seen: they stay open for the life of the process."""
_libraries: list[Any] = []
"""What cffi mapped: it unmaps a library that nobody holds, and the core holds pointers into its modules."""


def default_directory() -> Path:
    """$JARVIS_FIRMWARE_DIR, else lib/jarvis-capture of the Python environment."""
    return Path(os.environ.get("JARVIS_FIRMWARE_DIR") or Path(sys.prefix, "lib", "jarvis-capture"))


def default_release_root() -> bytes:
    """The release root's file, the first of these that there is.

    $JARVIS_RELEASE_ROOT (a path; then nothing else is tried), /etc/jarvis-capture/root.json, root.json of the default
    directory.

    Raises:
        FirmwareError: RELEASE_ROOT_MISSING when there is none or it cannot be read.
    """
    named = os.environ.get("JARVIS_RELEASE_ROOT")
    candidates = [Path(named)] if named else [SYSTEM_RELEASE_ROOT, default_directory() / ROOT_FILE]
    for path in candidates:
        data = _read_small(path, "RELEASE_ROOT_MISSING")
        if data is not None:
            return data
    looked = " and ".join(str(path) for path in candidates)
    raise FirmwareError("RELEASE_ROOT_MISSING", f"no release root at {looked}: name its file with JARVIS_RELEASE_ROOT")


def read_release_root(path: Path) -> bytes:
    """The contents of a named file.

    Raises:
        FirmwareError: RELEASE_ROOT_MISSING.
    """
    data = _read_small(path, "RELEASE_ROOT_MISSING")
    if data is None:
        raise FirmwareError("RELEASE_ROOT_MISSING", f"release root {path} does not exist")
    return data


def loaded_firmware() -> Firmware | None:
    """The firmware of this process, if it has one."""
    return _loaded


def load_firmware(
    directory: Path | None = None,
    *,
    release_root: bytes | None = None,
    floor: int = 0,
    floor_source: str = "",
    revoked: Mapping[str, str] | None = None,
    measure: Callable[[MeasuredObject], None] | None = None,
    allow_unsigned: bool = False,
) -> Firmware:
    """Seals, measures, judges and loads the native library.

    A second call measures and judges again and returns the same library if the bytes are the same.

    Args:
        directory: holds libjarvis_capture.so, its modules libjarvis_capture_<name>.so, manifest.json and manifest.sig; default
            `default_directory`.
        release_root: root.json, whose keys must have signed the manifest; default `default_release_root`. Neither it nor the
            manifest may have expired by the wall clock.
        floor: lowest security_version that is accepted (rollback protection).
        floor_source: who says so, for the message; see Manifest.check_floor.
        revoked: SHA-256 (hex) of objects and manifests that must not run all the same -> why.
        measure: called with name and digest of each object before it is judged; what it raises ends the load.
        allow_unsigned: skips the judgement, for scripts that build their own library. The bytes are sealed and measured all the
            same.

    Raises:
        FirmwareError: with the reason; `digest` is set once the bytes were measured.
    """
    where = default_directory() if directory is None else Path(directory)
    terms = _Terms(release_root=release_root, floor=floor, floor_source=floor_source, revoked=revoked or {})
    with _lock, contextlib.ExitStack() as unused:
        core = _seal_and_measure(where, LIBRARY, measure, unused)
        try:
            judged = _Judged() if allow_unsigned else _judge(where, core.digest, terms)
            names = modules.names_in(where) if judged.manifest is None else modules.names_of(judged.manifest.objects)
            present = [_seal_and_measure(where, name, measure, unused) for name in names if (where / name).exists()]
            for module in present:
                if judged.manifest is not None:
                    judged.manifest.check_object(module.name, module.digest.hex())
                    check_revoked(terms.revoked, [(module.name, module.digest.hex())])
            return _load(core, present, names, where, judged)
        except FirmwareError as error:
            error.digest = core.digest
            raise


def _seal_and_measure(
    directory: Path, name: str, measure: Callable[[MeasuredObject], None] | None, unused: contextlib.ExitStack
) -> _Sealed:
    """Seals and hashes an object and tells `measure` of it. Its descriptor is closed after the load, unless it was mapped."""
    fd = _seal(directory / name)
    unused.callback(_close_unless_mapped, fd)
    sealed = _Sealed(name=name, fd=fd, digest=_sha256(fd))
    if measure is not None:
        measure(MeasuredObject(name=name, sha256=sealed.digest))
    return sealed


def _close_unless_mapped(fd: int) -> None:
    if fd not in _mapped:
        os.close(fd)


def _load(core: _Sealed, present: list[_Sealed], names: list[str], directory: Path, judged: _Judged) -> Firmware:
    """Maps the sealed bytes, or finds them mapped already. The lock is held."""
    global _loaded  # noqa: PLW0603 - one firmware per process is the point
    vouched: dict[str, Any] = {
        "manifest": judged.manifest,
        "manifest_bytes": judged.manifest_bytes,
        "signature": judged.signature,
    }
    if _loaded is not None:
        _check_same(_loaded, core, present)
        if judged.manifest is not None and _loaded.manifest is None:
            _check_version(judged, _loaded.version)
            _loaded = replace(_loaded, directory=directory, **vouched)
        return _loaded
    from jarvis_native._cdef import ffi  # noqa: PLC0415 - the C declarations are of no use before the judgement

    try:
        lib = _dlopen(ffi, core)
        version = cast(bytes, ffi.string(lib.capture_version())).decode("ascii", "replace")
    except (OSError, AttributeError) as error:
        raise FirmwareError("FIRMWARE_UNLOADABLE", f"{directory / LIBRARY} cannot be loaded: {error}") from error
    _check_version(judged, version)
    for name in modules.absent(names, [module.name for module in present]):
        modules.note(lib, name, modules.ABSENT if name in names else modules.NOT_BUILT)
    added = {module.name: module.digest for module in present if _add(ffi, lib, module)}
    _loaded = Firmware(lib=lib, ffi=ffi, digest=core.digest, version=version, directory=directory, modules=added, **vouched)
    return _loaded


def _check_same(loaded: Firmware, core: _Sealed, present: list[_Sealed]) -> None:
    """The bytes on disk are those that this process runs; a module that it has not mapped is no fault."""
    running = {LIBRARY: loaded.digest, **loaded.modules}
    for found in (core, *present):
        if found.name in running and running[found.name] != found.digest:
            raise FirmwareError(
                "FIRMWARE_ALREADY_LOADED",
                f"this process runs {found.name} {running[found.name].hex()}: {found.digest.hex()} needs a new process",
            )


def _dlopen(ffi: Any, sealed: _Sealed) -> Any:
    """Maps an object. Its descriptor stays open from now on."""
    lib = ffi.dlopen(f"/proc/self/fd/{sealed.fd}", ffi.RTLD_NOW | ffi.RTLD_LOCAL)
    _mapped.add(sealed.fd)
    _libraries.append(lib)
    return lib


def _add(ffi: Any, lib: Any, sealed: _Sealed) -> bool:
    """Maps a module and hands its backend to the core. False: its library is not on this host, or the core does not take it."""
    try:
        module = _dlopen(ffi, sealed).jarvis_capture_module()
    except (OSError, AttributeError) as error:
        modules.note(lib, sealed.name, modules.unloadable(error))
        return False
    return modules.add(ffi, lib, sealed.name, module)


def _check_version(judged: _Judged, version: str) -> None:
    if judged.manifest is not None and judged.manifest.version != version:
        raise FirmwareError(
            "FIRMWARE_VERSION_MISMATCH", f"the library says it is version {version}, its manifest says {judged.manifest.version}"
        )


def _judge(directory: Path, digest: bytes, terms: _Terms) -> _Judged:
    """The verified manifest that names this digest, and its bytes and signatures."""
    manifest_bytes = _read_small(directory / MANIFEST_FILE, "FIRMWARE_UNSIGNED")
    signature = _read_small(directory / SIGNATURE_FILE, "FIRMWARE_UNSIGNED")
    if manifest_bytes is None or signature is None:
        missing = directory / (MANIFEST_FILE if manifest_bytes is None else SIGNATURE_FILE)
        raise FirmwareError("FIRMWARE_UNSIGNED", f"{missing} is missing: sign the library with jarvisctl firmware sign")
    root = ReleaseRoot.from_bytes(default_release_root() if terms.release_root is None else terms.release_root)
    manifest = verify_manifest(
        manifest_bytes,
        signature,
        root,
        floor=terms.floor,
        floor_source=terms.floor_source,
        architecture=os.uname().machine,
        now_ns=time.time_ns(),
    )
    manifest.check_object(LIBRARY, digest.hex())
    check_revoked(terms.revoked, [(MANIFEST_FILE, hashlib.sha256(manifest_bytes).hexdigest()), (LIBRARY, digest.hex())])
    return _Judged(manifest=manifest, manifest_bytes=manifest_bytes, signature=signature)


def _seal(path: Path) -> int:
    """A sealed memfd with the file's bytes, read once. The caller owns the descriptor."""
    try:
        with open(path, "rb", buffering=0, opener=_open_nonblocking) as source:
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise FirmwareError("FIRMWARE_MISSING", f"{path} is not a regular file")
            return _sealed_copy(source.fileno(), path)
    except OSError as error:
        raise FirmwareError("FIRMWARE_MISSING", f"{path} cannot be read: {error.strerror}") from error


def _open_nonblocking(path: str, flags: int) -> int:
    """Opens without waiting for a writer, should the path be a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _sealed_copy(source: int, path: Path) -> int:
    target = _memfd(path.name)
    try:
        _copy(source, target, path)
        fcntl.fcntl(target, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(target)
        raise
    return target


def _memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with contextlib.suppress(OSError):  # kernels before 6.3 do not know MFD_EXEC
        return os.memfd_create(name, flags | _MFD_EXEC)
    return os.memfd_create(name, flags)


def _copy(source: int, target: int, path: Path) -> None:
    """Copies until the end of the file as it is read, whatever its size was said to be."""
    total = 0
    while chunk := os.read(source, 1 << 20):
        total += len(chunk)
        if total > MAX_LIBRARY_BYTES:
            raise FirmwareError("FIRMWARE_MISSING", f"{path} is larger than {MAX_LIBRARY_BYTES} bytes: not a capture library")
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
    if total == 0:
        raise FirmwareError("FIRMWARE_MISSING", f"{path} is empty")


def _sha256(fd: int) -> bytes:
    """SHA-256 of the sealed bytes themselves, not of what was copied into them."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
        return hashlib.sha256(view).digest()


def _read_small(path: Path, reason: str) -> bytes | None:
    """A small file's bytes, or None when there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FirmwareError(reason, f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise FirmwareError(reason, f"{path} is larger than {MAX_TEXT_BYTES} bytes")
    return data
