# SPDX-License-Identifier: Apache-2.0
"""A check's outcome in words: whether it holds, and where it does not."""

from jarvis.capture.v1 import fleet_pb2

from jarvisctl.format.units import printable


def result_of(check: fleet_pb2.AttestationCheck) -> str:
    """One of passed, reported and failed."""
    if check.passed:
        return "passed"
    return "reported" if check.reported else "failed"


def place_of(check: fleet_pb2.AttestationCheck) -> str:
    """PCR, first diverging event, component, and what the nearest reference has there; empty when no place is known."""
    parts = []
    if check.HasField("pcr"):
        parts.append(f"PCR {check.pcr}")
    if check.HasField("event"):
        parts.append(f"event {check.event}")
    if check.component:
        parts.append(printable(check.component))
    place = ", ".join(parts)
    if check.expected:
        place += f"; expected {printable(check.expected)}"
    if check.reference:
        place += f" (nearest: {printable(check.reference)})"
    return place
