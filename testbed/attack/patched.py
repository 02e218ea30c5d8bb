# SPDX-License-Identifier: Apache-2.0
"""Attacks with an agent whose Python was edited (patches.py) and that attests as ever: the native core has the last word."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jarvis.capture.v1 import agent_pb2
from jarvis.capture.v1.capture_pb2 import CaptureSpec
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY

from testbed.attack.arena import Arena
from testbed.attack.commands import genuine, quoted
from testbed.attack.model import Attack
from testbed.attack.patches import LONGER_LEASE, OPEN_GATE, OTHER_FILTER, PATCH_FILE
from testbed.attack.peers import call

_START = AGENT_SERVICE + "StartCapture"
_FILE = "empty.pcap"
_REQUEST = agent_pb2.StartCaptureRequest(spec=CaptureSpec(files=[_FILE], filter="udp port 53")).SerializeToString()
_PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)


@contextmanager
def _patched(arena: Arena, name: str) -> Iterator[None]:
    path = arena.lie_file.with_name(PATCH_FILE)
    (arena.puppet.replay_directory / _FILE).write_bytes(_PCAP_HEADER)
    path.write_text(name)
    try:
        yield
    finally:
        path.write_text("")


def _unsigned_start(arena: Arena) -> str:
    with _patched(arena, OPEN_GATE), arena.to_agent(arena.controller, arena.puppet) as channel:
        return call(channel, _START, _REQUEST)[0]


def _other_filter(arena: Arena) -> str:
    puppet = arena.puppet
    authorization = genuine(
        arena,
        agent_id=puppet.agent_id,
        session_id=arena.info_of(puppet).session_id,
        lease_sequence=arena.status_of(puppet).lease_sequence,
        payload=_REQUEST,
    )
    metadata = [(AUTHORIZATION_METADATA_KEY, authorization.SerializeToString())]
    with _patched(arena, OTHER_FILTER), arena.to_agent(arena.controller, puppet) as channel:
        return call(channel, _START, _REQUEST, metadata)[0]


def _longer_lease(arena: Arena) -> str:
    signed = arena.signer.sign_lease(quoted(arena, arena.puppet))
    request = agent_pb2.RenewLeaseRequest(lease=signed).SerializeToString()
    with _patched(arena, LONGER_LEASE), arena.to_agent(arena.controller, arena.puppet) as channel:
        return call(channel, AGENT_SERVICE + "RenewLease", request)[0]


_PATCHED: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "gate": (
        "CAPTURE_NOT_COMMANDED",
        "a capture that nobody commanded, by an agent whose Python lets everything in",
        _unsigned_start,
    ),
    "filter": ("CAPTURE_NOT_COMMANDED", "a signed command for one filter carried out without it", _other_filter),
    "lease": ("LEASE_SIGNATURE_INVALID", "a genuine lease made longer on its way to the core", _longer_lease),
}

ATTACKS = tuple(
    Attack(name=f"patched/{name}", tries=tries, expected=expected, run=run, is_fast=name == "gate")
    for name, (expected, tries, run) in _PATCHED.items()
)
