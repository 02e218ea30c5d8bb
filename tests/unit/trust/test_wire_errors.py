# SPDX-License-Identifier: Apache-2.0
"""Errors on the wire carry their reason, their fields and their delay, and are read back by programs."""

from __future__ import annotations

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from jarvis_trust.errors import FirmwareError
from jarvis_trust.status import (
    bad_request_status,
    error_info,
    error_status,
    field_violations,
    reason_of,
    trust_error_status,
)


def test_a_status_carries_reason_domain_and_metadata() -> None:
    status = error_status(Code.FAILED_PRECONDITION, "FIRMWARE_UNTRUSTED", "no capture", metadata={"reason": "FIRMWARE_ALTERED"})
    info = error_info(Status.FromString(status.SerializeToString()))
    assert info == ErrorInfo(reason="FIRMWARE_UNTRUSTED", domain="jarvis.capture", metadata={"reason": "FIRMWARE_ALTERED"})
    assert (status.code, status.message) == (9, "no capture")


def test_a_trust_error_keeps_its_reason_and_its_sentence() -> None:
    status = trust_error_status(Code.PERMISSION_DENIED, FirmwareError("FIRMWARE_ALTERED", "the object was altered"))
    assert (reason_of(status), status.message) == ("FIRMWARE_ALTERED", "the object was altered")


def test_every_bad_field_is_listed() -> None:
    violations = [("spec.snaplen", "7; 64 to 262144 are accepted"), ("spec.filter", "syntax error")]
    status = bad_request_status(violations)
    assert field_violations(status) == violations
    assert reason_of(status) == "INVALID_ARGUMENT"
    assert status.code == Code.INVALID_ARGUMENT
    assert "spec.snaplen: 7; 64 to 262144 are accepted" in status.message
    assert field_violations(error_status(Code.INTERNAL, "X", "")) == []


def test_a_delay_is_given_in_full() -> None:
    status = error_status(Code.UNAVAILABLE, "AGENT_BUSY", "later", retry_after_ns=1_500_000_000)
    retry = RetryInfo()
    assert status.details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)


@pytest.mark.parametrize("code", [0, -1, 17, 99])
def test_ok_and_unknown_codes_are_no_errors(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        error_status(code, "X", "")


def test_a_bad_request_needs_a_field() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bad_request_status([])


def test_a_status_without_our_details_has_no_reason() -> None:
    assert reason_of(Status(code=13, message="boom")) == ""
    foreign = Status(code=13)
    foreign.details.add().Pack(ErrorInfo(reason="THEIRS", domain="example.com"))
    assert error_info(foreign) is None


def test_garbled_details_are_skipped() -> None:
    status = error_status(Code.INTERNAL, "X", "")
    garbled = Status(code=13)
    for name in ("ErrorInfo", "BadRequest"):
        garbled.details.add(type_url=f"type.googleapis.com/google.rpc.{name}", value=b"\xff\xff")
    garbled.details.add().CopyFrom(status.details[0])
    assert reason_of(garbled) == "X"
    assert field_violations(garbled) == []
