# SPDX-License-Identifier: Apache-2.0
"""What may be believed of a boot log's events, and what they say of the boot.

    BootLog -> check_events (each event of PCRs 0-7 is of a known kind, and its data is the digest's where that can be told)
            -> boot_facts (secure boot, keys, kernel command line), from such data alone

An event's type and data are not covered by its digest: an attacker who replays honest digests may relabel them (go-attestation,
"event log disclosure"). So nothing is concluded from data whose digest was not recomputed here, and a security PCR holds nothing
that is not on the list.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import uuid
from dataclasses import dataclass
from typing import Final

from jarvis_trust.boot_log import BootEvent, BootLog, EventType
from jarvis_trust.errors import AttestationError, Finding

SECURITY_PCRS: Final = tuple(range(8))
"""Firmware, its configuration, option ROMs, boot loader, partition table, secure-boot policy (PFP 1.06, 3.3.4)."""

_ANYWHERE: Final = frozenset({EventType.SEPARATOR, EventType.NO_ACTION, EventType.ACTION, EventType.EFI_ACTION})
_ALLOWED: Final[dict[int, frozenset[EventType]]] = {
    0: frozenset(
        {
            EventType.POST_CODE, EventType.POST_CODE2, EventType.S_CRTM_CONTENTS, EventType.S_CRTM_VERSION,
            EventType.CPU_MICROCODE, EventType.EFI_PLATFORM_FIRMWARE_BLOB, EventType.EFI_PLATFORM_FIRMWARE_BLOB2,
            EventType.EFI_HCRTM_EVENT,
            EventType.EFI_BOOT_SERVICES_DRIVER, EventType.EFI_RUNTIME_SERVICES_DRIVER, EventType.NONHOST_CODE,
            EventType.NONHOST_INFO, EventType.EFI_HANDOFF_TABLES, EventType.EFI_HANDOFF_TABLES2,
            EventType.EFI_BOOT_SERVICES_APPLICATION,
        }
    ),
    1: frozenset(
        {
            EventType.PLATFORM_CONFIG_FLAGS, EventType.TABLE_OF_DEVICES, EventType.CPU_MICROCODE, EventType.NONHOST_CONFIG,
            EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_VARIABLE_BOOT, EventType.EFI_VARIABLE_BOOT2,
            EventType.EFI_HANDOFF_TABLES, EventType.EFI_HANDOFF_TABLES2, EventType.POST_CODE, EventType.POST_CODE2,
            EventType.EVENT_TAG,
        }
    ),
    2: frozenset(
        {
            EventType.EFI_BOOT_SERVICES_APPLICATION, EventType.EFI_BOOT_SERVICES_DRIVER, EventType.EFI_RUNTIME_SERVICES_DRIVER,
            EventType.EFI_PLATFORM_FIRMWARE_BLOB, EventType.EFI_PLATFORM_FIRMWARE_BLOB2, EventType.EFI_SPDM_FIRMWARE_BLOB,
            EventType.EFI_HANDOFF_TABLES, EventType.EFI_HANDOFF_TABLES2, EventType.POST_CODE, EventType.POST_CODE2,
        }
    ),
    3: frozenset({EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_SPDM_FIRMWARE_CONFIG, EventType.EFI_HANDOFF_TABLES2}),
    4: frozenset(
        {
            EventType.EFI_BOOT_SERVICES_APPLICATION, EventType.EFI_BOOT_SERVICES_DRIVER, EventType.COMPACT_HASH, EventType.IPL,
            EventType.OMIT_BOOT_DEVICE_EVENTS, EventType.EFI_VARIABLE_BOOT,
        }
    ),
    5: frozenset(
        {
            EventType.EFI_GPT_EVENT, EventType.EFI_GPT_EVENT2, EventType.IPL_PARTITION_DATA, EventType.IPL, EventType.EVENT_TAG,
            EventType.EFI_VARIABLE_BOOT, EventType.EFI_VARIABLE_BOOT2,
        }
    ),
    6: frozenset({EventType.COMPACT_HASH, EventType.IPL}),
    7: frozenset(
        {
            EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_VARIABLE_AUTHORITY, EventType.EFI_SPDM_DEVICE_POLICY,
            EventType.EFI_SPDM_DEVICE_AUTHORITY, EventType.IPL,
        }
    ),
}  # fmt: skip

_DIGEST_OF_DATA: Final = frozenset(
    {
        EventType.SEPARATOR, EventType.ACTION, EventType.EFI_ACTION, EventType.S_CRTM_VERSION, EventType.OMIT_BOOT_DEVICE_EVENTS,
        EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_VARIABLE_AUTHORITY, EventType.EFI_VARIABLE_BOOT,
        EventType.EFI_VARIABLE_BOOT2, EventType.EFI_GPT_EVENT,
    }
)  # fmt: skip
"""Kinds whose digest is that of their data (PFP 1.06, table 27)."""

_VARIABLES: Final = frozenset(
    {
        EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.EFI_VARIABLE_AUTHORITY, EventType.EFI_VARIABLE_BOOT,
        EventType.EFI_VARIABLE_BOOT2,
    }
)  # fmt: skip
"""UEFI_VARIABLE_DATA. Firmware before PFP 1.05 and shim measure the variable's contents alone for some of them."""

