# SPDX-License-Identifier: Apache-2.0
"""Reference sets: what measured boot gives on hosts that are as they should be, recorded from one of them and signed.

    recorded:  BootLog -> record_reference -> BootReference -> NAME.json; signed by k of n release keys -> NAME.json.sig
    judged:    NAME.json, NAME.json.sig, pinned release root -> verify_reference -> match_references(PCR values, log)

A set holds, for each PCR that it speaks of, the digests that extended it in order; the PCR's value follows from them. So a
mismatch can be explained by the first event that differs. The signatures (release_signatures.py) are over the file's bytes, by
the threshold of the release root's keys; the domain tag is the `format` field.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Final

from jarvis_trust.boot_events import component
from jarvis_trust.boot_log import MAX_BOOT_EVENTS, BootEvent, BootLog, extend_all
from jarvis_trust.encoding import canonical_json, check_keys, is_rfc3339_utc, is_sha256_hex, parse_json_object
from jarvis_trust.errors import AttestationError
from jarvis_trust.release_root import ReleaseRoot
from jarvis_trust.release_signatures import encode_signatures, sign_bytes

FORMAT: Final = "jarvis-boot-reference-v1"
MAX_REFERENCE_BYTES: Final = 4 * 1024 * 1024
REFERENCE_PCRS: Final = range(16)
"""What a set may speak of: PCRs that user space cannot reset."""

_FIELDS: Final = frozenset({"format", "name", "version", "created", "startup_locality", "pcrs"})
_EVENT_FIELDS: Final = frozenset({"digest", "type", "component"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TYPE: Final = re.compile(r"EV_[A-Z0-9_]{1,40}|0x[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceEvent:
    """One measurement that a good host makes."""

    digest: bytes
    """32 bytes."""
    type: str
    """EV_...; for people."""
    component: str
    """For people: what the recorded log claimed it to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReference:
    """One set. Checked on construction (BOOT_REFERENCE_INVALID)."""

    name: str
    version: int
    """Rises with every edition of the set of this name, 1..2**32-1."""
    created: str
    """RFC 3339 in UTC; informative."""
    startup_locality: int
    """0, 3 or 4: PCR 0's initial value."""
    pcrs: Mapping[int, tuple[ReferenceEvent, ...]]
    """PCR -> what extends it, in order. Read-only."""
    _values: Mapping[int, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or _NAME.fullmatch(self.name) is None:
            raise _invalid(f"name is {str(self.name)[:80]!r}; 1 to 64 characters of a-z 0-9 . _ - are accepted")
        if type(self.version) is not int or not 1 <= self.version < 2**32:
            raise _invalid(f"version is {str(self.version)[:40]}; an integer from 1 to 4294967295 is accepted")
        if not is_rfc3339_utc(self.created):
            raise _invalid("created is not RFC 3339 in UTC such as 2026-11-22T10:00:00Z")
        if self.startup_locality not in (0, 3, 4):
            raise _invalid("startup_locality is not 0, 3 or 4")
        if not self.pcrs or any(pcr not in REFERENCE_PCRS for pcr in self.pcrs):
            raise _invalid(f"pcrs are {sorted(self.pcrs)}; one or more of 0 to 15 are accepted")
        object.__setattr__(self, "pcrs", MappingProxyType(dict(self.pcrs)))
        # Once, and not for every host that is held against it.
        object.__setattr__(self, "_values", {pcr: self._replay(pcr) for pcr in self.pcrs})

    def value(self, pcr: int) -> bytes:
        """What the PCR holds on a host that is as recorded, 32 bytes."""
        return self._values[pcr]

    def _replay(self, pcr: int) -> bytes:
        initial = bytes(31) + bytes([self.startup_locality if pcr == 0 else 0])
        return extend_all(initial, (event.digest for event in self.pcrs[pcr]))

    def to_bytes(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(
            {
                "format": FORMAT,
                "name": self.name,
                "version": self.version,
                "created": self.created,
                "startup_locality": self.startup_locality,
                "pcrs": {
                    str(pcr): [
                        {"digest": event.digest.hex(), "type": event.type, "component": event.component} for event in events
                    ]
                    for pcr, events in self.pcrs.items()
                },
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> BootReference:
        """Reads exactly what `to_bytes` writes. Says nothing about who wrote it: see verify_reference.

        Raises:
            AttestationError: BOOT_REFERENCE_INVALID.
        """
        try:
            fields: dict[str, Any] = parse_json_object(data, max_bytes=MAX_REFERENCE_BYTES, canonical=True)
            check_keys(fields, _FIELDS)
            fields["pcrs"] = _parse_pcrs(fields["pcrs"])
        except ValueError as error:
            raise _invalid(str(error)) from error
        if fields.pop("format") != FORMAT:
            raise _invalid(f"format is not {FORMAT!r}")
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Why boot matches no reference set: told of the nearest one."""

    reference: str
    """"NAME version N", or empty when there are no sets."""
    pcr: int
    message: str
    """One sentence with the first event that differs."""
    event: int | None = None
    """That event's number in the log; None where the log ends too early."""
    component: str = ""
    """What it claims to be."""
    expected: str = ""
    """What the set has in its place; empty: nothing."""


def record_reference(log: BootLog, *, name: str, version: int, created: str, pcrs: Sequence[int]) -> BootReference:
    """What this log measured into these PCRs, as a set.

    Raises:
        AttestationError: BOOT_REFERENCE_INVALID.
    """
    return BootReference(
        name=name,
        version=version,
        created=created,
        startup_locality=log.startup_locality,
        pcrs={pcr: tuple(_recorded(event) for event in log.of_pcr(pcr)) for pcr in pcrs},
    )


def sign_reference(reference: BootReference, *private_pems: bytes) -> tuple[bytes, bytes]:
    """The bytes of NAME.json, and of NAME.json.sig with a signature by each of these release keys.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID.
    """
    data = reference.to_bytes()
    return data, encode_signatures(sign_bytes(data, pem) for pem in private_pems)


def verify_reference(data: bytes, signatures: bytes, root: ReleaseRoot) -> BootReference:
    """The set, once its signatures and form hold.

    Raises:
        FirmwareError: FIRMWARE_SIGNATURE_INVALID, FIRMWARE_THRESHOLD_NOT_MET.
        AttestationError: BOOT_REFERENCE_INVALID.
    """
    if len(data) > MAX_REFERENCE_BYTES:
        raise _invalid(f"{len(data)} bytes; at most {MAX_REFERENCE_BYTES} are accepted")
    root.verify(data, signatures, what="the boot reference")
    return BootReference.from_bytes(data)


def match_references(
    references: Sequence[BootReference], values: Mapping[int, bytes], log: BootLog, pcrs: Sequence[int]
) -> BootReference | Divergence:
    """The first set that has all of these PCRs' quoted values, or what keeps the nearest one from it.

    Args:
        references: verified sets.
        values: PCR -> quoted value, 32 bytes each; holds every PCR of `pcrs`.
        log: replays to these values.
        pcrs: what is judged; a set that does not speak of one of them does not match.
    """
    nearest: tuple[int, BootReference, int] | None = None
    for reference in references:
        differing = [pcr for pcr in pcrs if not _has_value(reference, pcr, values[pcr])]
        if not differing:
            return reference
        if nearest is None or len(differing) < nearest[0]:
            nearest = (len(differing), reference, differing[0])
    if nearest is None:
        return Divergence(reference="", pcr=pcrs[0], message="there is no reference set")
    _, reference, pcr = nearest
    have, want = _first_difference(reference, pcr, log)
    return Divergence(
        reference=f"{reference.name} version {reference.version}",
        pcr=pcr,
        message=_explain(reference, pcr, log),
        event=None if have is None else have.number,
        component="" if have is None else f"{have.type_name} {component(have)}",
        expected="" if want is None else f"{want.type} {want.component}",
    )


def _has_value(reference: BootReference, pcr: int, value: bytes) -> bool:
    return pcr in reference.pcrs and hmac.compare_digest(reference.value(pcr), value)


def _first_difference(reference: BootReference, pcr: int, log: BootLog) -> tuple[BootEvent | None, ReferenceEvent | None]:
    for have, want in zip_longest(log.of_pcr(pcr), reference.pcrs.get(pcr, ())):
        if have is None or want is None or have.digest != want.digest:
            return have, want
    return None, None


def _explain(reference: BootReference, pcr: int, log: BootLog) -> str:
    if pcr not in reference.pcrs:
        return f"it says nothing of PCR {pcr}"
    expected, found = reference.pcrs[pcr], log.of_pcr(pcr)
    for position, (want, have) in enumerate(zip(expected, found, strict=False)):
        if want.digest != have.digest:
            return f"measurement {position} of PCR {pcr} is {_described(have)}; {_expected(want)} was expected"
    if len(found) > len(expected):
        return f"PCR {pcr} has {len(found) - len(expected)} measurements more, the first being {_described(found[len(expected)])}"
    if len(expected) > len(found):
        return f"PCR {pcr} ends before {_expected(expected[len(found)])}"
    return f"PCR {pcr} started from locality {log.startup_locality}; {reference.startup_locality} was expected"


def _described(event: BootEvent) -> str:
    return f"{event.type_name} ({component(event)}, {event.digest.hex()[:16]}, event {event.number})"


def _expected(event: ReferenceEvent) -> str:
    return f"{event.type} ({event.component}, {event.digest.hex()[:16]})"


def _recorded(event: BootEvent) -> ReferenceEvent:
    return ReferenceEvent(digest=event.digest, type=event.type_name, component=component(event))


def _parse_pcrs(value: object) -> dict[int, tuple[ReferenceEvent, ...]]:
    if not isinstance(value, dict):
        raise ValueError("pcrs is not an object")  # noqa: TRY004 - callers turn ValueError into a reason
    pcrs: dict[int, tuple[ReferenceEvent, ...]] = {}
    for key, events in value.items():
        if not key.isascii() or not key.isdecimal() or str(int(key)) != key or not isinstance(events, list):
            raise ValueError(f"pcrs[{key[:20]!r}] is not the number of a PCR with a list")
        if len(events) > MAX_BOOT_EVENTS:
            raise ValueError(f"pcrs[{key}] has {len(events)} events; at most {MAX_BOOT_EVENTS} are accepted")
        pcrs[int(key)] = tuple(_parse_event(event, f"pcrs[{key}]") for event in events)
    return pcrs


def _parse_event(value: object, where: str) -> ReferenceEvent:
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds what is no object")  # noqa: TRY004 - as above
    check_keys(value, _EVENT_FIELDS)
    kind, words = value["type"], value["component"]
    if not is_sha256_hex(value["digest"]):
        raise ValueError(f"{where} holds a digest that is not 64 lower-case hex digits")
    if not isinstance(kind, str) or _TYPE.fullmatch(kind) is None:
        raise ValueError(f"{where} holds a type that is neither EV_... nor 0x and 8 hex digits")
    if not isinstance(words, str) or len(words) > 120 or not words.isprintable():
        raise ValueError(f"{where} holds a component that is not a printable text of at most 120 characters")
    return ReferenceEvent(digest=bytes.fromhex(value["digest"]), type=kind, component=words)


def _invalid(message: str) -> AttestationError:
    return AttestationError("BOOT_REFERENCE_INVALID", f"boot reference: {message}")
