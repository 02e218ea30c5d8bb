# SPDX-License-Identifier: Apache-2.0
"""Audit entries as RFC 5424 messages: well-formed whatever an entry holds, and enough to verify the chain from."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jarvis.capture.v1.fleet_pb2 import AuditEvent
from jarvis_trust.audit import entry_hash
from jarvis_trust.audit_syslog import DEFAULT_SD_ID, framed_message, syslog_message, valid_sd_id

MESSAGE = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) "
    rb'\[([!#-<>-Z^-~]{1,32})((?: [A-Za-z]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] (.*)',
    re.DOTALL,
)
"""HEADER SP STRUCTURED-DATA SP MSG of RFC 5424 section 6, for one SD-ELEMENT."""
PARAMETER = re.compile(rb' ([A-Za-z]+)="((?:[^"\\\]]|\\["\\\]])*)"')


def event(**fields: str) -> AuditEvent:
    values = {"principal": "spiffe://lab/operator/admin/ada", "action": "capture.start", "agent_id": "a" * 32, "detail": "{}"}
    made = AuditEvent(sequence=7, previous_hash=b"\1" * 32, hash=b"\2" * 32, request_id="r", **{**values, **fields})
    made.time.FromNanoseconds(1_795_000_000_123_456_789)
    return made


def parameters(message: bytes) -> dict[str, str]:
    match = MESSAGE.fullmatch(message)
    assert match is not None, message
    return {name.decode(): re.sub(rb"\\(.)", rb"\1", value).decode() for name, value in PARAMETER.findall(match[8])}


def test_a_message_has_every_part_of_the_rfc() -> None:
    message = syslog_message(event(), hostname="main.controllers.lab")
    match = MESSAGE.fullmatch(message)
    assert match is not None
    assert match.groups()[:3] == (b"109", b"2026-11-18T11:06:40.123456Z", b"main.controllers.lab")
    assert match.groups()[3:7] == (b"jarvis-controller", b"-", b"capture.start", b"jarvis@32473")
    assert match[9] == b"{}"
    assert framed_message(message) == str(len(message)).encode() + b" " + message


def test_refusals_and_quarantines_are_warnings() -> None:
    for changes in ({"action": "access.refused"}, {"action": "agent.state", "detail": '{"to":"QUARANTINED"}'}):
        assert syslog_message(event(**changes), hostname="h").startswith(b"<108>1 ")
    assert syslog_message(event(action="agent.state", detail='{"to":"VERIFIED"}'), hostname="h").startswith(b"<109>1 ")


@given(principal=st.text(max_size=60), action=st.text(max_size=60), agent=st.text(max_size=40), request=st.text(max_size=40))
def test_nothing_in_an_entry_breaks_out_of_its_field(principal: str, action: str, agent: str, request: str) -> None:
    made = event(principal=principal, action=action, agent_id=agent)
    made.request_id = request
    message = syslog_message(made, hostname="h")
    assert b"\n" not in message
    found = parameters(message)
    assert [found["principal"], found["action"], found["agentId"], found["requestId"]] == [
        text.replace("\n", " ") for text in (principal, action, agent, request)
    ]


def test_an_archive_of_messages_can_be_verified_by_itself() -> None:
    made = event(detail='{"a":"]\\\\"}')
    arguments = (made.sequence, made.time.ToNanoseconds(), made.principal, made.action, made.agent_id, made.detail)
    made.hash = entry_hash(made.previous_hash, *arguments, made.request_id)
    message = syslog_message(made, hostname="h")
    found, detail = parameters(message), message.rpartition(b"] ")[2].decode()
    archived = (int(found["sequence"]), int(found["timeUnixNs"]), found["principal"], found["action"], found["agentId"], detail)
    assert entry_hash(bytes.fromhex(found["previousHash"]), *archived, found["requestId"]).hex() == found["hash"]


@pytest.mark.parametrize("text", [DEFAULT_SD_ID, "a@1", "audit@32473.1.2", "x" * 26 + "@32473"])
def test_an_sd_id_of_a_site_is_accepted(text: str) -> None:
    assert valid_sd_id(text)


@pytest.mark.parametrize("text", ["", "jarvis", "@1", "a@", "a b@1", 'a"@1', "a]@1", "a=@1", "a@b", "x" * 27 + "@32473", "ä@1"])
def test_what_is_no_sd_id_is_refused(text: str) -> None:
    assert not valid_sd_id(text)
