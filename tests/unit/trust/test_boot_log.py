# SPDX-License-Identifier: Apache-2.0
"""The firmware's event log: read strictly, replayed exactly, and believed no further than its digests reach."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jarvis_trust.boot_events import SECURITY_PCRS, boot_facts, check_events
from jarvis_trust.boot_log import MAX_BOOT_LOG_BYTES, BootLog, EventType, parse_boot_log
from jarvis_trust.errors import AttestationError

from testbed.boot import SECURITY_DATABASE, Measurement, boot_log, uefi_boot, variable

LOG = boot_log(uefi_boot())
HEADER = len(boot_log([], locality=None))


def refusal(data: bytes) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        parse_boot_log(data)
    return caught.value


def verdict_on(data: bytes) -> BootLog | None:
    """The log, or None when it is refused for what it is; any other error is the test's failure."""
    try:
        return parse_boot_log(data)
    except AttestationError as error:
        if error.reason != "BOOT_LOG_INVALID":
            raise
    return None


def complaint(measurements: list[Measurement]) -> str:
    with pytest.raises(AttestationError) as caught:
        check_events(parse_boot_log(boot_log(measurements)))
    assert caught.value.reason == "BOOT_EVENT_INVALID"
    return caught.value.message


def test_every_event_is_read_with_its_sha256_digest() -> None:
    events = parse_boot_log(LOG).events
    expected = uefi_boot()
    assert [(event.pcr, event.type, event.data, event.digest) for event in events[1:]] == [
        (measurement.pcr, measurement.type, measurement.data, measurement.sha256) for measurement in expected
    ]
    assert [event.number for event in events] == list(range(1, len(expected) + 2))


def test_a_log_with_the_sha256_bank_alone_is_read_too() -> None:
    log = parse_boot_log(boot_log(uefi_boot(), algorithms=(0x000B,)))
    assert log.replay(range(16)) == parse_boot_log(LOG).replay(range(16))


def test_replaying_extends_in_order_and_leaves_untouched_pcrs_zero() -> None:
    value = bytes(32)
    for measurement in uefi_boot():
        if measurement.pcr == 7:
            value = hashlib.sha256(value + measurement.sha256).digest()
    values = parse_boot_log(LOG).replay(range(16))
    assert values[7] == value
    assert values[13] == bytes(32)


@pytest.mark.parametrize(("locality", "last"), [(None, 0), (0, 0), (3, 3), (4, 4)])
def test_pcr_0_starts_from_the_locality_of_startup(locality: int | None, last: int) -> None:
    log = parse_boot_log(boot_log([], locality=locality))
    assert log.replay([0, 1]) == {0: bytes(31) + bytes([last]), 1: bytes(32)}


def test_a_core_root_of_trust_that_measured_before_startup_means_locality_4() -> None:
    measured = Measurement(pcr=0, type=EventType.EFI_HCRTM_EVENT, data=b"HCRTM")
    assert parse_boot_log(boot_log([measured], locality=None)).startup_locality == 4


@pytest.mark.parametrize(
    "measurements",
    [
        [Measurement(pcr=0, type=EventType.NO_ACTION, data=b"StartupLocality\0\x03", digest=bytes(32))],
        [
            Measurement(pcr=0, type=EventType.S_CRTM_VERSION, data=b"v"),
            Measurement(pcr=0, type=EventType.NO_ACTION, data=b"StartupLocality\0\x03", digest=bytes(32)),
        ],
    ],
    ids=["twice", "after an extension"],
)
def test_the_evidence_cannot_choose_a_pcrs_initial_value_later(measurements: list[Measurement]) -> None:
    locality = 0 if len(measurements) == 1 else None
    assert "StartupLocality" in refusal(boot_log(measurements, locality=locality)).message


def test_a_locality_that_startup_does_not_have_is_refused() -> None:
    assert "StartupLocality" in refusal(boot_log([], locality=2)).message


def test_a_log_that_ends_anywhere_inside_an_event_is_refused() -> None:
    whole = [end for end in range(len(LOG)) if verdict_on(LOG[:end]) is not None]
    assert whole[0] == HEADER
    assert len(whole) == len(parse_boot_log(LOG).events)  # after the header, and after each event but the last


@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail_otherwise(noise: bytes) -> None:
    verdict_on(noise)
    verdict_on(LOG[:HEADER] + noise)


@given(st.integers(0, len(LOG) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_changes_a_pcr_or_leaves_every_digest_alone(at: int, change: int) -> None:
    changed = bytearray(LOG)
    changed[at] ^= change
    honest = parse_boot_log(LOG)
    try:
        log = parse_boot_log(bytes(changed))
    except AttestationError:
        return
    if log.replay(range(24)) == honest.replay(range(24)):
        assert [event.digest for event in log.events if event.type != EventType.NO_ACTION] == [
            event.digest for event in honest.events if event.type != EventType.NO_ACTION
        ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda log: log[:0], "ends inside"),
        (lambda log: log[:4] + struct.pack("<I", 4) + log[8:], "Spec ID Event03"),
        (lambda log: log.replace(b"Spec ID Event03", b"Spec ID Event02"), "Spec ID Event03"),
        (lambda log: log[:56] + struct.pack("<I", 9) + log[60:], "numberOfAlgorithms is 9"),
        (lambda log: log[:60] + struct.pack("<HH", 4, 21) + log[64:], "algorithm 0x0004 with 21 bytes"),
        (lambda log: log[:60] + log[64:68] + log[64:], "algorithm 0x000b with 32 bytes"),
        (lambda log: log + bytes(7), "ends inside"),
        (lambda log: log + bytes(MAX_BOOT_LOG_BYTES), "at most"),
    ],
)
def test_a_bad_header_or_end_is_named(change: object, said: str) -> None:
    error = refusal(change(LOG))  # type: ignore[operator]
    assert error.reason == "BOOT_LOG_INVALID"
    assert said in error.message