_SEPARATORS: Final = frozenset({bytes(4), b"\xff\xff\xff\xff"})
_GLOBAL_VARIABLE: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_SECURITY_DATABASE: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_KEY_VARIABLES: Final = {
    "PK": _GLOBAL_VARIABLE,
    "KEK": _GLOBAL_VARIABLE,
    "db": _SECURITY_DATABASE,
    "dbx": _SECURITY_DATABASE,
}
_GRUB_COMMAND_LINES: Final = (b"kernel_cmdline: ", b"grub_kernel_cmdline ")
_TEXTS: Final = frozenset(
    {EventType.ACTION, EventType.EFI_ACTION, EventType.IPL, EventType.POST_CODE, EventType.OMIT_BOOT_DEVICE_EVENTS}
)
_NAME_MAX: Final = 512
_COMMAND_LINE_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class UefiVariable:
    """UEFI_VARIABLE_DATA: a variable as it was when it was measured."""

    guid: uuid.UUID
    name: str
    contents: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFacts:
    """What the checked events say. None: no event that can be believed says so."""

    secure_boot: bool | None
    """The variable SecureBoot, measured before the separator of PCR 7."""
    key_digests: dict[str, str]
    """PK, KEK, db, dbx -> SHA-256 of the variable's contents, hex."""
    kernel_command_line: str | None
    """What the boot loader passed to the kernel (GRUB: PCR 8; systemd-stub: PCR 12). Only as good as the quote of that PCR."""


def check_events(log: BootLog) -> None:
    """Judges the events of PCRs 0 to 7.

    Raises:
        AttestationError: BOOT_EVENT_INVALID naming the event and the PCR: a kind that does not belong there, a digest that is not
            its data's, an error separator, no separator or two, secure-boot configuration after PCR 7's separator.
    """
    separated: set[int] = set()
    for event in log.events:
        if event.pcr not in _ALLOWED:
            continue
        _check_kind(event)
        if event.type in _DIGEST_OF_DATA and not digest_is_of_data(event):
            raise _invalid(event, "its digest is not that of its data")
        if event.type == EventType.SEPARATOR:
            if event.data not in _SEPARATORS:
                raise _invalid(event, f"the separator is {event.data[:8].hex()}: the firmware reported an error")
            if event.pcr in separated:
                raise _invalid(event, "it is the PCR's second separator")
            separated.add(event.pcr)
        elif event.type == EventType.EFI_VARIABLE_DRIVER_CONFIG and event.pcr == 7 and 7 in separated:
            raise _invalid(event, "secure-boot configuration after the separator")
    missing = sorted(set(SECURITY_PCRS) - separated)
    if missing:
        raise AttestationError(
            "BOOT_EVENT_INVALID",
            f"boot log: PCRs {missing} have no separator, which ends the firmware's part",
            finding=Finding(pcr=missing[0]),
        )


def _check_kind(event: BootEvent) -> None:
    if event.type not in _ALLOWED[event.pcr] and event.type not in _ANYWHERE:
        raise _invalid(event, f"events of this type do not belong into PCR {event.pcr}")


