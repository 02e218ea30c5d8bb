# SPDX-License-Identifier: Apache-2.0
"""Seeds of fuzz_decode: a file for each frame of the pcap files given, behind the four bytes that choose its link type.

    make_seeds.py DIRECTORY FILE...

The link types are read from fuzz_decode.c, so that the two agree.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_ORDERS = {b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">", b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<"}
_LONGEST = 4096  # libFuzzer's own limit; longer seeds are not used


def link_types() -> list[int]:
    """In the order of fuzz_decode.c."""
    source = Path(__file__).with_name("fuzz_decode.c").read_text()
    found = re.search(r"link_types\[\] = \{([0-9, ]+)\}", source)
    if found is None:
        raise SystemExit("fuzz_decode.c: link_types[] is not there")
    return [int(number) for number in found[1].split(",")]


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Link type and bytes of each whole frame of a pcap file; nothing of what is none."""
    order = _ORDERS.get(data[:4])
    if order is None or len(data) < 24:
        return
    link_type = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF
    at = 24
    while at + 16 <= len(data):
        length = struct.unpack_from(order + "I", data, at + 8)[0]
        if at + 16 + length > len(data):
            return
        yield link_type, data[at + 16 : at + 16 + length]
        at += 16 + length


def main() -> None:
    """Writes them; seeds of the same content are one file."""
    directory, *files = map(Path, sys.argv[1:])
    directory.mkdir(parents=True, exist_ok=True)
    numbers = {link_type: number for number, link_type in reversed(list(enumerate(link_types())))}
    for file in files:
        for link_type, frame in frames(file.read_bytes()):
            if link_type in numbers and len(frame) + 4 <= _LONGEST:
                seed = bytes((numbers[link_type], 0, 0, 0)) + frame
                (directory / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    main()
