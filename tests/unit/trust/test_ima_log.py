# SPDX-License-Identifier: Apache-2.0
"""IMA's measurement list: read strictly, replayed as the kernel extends it, and as evmctl (ima-evm-utils) reads it."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jarvis_trust.errors import AttestationError
from jarvis_trust.ima_log import ImaEntry, extends_padded_sha1, parse_ima_log, replay_until, split_ima_log
from jarvis_trust.ima_policy import ImaPolicy, format_allow_list, is_firmware, parse_allow_list

from testbed.ima import Measured, boot_aggregate, ima_log, pcr_of

FILES = [
    boot_aggregate({}),
    Measured(path="/usr/bin/python3.11", contents=b"interpreter"),
    Measured(path="/usr/lib/libjarvis_capture.so", contents=b"library", signature=b"\x03\x02\x04signature"),
    Measured(path="/var/log/journal", is_violation=True),
    Measured(path="/a name with spaces\nand more", contents=b"x"),
]
LOG = ima_log(FILES)


def refusal(log: bytes) -> str:
    with pytest.raises(AttestationError) as refused:
        parse_ima_log(log)
    assert refused.value.reason == "IMA_LOG_INVALID"
    return refused.value.message


def test_entries_say_what_was_measured() -> None:
    entries = parse_ima_log(LOG)
    assert [entry.path.decode() for entry in entries] == [file.path for file in FILES]
    assert [entry.number for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.is_violation for entry in entries] == [False, False, False, True, False]
    assert entries[1].digest == hashlib.sha256(b"interpreter").digest()
    assert {entry.algorithm for entry in entries} == {"sha256"}
    assert entries[1].extended == hashlib.sha256(FILES[1].template).digest()
    assert entries[3].extended == b"\xff" * 32


def test_a_list_may_be_ahead_of_the_quote_and_tells_by_how_much() -> None:
    entries = parse_ima_log(LOG)
    for count in range(len(FILES) + 1):
        assert replay_until(entries, bytes(32), pcr_of(ima_log(FILES[:count]))) == count
    assert replay_until(entries, bytes(32), hashlib.sha256(b"another").digest()) is None
    assert replay_until(entries, b"\1" * 32, pcr_of(LOG)) is None


def test_a_list_goes_on_where_it_was_left() -> None:
    count, offset = split_ima_log(LOG, 2)
    assert count == len(FILES)
    rest = parse_ima_log(LOG[offset:], first=2)
    assert [entry.number for entry in rest] == [2, 3, 4]
    assert replay_until(rest, pcr_of(ima_log(FILES[:2])), pcr_of(LOG)) == 3
    assert split_ima_log(LOG, 99) == (5, len(LOG))
    assert split_ima_log(LOG + LOG[:50], 5) == (5, len(LOG))


def test_a_kernel_that_extends_padded_sha1_is_told_apart() -> None:
    value = bytes(32)
    for file in FILES:
        sha1 = hashlib.sha1(file.template, usedforsecurity=False).digest() + bytes(12)
        value = hashlib.sha256(value + (b"\xff" * 32 if file.is_violation else sha1)).digest()
    entries = parse_ima_log(LOG)
    assert replay_until(entries, bytes(32), value) is None
    assert extends_padded_sha1(entries, value)
    assert not extends_padded_sha1(entries, pcr_of(LOG))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (LOG + b"\0", "ends inside entry 5"),
        (LOG[:-1], "ends inside entry 4"),
        (FILES[1].entry(pcr=11), "of PCR 11; 10 is accepted"),
        (LOG.replace(b"ima-sig", b"ima-buf"), "entry 2 is of template b'ima-buf'"),
        (LOG.replace(b"interpreter", b"interpreter") [:24] + struct.pack("<I", 17) + LOG[28:], "17 bytes; 1 to 16"),
        (FILES[1].entry().replace(b"python3.11", b"python3.12"), "does not have the SHA-1 that it names"),
        (LOG[:34] + struct.pack("<I", 2**32 - 1) + LOG[38:], "size of 4294967295"),
        (Measured(path="/x", algorithm="SHA 256").entry(), "not of the form"),
        (Measured(path="/x", digest=b"short").entry(), "not of the form"),
        (Measured(path="/x\0y").entry(), "ends with a NUL"),
        (Measured(path="").entry(), "ends with a NUL"),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused(log: bytes, message: str) -> None:
    assert message in refusal(log)


def test_a_field_behind_the_last_is_refused() -> None:
    template = FILES[1].template + struct.pack("<I", 0)
    sha1 = hashlib.sha1(template, usedforsecurity=False).digest()
    assert "4 bytes follow its 2 fields" in refusal(
        struct.pack("<I20sI", 10, sha1, 6) + b"ima-ng" + struct.pack("<I", len(template)) + template
    )


def readable(log: bytes) -> tuple[ImaEntry, ...] | None:
    """None: it is refused, with the one reason there is."""
    try:
        return parse_ima_log(log)
    except AttestationError as error:
        reason = error.reason
    assert reason == "IMA_LOG_INVALID"
    return None


paths = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=60)
measured = st.builds(
    Measured,
    path=paths,
    contents=st.binary(max_size=8),
    signature=st.none() | st.binary(max_size=64),
    is_violation=st.booleans(),
)


@given(files=st.lists(measured, max_size=12), cut=st.integers(0, 11))
def test_any_list_reads_back_and_replays_in_parts(files: list[Measured], cut: int) -> None:
    log = ima_log(files)
    entries = parse_ima_log(log)
    assert [entry.path.decode() for entry in entries] == [file.path for file in files]
    before = ima_log(files[:cut])
    count, offset = split_ima_log(log, cut)
    assert (count, offset) == (len(files), len(before))
    assert replay_until(parse_ima_log(log[offset:], first=cut), pcr_of(before), pcr_of(log)) is not None


@given(at=st.integers(0, len(LOG) - 1), to=st.binary(min_size=1, max_size=4))
def test_damage_is_refused_or_changes_the_replay_but_for_what_a_violation_says(at: int, to: bytes) -> None:
    damaged = LOG[:at] + to + LOG[at + len(to) :]
    start = len(ima_log(FILES[:3]))
    in_violation = start <= at and at + len(to) <= len(ima_log(FILES[:4]))
    entries = readable(damaged)
    if entries is None:
        return
    if damaged != LOG and not in_violation:
        assert replay_until(entries, bytes(32), pcr_of(LOG)) is None or [(entry.path, entry.digest) for entry in entries[:3]] == [
            (entry.path, entry.digest) for entry in parse_ima_log(LOG)[:3]
        ]


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_list_raise_nothing_else(data: bytes) -> None:
    readable(data)


def _evmctl(tmp_path: Path, log: bytes, pcr: bytes) -> bool:
    """What `evmctl ima_measurement` says of a list and a value of PCR 10."""
    (tmp_path / "list").write_bytes(log)
    values = [pcr if index == 10 else bytes(32) for index in range(24)]
    text = "".join(f"PCR-{index:02d}: {value.hex(' ').upper()}\n" for index, value in enumerate(values))
    (tmp_path / "pcrs").write_text(text)
    command = ["evmctl", "ima_measurement", "--pcrs", f"sha256,{tmp_path / 'pcrs'}", str(tmp_path / "list")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Matched per TPM bank" in done.stdout + done.stderr or done.returncode, done.stdout + done.stderr
    return done.returncode == 0


@pytest.mark.skipif(shutil.which("evmctl") is None, reason="evmctl is not installed (package ima-evm-utils)")
def test_evmctl_replays_a_list_to_the_same_value(tmp_path: Path) -> None:
    trusted = [file for file in FILES if not file.is_violation]
    log = ima_log(trusted)
    assert _evmctl(tmp_path, log, pcr_of(log))
    assert not _evmctl(tmp_path, log, pcr_of(ima_log([*trusted[:-1], Measured(path="/other")])))


def test_a_policy_covers_paths_below_its_directories_and_firmware_anywhere() -> None:
    policy = ImaPolicy(paths=("/opt/agent/", "/usr/bin/python3.11"), required=("/usr/bin/env",))
    covered = [b"/opt/agent/x", b"/usr/bin/python3.11", b"/usr/bin/env", b"/tmp/libjarvis_capture_xdp.so"]
    assert all(policy.covers(path) for path in covered)
    others = [b"/opt/agent", b"/opt/agent2/x", b"/usr/bin/python3.11x", b"/tmp/libjarvis_capture.so.1", b"/tmp/libother.so"]
    assert not any(policy.covers(path) for path in others)
    assert is_firmware(b"libjarvis_capture.so")


@pytest.mark.parametrize("paths", [("relative",), ("/",), ("/a\0b",), ("",)])
def test_a_path_that_says_nothing_is_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(AttestationError, match="an absolute path other than /"):
        ImaPolicy(paths=paths)


def test_a_list_of_digests_is_what_sha256sum_prints(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"contents")
    printed = subprocess.run(["sha256sum", str(file)], capture_output=True, check=True).stdout
    allowed = parse_allow_list(printed)
    assert allowed == {(str(file).encode(), hashlib.sha256(b"contents").digest())}
    assert parse_allow_list(format_allow_list(allowed)) == allowed
    for wrong in (b"abc  /x\n", b"0" * 64 + b"  relative\n", b"0" * 64 + b" /x\n", b"\\" + b"0" * 64 + b"  /x\\n\n"):
        with pytest.raises(AttestationError, match="line 1"):
            parse_allow_list(wrong)
