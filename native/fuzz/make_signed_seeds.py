# SPDX-License-Identifier: Apache-2.0
"""Seeds of fuzz_lease, fuzz_command and fuzz_request: one folder each below the directory given.

    make_signed_seeds.py DIRECTORY

Lease and authorization are those of tests/signed_vectors.h, which the controller's signer wrote.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_VECTORS = Path(__file__).resolve().parents[1] / "tests" / "signed_vectors.h"
_REQUESTS = {
    # StartCaptureRequest{spec{interfaces: "eth0", filter: "udp"}}, the same of a file,
    # UpdateInterfacesRequest{add: "eth0", "eth1"}
    "start": b"\x0a\x0b\x0a\x04eth0\x22\x03udp",
    "replay": b"\x0a\x03\x12\x01f",
    "update": b"\x0a\x04eth0\x0a\x04eth1\x12\x04eth2",
}


def vector(name: str) -> bytes:
    """An array of the header, as bytes."""
    found = re.search(rf"{name}\[\] = \{{([^}}]*)\}}", _VECTORS.read_text())
    if found is None:
        raise SystemExit(f"{_VECTORS}: {name}[] is not there")
    return bytes(int(value, 16) for value in re.findall(r"0x[0-9a-f]{2}", found[1]))


def main() -> None:
    """Writes them."""
    directory = Path(sys.argv[1])
    seeds = {
        "fuzz_lease": {"lease": vector("vector_lease")},
        "fuzz_command": {"command": vector("vector_authorization")},
        "fuzz_request": _REQUESTS,
    }
    for target, contents in seeds.items():
        folder = directory / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
