# SPDX-License-Identifier: Apache-2.0
"""The firmware's own event log: what measured boot put into PCRs 0 to 15 before and while the kernel was loaded.

    bytes (TCG PC Client Platform Firmware Profile 1.06, 10.2: crypto-agile format) -> BootLog -> replay -> PCR values

    TCG_PCR_EVENT    pcr u32 | type u32 | SHA-1 digest (20)            | size u32 | event      the first record, "Spec ID Event03"
    TCG_PCR_EVENT2   pcr u32 | type u32 | count u32, {alg u16, digest} | size u32 | event      all others

All integers are little-endian. The bytes come from agents and are hostile: every size is bounded before it is used, all of the
input is read or refused, and only the SHA-256 bank counts. An event's type and data are NOT covered by its digest; what may be
believed of them is boot_events.py's matter.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import ALG_SHA256

MAX_BOOT_LOG_BYTES: Final = 2 * 1024 * 1024
MAX_BOOT_EVENTS: Final = 8192
MAX_EVENT_BYTES: Final = 1024 * 1024

_SPEC_ID: Final = b"Spec ID Event03\0"
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_MAX_ALGORITHMS: Final = 8
_DIGEST_BYTES: Final = {0x0004: 20, ALG_SHA256: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32, 0x0027: 32, 0x0028: 48, 0x0029: 64}
"""TPM_ALG_ID -> bytes: SHA-1, SHA-256, SHA-384, SHA-512, SM3, SHA3-256, SHA3-384, SHA3-512."""
_PCRS: Final = 24
_EVENT_HEAD: Final = struct.Struct("<III")
_ALGORITHM: Final = struct.Struct("<H")
_SIZE: Final = struct.Struct("<I")


class EventType(IntEnum):
    """TCG_EVENTTYPE, PFP 1.06 table 27."""

    PREBOOT_CERT = 0x00000000
    POST_CODE = 0x00000001
    NO_ACTION = 0x00000003
    SEPARATOR = 0x00000004
    ACTION = 0x00000005
    EVENT_TAG = 0x00000006
    S_CRTM_CONTENTS = 0x00000007
    S_CRTM_VERSION = 0x00000008
    CPU_MICROCODE = 0x00000009
    PLATFORM_CONFIG_FLAGS = 0x0000000A
    TABLE_OF_DEVICES = 0x0000000B
    COMPACT_HASH = 0x0000000C
    IPL = 0x0000000D
    IPL_PARTITION_DATA = 0x0000000E
    NONHOST_CODE = 0x0000000F
    NONHOST_CONFIG = 0x00000010
    NONHOST_INFO = 0x00000011
    OMIT_BOOT_DEVICE_EVENTS = 0x00000012
    POST_CODE2 = 0x00000013
    EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EFI_VARIABLE_BOOT = 0x80000002
    EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EFI_GPT_EVENT = 0x80000006
    EFI_ACTION = 0x80000007
    EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EFI_HANDOFF_TABLES = 0x80000009
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EFI_HANDOFF_TABLES2 = 0x8000000B
    EFI_VARIABLE_BOOT2 = 0x8000000C
    EFI_GPT_EVENT2 = 0x8000000D
    EFI_HCRTM_EVENT = 0x80000010
    EFI_VARIABLE_AUTHORITY = 0x800000E0
    EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2
    EFI_SPDM_DEVICE_POLICY = 0x800000E3
    EFI_SPDM_DEVICE_AUTHORITY = 0x800000E4


class BootEvent(NamedTuple):
    """One record of the log. A tuple: logs have hundreds, and a fleet sends many logs."""

    number: int
    """Position in the log, from 0; the header is 0."""
    pcr: int
    type: int
    """As the log says; see EventType for those that are known."""
    digest: bytes
    """SHA-256 bank, 32 bytes."""
    data: bytes
    """As the log says; not covered by the digest unless boot_events.py finds that it is."""

    @property
    def type_name(self) -> str:
        """EV_... as in the specification, or the number."""
        try:
            return f"EV_{EventType(self.type).name}"
        except ValueError:
            return f"{self.type:#010x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLog:
    """A log as read."""

    events: tuple[BootEvent, ...]
    """Without the header."""
    startup_locality: int
    """What TPM2_Startup was called from: 0, 3, or 4 when an H-CRTM measured before; the last byte of PCR 0's initial value."""

    def of_pcr(self, pcr: int) -> tuple[BootEvent, ...]:
        """The events that extended one PCR, in order."""
        return tuple(event for event in self.events if event.pcr == pcr and event.type != EventType.NO_ACTION)

    def replay(self, pcrs: Collection[int]) -> dict[int, bytes]:
        """The values that these PCRs have after all events, 32 bytes each.

        PCRs 17 to 22 start at all ones and are no part of a boot log; initial values never come from the evidence but for PCR 0's
        locality, which TPM2_Startup itself puts there (PFP 1.06, 10.4.5.3).
        """
        values = {pcr: bytes(32) for pcr in pcrs}
        if 0 in values:
            values[0] = bytes(31) + bytes([self.startup_locality])
        for event in self.events:
            if event.pcr in values and event.type != EventType.NO_ACTION:
                values[event.pcr] = hashlib.sha256(values[event.pcr] + event.digest).digest()
        return values


