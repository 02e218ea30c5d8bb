# SPDX-License-Identifier: Apache-2.0
"""The fleet's controller: registry, verifier, leases, fan-out of commands, merge of flows, audit.

It judges every host before it speaks to it, and needs neither a capture stack nor a TPM library.
"""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("jarvis-capture")
except metadata.PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0.0.0+source"
