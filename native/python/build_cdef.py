# SPDX-License-Identifier: Apache-2.0
"""Generates jarvis_native/_cdef.py from the public C header.

The header is preprocessed by the C compiler with JARVIS_CAPTURE_CDEF defined, which leaves declarations only, and handed to cffi
in out-of-line ABI mode: the result is a Python module that needs neither a compiler nor the library to import. It is committed; a
test runs `generate` again and compares.

usage: python native/python/build_cdef.py [--check]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cffi
from cffi import recompiler

ROOT = Path(__file__).resolve().parent
HEADER = ROOT.parent / "include" / "jarvis_capture.h"
OUTPUT = ROOT / "jarvis_native" / "_cdef.py"
PREAMBLE = """\
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501
# Written by native/python/build_cdef.py from native/include/jarvis_capture.h; do not edit.
"""


def declarations(header: Path = HEADER) -> str:
    """The header's declarations as the C preprocessor leaves them."""
    command = ["cc", "-E", "-P", "-DJARVIS_CAPTURE_CDEF", str(header)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def generate(header: Path = HEADER) -> str:
    """The text of jarvis_native/_cdef.py for this header."""
    builder = cffi.FFI()
    builder.cdef(declarations(header))
    builder.set_source("jarvis_native._cdef", None)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "_cdef.py"
        recompiler.make_py_source(builder, "jarvis_native._cdef", str(target))
        return PREAMBLE + target.read_text(encoding="utf-8")


def main() -> int:
    """Writes the module, or with --check says whether the committed one is current (exit 1 when it is not)."""
    text = generate()
    if "--check" in sys.argv[1:]:
        if OUTPUT.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"error: {OUTPUT} does not match {HEADER}: run python native/python/build_cdef.py\n")
            return 1
        return 0
    OUTPUT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