def extend_all(value: bytes, digests: Iterable[bytes]) -> bytes:
    """What a PCR of the SHA-256 bank holds after these extensions, 32 bytes."""
    for digest in digests:
        value = hashlib.sha256(value + digest).digest()
    return value


class _Reader:
    """A little-endian cursor that never reads past the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self.offset = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self.offset

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise _invalid(f"ends inside {what}: {size} bytes wanted at offset {self.offset}, {self.left} left")
        chunk = self._data[self.offset : self.offset + size]
        self.offset += size
        return chunk

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")


def parse_boot_log(data: bytes) -> BootLog:
    """Every event of a log in crypto-agile format with a SHA-256 bank.

    Trailing zero bytes are not accepted: the kernel cuts the table where it ends.

    Raises:
        AttestationError: BOOT_LOG_INVALID naming the record and the field.
    """
    if len(data) > MAX_BOOT_LOG_BYTES:
        raise _invalid(f"{len(data)} bytes; at most {MAX_BOOT_LOG_BYTES} are accepted")
    reader = _Reader(data)
    algorithms = _parse_header(reader)
    events: list[BootEvent] = []
    offset, usual = reader.offset, _UsualLayout(algorithms)
    while offset < len(data):
        if len(events) == MAX_BOOT_EVENTS:
            raise _invalid(f"more than {MAX_BOOT_EVENTS} events")
        number = len(events) + 1
        event, offset = usual.parse(data, offset, number) or _parse_event(data, offset, number, algorithms)
        events.append(event)
    return BootLog(events=tuple(events), startup_locality=_startup_locality(events))


class _UsualLayout:
    """Events whose digests stand in the header's order, as all firmware writes them: read in one step.

    Whatever does not fit is left to _parse_event, which reads field by field and says what is wrong.
    """

    def __init__(self, algorithms: dict[int, int]) -> None:
        self._head = struct.Struct("<III" + "".join(f"H{size}s" for size in algorithms.values()) + "I")
        self._algorithms = tuple(algorithms)
        self._sha256 = 4 + 2 * self._algorithms.index(ALG_SHA256)

    def parse(self, data: bytes, offset: int, number: int) -> tuple[BootEvent, int] | None:
        """The event at the offset and where the next one begins; None when it is not of this layout."""
        start = offset + self._head.size
        if start > len(data):
            return None
        fields = self._head.unpack_from(data, offset)
        end = start + fields[-1]
        if fields[0] >= _PCRS or fields[2] != len(self._algorithms) or fields[3:-1:2] != self._algorithms:
            return None
        if fields[-1] > MAX_EVENT_BYTES or end > len(data):
            return None
        return BootEvent(number, fields[0], fields[1], fields[self._sha256], data[start:end]), end


def _parse_header(reader: _Reader) -> dict[int, int]:
    """TCG_PCR_EVENT with TCG_EfiSpecIDEvent: the banks that every later event carries, with their digests' sizes."""
    pcr, kind = reader.integer(4, "the header's PCR"), reader.integer(4, "the header's type")
    reader.take(20, "the header's digest")
    header = _Reader(reader.take(_bounded(reader, "the header's event"), "the header's event"))
    if pcr != 0 or kind != EventType.NO_ACTION or header.take(16, "the signature") != _SPEC_ID:
        raise _invalid('the first record is no "Spec ID Event03": only the crypto-agile format (TPM 2.0) is accepted')
    header.take(8, "platform class and version")  # u32, minor, major, errata, uintnSize
    count = header.integer(4, "numberOfAlgorithms")
    if not 1 <= count <= _MAX_ALGORITHMS:
        raise _invalid(f"numberOfAlgorithms is {count}; 1 to {_MAX_ALGORITHMS} are accepted")
    algorithms: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = struct.unpack("<HH", header.take(4, "digestSizes"))
        if algorithm in algorithms or _DIGEST_BYTES.get(algorithm, size) != size or not 1 <= size <= 64:
            raise _invalid(f"digestSizes: algorithm {algorithm:#06x} with {size} bytes is not accepted")
        algorithms[algorithm] = size
    header.take(header.integer(1, "vendorInfoSize"), "vendorInfo")
    if header.left:
        raise _invalid(f"{header.left} bytes follow vendorInfo")
    if ALG_SHA256 not in algorithms:
        raise _invalid("there is no SHA-256 bank (0x000b) in it")
    return algorithms