def test_a_log_without_a_sha256_bank_is_refused() -> None:
    assert "no SHA-256 bank" in refusal(boot_log([], locality=None, algorithms=(0x0004,))).message


def test_an_honest_boot_passes_and_its_facts_are_told() -> None:
    log = parse_boot_log(LOG)
    check_events(log)
    facts = boot_facts(log)
    assert facts.secure_boot is True
    assert facts.key_digests == {
        "PK": hashlib.sha256(b"platform key").hexdigest(),
        "db": hashlib.sha256(b"database").hexdigest(),
    }
    assert facts.kernel_command_line == "/vmlinuz-6.1.0-28-amd64 root=/dev/sda1 ro quiet"


def test_secure_boot_that_is_off_is_told_as_off() -> None:
    assert boot_facts(parse_boot_log(boot_log(uefi_boot(secure_boot=False)))).secure_boot is False


@pytest.mark.parametrize("number", range(1, len(uefi_boot()) + 1))
@pytest.mark.parametrize("type_", [EventType.EFI_VARIABLE_DRIVER_CONFIG, EventType.NO_ACTION, EventType.SEPARATOR, 0x42])
def test_relabelling_an_event_is_refused_breaks_the_replay_or_changes_no_claim(number: int, type_: int) -> None:
    measurements = uefi_boot()
    honest = parse_boot_log(LOG)
    old = measurements[number - 1]
    measurements[number - 1] = dataclasses.replace(old, type=type_, digest=old.sha256)
    relabelled = parse_boot_log(boot_log(measurements))
    try:
        check_events(relabelled)
    except AttestationError:
        return
    if relabelled.replay(range(16)) == honest.replay(range(16)):
        assert boot_facts(relabelled).secure_boot == boot_facts(honest).secure_boot
        assert boot_facts(relabelled).key_digests == boot_facts(honest).key_digests


def test_a_claim_whose_digest_is_another_datas_is_refused() -> None:
    measurements = uefi_boot(secure_boot=False)
    lie = variable("SecureBoot", b"\x01")
    measurements[2] = dataclasses.replace(measurements[2], data=lie, digest=measurements[2].sha256)
    assert "its digest is not that of its data" in complaint(measurements)


def test_a_variable_measured_by_its_contents_alone_is_accepted_and_proves_no_name() -> None:
    measurements = uefi_boot()
    measurements[2] = dataclasses.replace(measurements[2], digest=hashlib.sha256(b"\x01").digest())
    log = parse_boot_log(boot_log(measurements))
    check_events(log)
    assert boot_facts(log).secure_boot is None


def test_a_key_variable_of_another_vendors_guid_is_no_key() -> None:
    measurements = uefi_boot()
    measurements[3] = dataclasses.replace(measurements[3], data=variable("PK", b"platform key", SECURITY_DATABASE))
    assert "PK" not in boot_facts(parse_boot_log(boot_log(measurements))).key_digests


@pytest.mark.parametrize("pcr", SECURITY_PCRS)
def test_an_unknown_kind_of_event_in_a_security_pcr_is_refused(pcr: int) -> None:
    stray = Measurement(pcr=pcr, type=0xA0000001, data=b"what is this")
    assert f"PCR {pcr}" in complaint([*uefi_boot(), stray])


@pytest.mark.parametrize("pcr", SECURITY_PCRS)
def test_each_security_pcr_needs_exactly_one_separator(pcr: int) -> None:
    without = [measurement for measurement in uefi_boot() if (measurement.pcr, measurement.type) != (pcr, EventType.SEPARATOR)]
    assert f"PCRs [{pcr}] have no separator" in complaint(without)
    assert "second separator" in complaint([*uefi_boot(), Measurement(pcr=pcr, type=EventType.SEPARATOR, data=bytes(4))])


def test_a_separator_that_reports_an_error_is_refused() -> None:
    measurements = [
        dataclasses.replace(measurement, data=b"\x01\0\0\0") if measurement.type == EventType.SEPARATOR else measurement
        for measurement in uefi_boot()
    ]
    assert "the firmware reported an error" in complaint(measurements)


def test_secure_boot_configuration_after_the_separator_is_refused() -> None:
    late = Measurement(pcr=7, type=EventType.EFI_VARIABLE_DRIVER_CONFIG, data=variable("SecureBoot", b"\x01"))
    assert "after the separator" in complaint([*uefi_boot(), late])


def test_a_command_line_that_was_not_measured_as_shown_is_not_told() -> None:
    measurements = uefi_boot()
    place = next(index for index, measurement in enumerate(measurements) if measurement.pcr == 8)
    measurements[place] = dataclasses.replace(measurements[place], data=b"kernel_cmdline: init=/bin/sh\0")
    assert boot_facts(parse_boot_log(boot_log(measurements))).kernel_command_line is None
