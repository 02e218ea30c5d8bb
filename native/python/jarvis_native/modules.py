# SPDX-License-Identifier: Apache-2.0
"""Modules of the native library: which objects they are, and how the core gets to know of each, present or not.

A module is libjarvis_capture_<name>.so, with one backend that needs a library which not every host has. The loader verifies and
maps it; what cannot be mapped is noted in the core with its reason, so that the list of backends says why it is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

DESCRIPTIONS = {
    "dpdk": "DPDK 22.11 poll-mode drivers, a receive queue per worker",
    "xdp": "Linux AF_XDP: takes frames before the host's stack, a socket per receive queue",
}
"""What is said of a module that is not here, by its name: also the modules that there are."""
ABSENT = "its file, which the manifest names, is not in the firmware directory"
NOT_BUILT = "this release was built without it"

_OBJECT = re.compile(r"libjarvis_capture_([a-z0-9_]{1,15})\.so")
_DLERROR_PREFIX = re.compile(r"cannot load library '[^']*': ")


def names_of(objects: Iterable[str]) -> list[str]:
    """Those of a manifest's object names that are modules, in order."""
    return sorted(name for name in objects if _OBJECT.fullmatch(name))


def names_in(directory: Path) -> list[str]:
    """The modules that lie in a directory, in order: what unsigned firmware has instead of a manifest."""
    return names_of(path.name for path in directory.glob("libjarvis_capture_*.so"))


def absent(names: Iterable[str], present: Iterable[str]) -> list[str]:
    """Modules that a manifest names or that are known, and that are not there, in order."""
    return sorted({*names, *(f"libjarvis_capture_{name}.so" for name in DESCRIPTIONS)} - set(present))


def unloadable(error: Exception) -> str:
    """What the dynamic linker said, without the path of the descriptor that it was given."""
    return _DLERROR_PREFIX.sub("", str(error))


def note(lib: Any, object_name: str, reason: str) -> None:
    """Tells the core of a backend that is not there. One that the core knows already keeps its place."""
    name = _backend_of(object_name)
    description = DESCRIPTIONS.get(name, f"module {object_name}")
    lib.capture_note_module(name.encode(), description.encode(), reason.encode())


def add(ffi: Any, lib: Any, object_name: str, module: Any) -> bool:
    """Hands a mapped module to the core; what the core refuses is noted with its reason. True: it was taken."""
    info = ffi.new("struct capture_error_info *")
    if lib.capture_add_module(module, info) == lib.CAPTURE_OK:
        return True
    note(lib, object_name, cast(bytes, ffi.string(info.message)).decode("utf-8", "replace"))
    return False


def _backend_of(object_name: str) -> str:
    match = _OBJECT.fullmatch(object_name)
    return object_name if match is None else match[1]