def _parse_event(data: bytes, offset: int, number: int, algorithms: dict[int, int]) -> tuple[BootEvent, int]:
    """The TCG_PCR_EVENT2 that begins at the offset, and where the next one does."""
    pcr, kind, count = _unpack(_EVENT_HEAD, data, offset, number, "PCR, type and digest count")
    offset += _EVENT_HEAD.size
    if pcr >= _PCRS:
        raise _invalid(f"event {number} is of PCR {pcr}; 0 to {_PCRS - 1} are accepted")
    if count != len(algorithms):
        raise _invalid(f"event {number} has {count} digests; the header promises {len(algorithms)}")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        (algorithm,) = _unpack(_ALGORITHM, data, offset, number, "algorithm")
        if algorithm not in algorithms or algorithm in digests:
            found = f"a digest of algorithm {algorithm:#06x}, which the header does not promise, or twice"
            raise _invalid(f"event {number} has {found}")
        start = offset + _ALGORITHM.size
        offset = start + algorithms[algorithm]
        digests[algorithm] = data[start:offset]
    (size,) = _unpack(_SIZE, data, offset, number, "size")  # also where a digest was cut: the offset is past the end then
    start = offset + _SIZE.size
    if size > MAX_EVENT_BYTES:
        raise _invalid(f"event {number} has {size} bytes of data; at most {MAX_EVENT_BYTES} are accepted")
    if size > len(data) - start:
        raise _invalid(f"ends inside event {number}'s data: {size} bytes wanted at offset {start}, {len(data) - start} left")
    offset = start + size
    return BootEvent(number, pcr, kind, digests[ALG_SHA256], data[start:offset]), offset


def _unpack(form: struct.Struct, data: bytes, offset: int, number: int, what: str) -> tuple[int, ...]:
    try:
        return form.unpack_from(data, offset)
    except struct.error:
        left = max(0, len(data) - offset)
        raise _invalid(f"ends inside event {number}'s {what}: {form.size} bytes wanted at offset {offset}, {left} left") from None


def _bounded(reader: _Reader, what: str) -> int:
    size = reader.integer(4, f"{what}'s size")
    if size > MAX_EVENT_BYTES:
        raise _invalid(f"{what} has {size} bytes of data; at most {MAX_EVENT_BYTES} are accepted")
    return size


def _startup_locality(events: list[BootEvent]) -> int:
    """From the one EV_NO_ACTION that tells it, which stands before anything that extends PCR 0."""
    locality, told, extended = 0, False, False
    for event in events:
        if event.type == EventType.EFI_HCRTM_EVENT and event.pcr == 0 and not extended and not told:
            locality = 4
        if event.pcr != 0:
            continue
        if event.type != EventType.NO_ACTION:
            extended = True
        elif event.data.startswith(_STARTUP_LOCALITY):
            value = event.data[len(_STARTUP_LOCALITY) :]
            if told or extended or value not in {b"\x00", b"\x03", b"\x04"}:
                raise _invalid(
                    f"event {event.number}: a StartupLocality of 0, 3 or 4, once and before PCR 0 is extended, is accepted"
                )
            locality, told = value[0], True
    return locality


def _invalid(message: str) -> AttestationError:
    return AttestationError("BOOT_LOG_INVALID", f"boot log: {message}")
