# SPDX-License-Identifier: Apache-2.0
"""Attacks on exports: flow records sent to whom the policy does not name: by operators, stolen certificates, or an agent's disk.

An export is the one command that sends data elsewhere than to the controller. The allow-list is checked before an agent is asked,
and by the agent itself against its lease, whoever signed the command.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jarvis.capture.v1 import agent_pb2, fleet_pb2
from jarvis.capture.v1.export_pb2 import EXPORT_PROTOCOL_IPFIX, EXPORT_TRANSPORT_FILE, ExportCollector, ExportSpec
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY

from testbed.attack.arena import FLEET_SERVICE, Arena
from testbed.attack.commands import genuine, quoted, renew
from testbed.attack.model import Attack
from testbed.attack.peers import call
from testbed.attack.policy import apply, next_policy
from testbed.fleet import Agent, Fleet, wait_for
from testbed.policy import PolicyText

_ENABLE = AGENT_SERVICE + "EnableExport"
_DISABLE = AGENT_SERVICE + "DisableExport"
_LIST = AGENT_SERVICE + "ListExports"
_NOT_AGAIN, _NOT_BACK = "NOT_ENABLED_AGAIN", "NOT_BROUGHT_BACK"
_ALLOWED = "127.0.0.1"
"""In the arena's policy, with port 4739; nobody listens there."""
_FOREIGN = "198.51.100.1"
_KEPT_POLICY = PolicyText(interval_s=1, lease_s=60, collectors=[_ALLOWED])


def _spec(host: str, **fields: Any) -> ExportSpec:
    collectors = [ExportCollector(host=host)] if host else []
    return ExportSpec(**{"export_id": "stolen", "protocol": EXPORT_PROTOCOL_IPFIX, "collectors": collectors, **fields})


def _payload(host: str, **fields: Any) -> bytes:
    return agent_pb2.EnableExportRequest(spec=_spec(host, **fields)).SerializeToString()


def _by_operator(host: str, **fields: Any) -> Callable[[Arena], str]:
    """Asked of the controller by an administrator."""

    def run(arena: Arena) -> str:
        selector = fleet_pb2.AgentSelector(agent_ids=[arena.victim.agent_id])
        request = fleet_pb2.EnableExportsRequest(selector=selector, spec=_spec(host, **fields), request_id=str(uuid.uuid4()))
        return call(arena.admin, FLEET_SERVICE + "EnableExports", request.SerializeToString())[0]

    return run


def _send(arena: Arena, authorization: bytes, payload: bytes, method: str = _ENABLE) -> str:
    with arena.to_agent(arena.controller) as channel:
        return call(channel, method, payload, [(AUTHORIZATION_METADATA_KEY, authorization)])[0]


def _signed(host: str, *, spec: dict[str, Any] | None = None, **changes: Any) -> Callable[[Arena], str]:
    """Straight at the agent, signed with the fleet's own key."""
    payload = _payload(host, **(spec or {}))

    def run(arena: Arena) -> str:
        return _send(arena, genuine(arena, method=_ENABLE, payload=payload, **changes).SerializeToString(), payload)

    return run


def _edited(arena: Arena) -> str:
    authorization = genuine(arena, method=_ENABLE, payload=_payload(_ALLOWED))
    return _send(arena, authorization.SerializeToString(), _payload(_FOREIGN))


def _replayed(arena: Arena) -> str:
    """An export that was ended is not to come back: a repeated mutation gets the answer of before, and is not carried out."""
    payload, ending = _payload(_ALLOWED), agent_pb2.DisableExportRequest(export_id="stolen").SerializeToString()
    recorded = genuine(arena, method=_ENABLE, payload=payload).SerializeToString()
    first = _send(arena, recorded, payload)
    ended = _send(arena, genuine(arena, method=_DISABLE, payload=ending).SerializeToString(), ending, _DISABLE)
    if (first, ended) != ("OK", "OK"):
        return f"the genuine commands ended in {first} and {ended}"
    _send(arena, recorded, payload)
    asked = genuine(arena, method=_LIST, payload=b"").SerializeToString()
    with arena.to_agent(arena.controller) as channel:
        listed, answer = call(channel, _LIST, b"", [(AUTHORIZATION_METADATA_KEY, asked)])
    exports = agent_pb2.ListExportsResponse.FromString(answer).exports
    return _NOT_AGAIN if listed == "OK" and not exports else f"{listed}, {len(exports)} exports"


def _lease_over(arena: Arena) -> str:
    """Under a genuine lease of a second that is over."""
    lease = quoted(arena)
    lease.duration_ns = 10**9
    lease.export_collectors.append(_ALLOWED)
    taken = renew(arena, arena.signer.sign_lease(lease))
    if taken != "OK":
        return f"the lease of a second ended in {taken}"
    wait_for("the lease's end", lambda: not arena.status_of(arena.victim).lease_remaining.ToNanoseconds())
    payload = _payload(_ALLOWED)
    authorization = genuine(arena, method=_ENABLE, payload=payload, lease_sequence=lease.sequence)
    got = _send(arena, authorization.SerializeToString(), payload)
    wait_for("the victim to have a lease again", lambda: arena.attest(arena.victim) == "OK")
    return got