def digest_is_of_data(event: BootEvent) -> bool:
    """Whether the digest was made from the data that is shown beside it."""
    if hmac.compare_digest(hashlib.sha256(event.data).digest(), event.digest):
        return True
    if event.type not in _VARIABLES:
        return False
    variable = parse_variable(event.data)
    return variable is not None and hmac.compare_digest(hashlib.sha256(variable.contents).digest(), event.digest)


def parse_variable(data: bytes) -> UefiVariable | None:
    """UEFI_VARIABLE_DATA: GUID (16), name length in characters (u64), contents length (u64), name (UTF-16LE), contents."""
    if len(data) < 32:
        return None
    name_length, contents_length = struct.unpack_from("<QQ", data, 16)
    if name_length > _NAME_MAX or 32 + 2 * name_length + contents_length != len(data):
        return None
    end = 32 + 2 * name_length
    try:
        name = data[32:end].decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError:
        return None
    return UefiVariable(guid=uuid.UUID(bytes_le=data[:16]), name=name, contents=data[end:])


def boot_facts(log: BootLog) -> BootFacts:
    """What a log that check_events accepts says of the boot."""
    secure_boot: bool | None = None
    keys: dict[str, str] = {}
    for event in log.of_pcr(7):
        # Only what was measured whole: a digest of the contents alone does not say which variable they are of.
        if event.type != EventType.EFI_VARIABLE_DRIVER_CONFIG or hashlib.sha256(event.data).digest() != event.digest:
            continue
        variable = parse_variable(event.data)
        if variable is None:
            continue
        if (variable.name, variable.guid) == ("SecureBoot", _GLOBAL_VARIABLE):
            secure_boot = variable.contents == b"\x01"
        elif _KEY_VARIABLES.get(variable.name) == variable.guid:
            keys[variable.name] = hashlib.sha256(variable.contents).hexdigest()
    return BootFacts(secure_boot=secure_boot, key_digests=keys, kernel_command_line=_command_line(log))


def _command_line(log: BootLog) -> str | None:
    """The last one that was measured: each is a kernel that was started, and the last of them runs."""
    found: str | None = None
    for event in log.events:
        if event.type != EventType.IPL or len(event.data) > _COMMAND_LINE_MAX * 2:
            continue
        if event.pcr == 8:
            found = _grub_command_line(event) or found
        elif event.pcr == 12 and hashlib.sha256(event.data).digest() == event.digest:
            found = _text(event.data, "utf-16-le") or found
    return found


def _grub_command_line(event: BootEvent) -> str | None:
    """GRUB measures the words after its prefix, and shows both with a final NUL."""
    text = event.data.rstrip(b"\0")
    for prefix in _GRUB_COMMAND_LINES:
        line = text.removeprefix(prefix)
        if line != text and hashlib.sha256(line).digest() == event.digest:
            return _text(line, "utf-8")
    return None


def _text(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding).rstrip("\0") or None
    except UnicodeDecodeError:
        return None


def component(event: BootEvent) -> str:
    """What the event is about, in a few words for people: printable, at most 120 characters, and only a claim of the log."""
    variable = parse_variable(event.data) if event.type in _VARIABLES else None
    if variable is not None:
        words = f"variable {variable.name}"
    elif event.type in _TEXTS:
        words = event.data.rstrip(b"\0").decode("utf-8", "replace")
    elif event.type == EventType.S_CRTM_VERSION:
        words = "version " + (_text(event.data, "utf-16-le") or event.data[:16].hex())
    elif event.type == EventType.SEPARATOR:
        words = "end of the firmware's part"
    else:
        words = f"{len(event.data)} bytes"
    return "".join(character if character.isprintable() else "?" for character in words)[:120]


def _invalid(event: BootEvent, message: str) -> AttestationError:
    return AttestationError(
        "BOOT_EVENT_INVALID",
        f"boot log: event {event.number} ({event.type_name}, PCR {event.pcr}): {message}",
        finding=Finding(pcr=event.pcr, event=event.number, component=f"{event.type_name} {component(event)}"),
    )
