# SPDX-License-Identifier: Apache-2.0
"""Reference sets: recorded from one host, signed, and matched against others with the first difference named."""

from __future__ import annotations

import dataclasses
import json

import pytest
from jarvis_trust.boot_log import BootLog, EventType, parse_boot_log
from jarvis_trust.boot_reference import (
    BootReference,
    Divergence,
    match_references,
    record_reference,
    sign_reference,
    verify_reference,
)
from jarvis_trust.errors import AttestationError, TrustError

from testbed.boot import Measurement, boot_log, uefi_boot
from tests.unit.trust.support import KeyPair

PCRS = tuple(range(8))
CREATED = "2026-11-22T10:00:00Z"


def log_of(measurements: list[Measurement], *, locality: int = 0) -> BootLog:
    return parse_boot_log(boot_log(measurements, locality=locality))


def reference_of(log: BootLog, *, name: str = "good", version: int = 1) -> BootReference:
    return record_reference(log, name=name, version=version, created=CREATED, pcrs=PCRS)


def judged(log: BootLog, *references: BootReference) -> BootReference | Divergence:
    return match_references(references, log.replay(PCRS), log, PCRS)


GOOD = reference_of(log_of(uefi_boot()))


def test_a_recorded_set_has_the_hosts_pcr_values() -> None:
    log = log_of(uefi_boot(), locality=3)
    reference = reference_of(log)
    assert {pcr: reference.value(pcr) for pcr in PCRS} == log.replay(PCRS)


def test_a_set_survives_its_file() -> None:
    assert BootReference.from_bytes(GOOD.to_bytes()) == GOOD


def test_a_signed_set_is_accepted_and_any_change_to_it_refused(release_key: KeyPair) -> None:
    data, signature = sign_reference(GOOD, release_key.private)
    assert verify_reference(data, signature, release_key.root) == GOOD
    for changed in (data.replace(b'"version":1', b'"version":2'), data + b" ", b""):
        with pytest.raises(TrustError) as caught:
            verify_reference(changed, signature, release_key.root)
        assert caught.value.reason == "FIRMWARE_SIGNATURE_INVALID"


def test_a_host_that_boots_as_recorded_matches_among_several_sets() -> None:
    other = reference_of(log_of(uefi_boot(firmware=b"firmware 2.0")), name="newer")
    assert judged(log_of(uefi_boot()), other, GOOD) == GOOD


def test_another_kernel_is_named_by_its_event_and_the_nearest_set() -> None:
    far = reference_of(log_of(uefi_boot(firmware=b"old", kernel=b"old", secure_boot=False)), name="far")
    verdict = judged(log_of(uefi_boot(kernel=b"another kernel")), far, GOOD)
    assert isinstance(verdict, Divergence)
    assert (verdict.reference, verdict.pcr) == ("good version 1", 4)
    assert "measurement 2 of PCR 4 is EV_EFI_BOOT_SERVICES_APPLICATION" in verdict.message


def test_a_measurement_more_is_named() -> None:
    extra = Measurement(pcr=2, type=EventType.EFI_BOOT_SERVICES_DRIVER, data=b"option ROM")
    verdict = judged(log_of([*uefi_boot(), extra]), GOOD)
    assert isinstance(verdict, Divergence)
    assert verdict.message.startswith("PCR 2 has 1 measurements more, the first being EV_EFI_BOOT_SERVICES_DRIVER")


def test_a_measurement_less_is_named() -> None:
    verdict = judged(log_of(uefi_boot()[:-1]), GOOD)
    assert isinstance(verdict, Divergence)
    assert verdict.message.startswith("PCR 5 ends before EV_EFI_ACTION (Exit Boot Services Invocation")


def test_another_startup_locality_is_named() -> None:
    verdict = judged(log_of(uefi_boot(), locality=3), GOOD)
    assert isinstance(verdict, Divergence)
    assert verdict.message == "PCR 0 started from locality 3; 0 was expected"


def test_a_set_that_does_not_speak_of_a_demanded_pcr_does_not_match() -> None:
    partial = record_reference(log_of(uefi_boot()), name="partial", version=1, created=CREATED, pcrs=PCRS[:4])
    verdict = judged(log_of(uefi_boot()), partial)
    assert isinstance(verdict, Divergence)
    assert verdict.message == "it says nothing of PCR 4"


def test_without_sets_nothing_matches() -> None:
    assert judged(log_of(uefi_boot())) == Divergence(reference="", pcr=0, message="there is no reference set")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Good"}, "name is 'Good'"),
        ({"version": 0}, "version is 0"),
        ({"created": "yesterday"}, "created is not RFC 3339"),
        ({"startup_locality": 2}, "startup_locality is not 0, 3 or 4"),
        ({"format": "jarvis-manifest-v1"}, "format is not 'jarvis-boot-reference-v1'"),
        ({"pcrs": {}}, "pcrs are []"),
        ({"pcrs": {"16": []}}, "pcrs are [16]"),
        ({"pcrs": {"07": []}}, "is not the number of a PCR"),
        ({"pcrs": {"7": [{"digest": "00", "type": "EV_IPL", "component": ""}]}}, "not 64 lower-case hex digits"),
        ({"pcrs": {"7": [{"digest": "0" * 64, "type": "ipl", "component": ""}]}}, "neither EV_..."),
        ({"pcrs": {"7": [{"digest": "0" * 64, "type": "EV_IPL", "component": "a\nb"}]}}, "not a printable text"),
        ({"extra": 1}, "field 'extra' is unknown"),
    ],
)
def test_a_set_that_is_not_well_formed_is_refused_with_its_field(change: dict[str, object], said: str) -> None:
    fields = json.loads(GOOD.to_bytes()) | change
    with pytest.raises(AttestationError) as caught:
        BootReference.from_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    assert caught.value.reason == "BOOT_REFERENCE_INVALID"
    assert said in caught.value.message


def test_a_set_cannot_be_changed_once_it_is_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.version = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        GOOD.pcrs[0] = ()  # type: ignore[index]