def _kept(change: Callable[[Fleet, Agent, Path], None]) -> Callable[[Arena], str]:
    """The agent's disk is written to while it is down; what its export is afterwards, in one word."""

    def run(arena: Arena) -> str:
        directory = arena.directory / f"exports-{len(list(arena.directory.glob('exports-*')))}"
        with Fleet(directory=directory, name="exports", policy=_KEPT_POLICY) as fleet:
            fleet.start()
            agent = fleet.add_agent("host")
            fleet.wait_for_state(agent, "verified", seconds=60)
            fleet.jarvisctl("export", "enable", "--id", "stolen", "--collector", _ALLOWED, "--all")
            (path,) = (agent.directory / "state").rglob("stolen.json")
            change(fleet, agent, path)
            agent.start()

            def answered() -> dict[str, Any] | None:
                (row,) = fleet.rows("export", "status", check=False)
                return row if row["ok"] else None

            row: dict[str, Any] = wait_for("the new process to be verified", answered, seconds=60, log=agent.log)
            return str(row["exports"][0]["state"]).upper() if row["exports"] else _NOT_BACK

    return run


def _edit_kept(_fleet: Fleet, agent: Agent, path: Path) -> None:
    agent.stop()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"payload": base64.b64encode(_payload(_FOREIGN)).decode()}))


def _put_back(fleet: Fleet, agent: Agent, path: Path) -> None:
    """The genuine file of an export that was ended, since when the policy does not name its collector any more."""
    data = path.read_bytes()
    fleet.jarvisctl("export", "disable", "stolen", "--all")
    narrower = dataclasses.replace(_KEPT_POLICY, version=2, collectors=["192.0.2.1"])
    fleet.jarvisctl("policy", "apply", str(fleet.set_policy(narrower)))
    agent.stop()
    path.write_bytes(data)
    path.chmod(0o600)


def _everywhere(arena: Arena) -> str:
    return apply(arena, dataclasses.replace(next_policy(arena), collectors=["*"]))


_VIEWER = "spiffe://arena/operator/viewer/eve"
_FILE = {"transport": EXPORT_TRANSPORT_FILE}

_TABLE: dict[str, tuple[str, str, Callable[[Arena], str]]] = {
    "elsewhere": ("EXPORT_NOT_ALLOWED", "flows to an address that the policy does not name", _by_operator(_FOREIGN)),
    "another-port": (
        "EXPORT_NOT_ALLOWED", "an address of the policy, another port",
        _by_operator("", collectors=[ExportCollector(host=_ALLOWED, port=53)]),
    ),
    "second-collector": (
        "EXPORT_NOT_ALLOWED", "a collector of one's own behind one of the policy's",
        _by_operator("", collectors=[ExportCollector(host=_ALLOWED), ExportCollector(host=_FOREIGN)]),
    ),
    "name-below": ("EXPORT_NOT_ALLOWED", "a domain of one's own that ends in a policy's name", _by_operator("evilsiem.example")),
    "name-above": ("EXPORT_NOT_ALLOWED", "a policy's name below a domain of one's own", _by_operator("siem.example.attacker")),
    "odd-address": ("INVALID_ARGUMENT", "127.0.0.1 as only a resolver reads it", _by_operator("0x7f.1")),
    "name-for-address": ("EXPORT_NOT_ALLOWED", "a name that resolves to an address of the policy", _by_operator("localhost")),
    "file": ("EXPORT_NOT_ALLOWED", "files on the agent's disk", _by_operator("", **_FILE)),
    "elsewhere-at-the-agent": ("EXPORT_NOT_ALLOWED", "the same, signed with the controller's own key", _signed(_FOREIGN)),
    "file-at-the-agent": ("EXPORT_NOT_ALLOWED", "files, signed with the controller's own key", _signed("", spec=_FILE)),
    "edited": ("COMMAND_SIGNATURE_INVALID", "the collector changed after the command was signed", _edited),
    "replayed": (_NOT_AGAIN, "a recorded EnableExport after the export was ended", _replayed),
    "viewer": ("ROLE_DENIED", "an export on behalf of a viewer", _signed(_ALLOWED, principal=_VIEWER)),
    "lease-over": ("LEASE_EXPIRED", "an export under a lease that is over", _lease_over),
    "kept-edited": (_NOT_BACK, "another collector in the file of an export, while the agent is down", _kept(_edit_kept)),
    "kept-put-back": ("NOT_ALLOWED", "the file of an ended export put back, whose collector is off the list", _kept(_put_back)),
    "policy-of-everything": ("POLICY_INVALID", 'a policy that allows "*"', _everywhere),
}  # fmt: skip

_FAST = {"elsewhere", "elsewhere-at-the-agent", "edited", "replayed"}

ATTACKS = tuple(
    Attack(name=f"exports/{name}", tries=tries, expected=expected, run=run, is_fast=name in _FAST)
    for name, (expected, tries, run) in _TABLE.items()
)
