# SPDX-License-Identifier: Apache-2.0
"""Attacks with certificates that were good once, or look as if they were: revoked, over, of another CA, of another role.

Revocation and expiry are tried on the fleet under attack, where a call and a stream of the thief must end while the honest
agent's goes on; a change of the CA needs a fleet of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import grpc
from jarvis.capture.v1 import certificate_pb2 as pb
from jarvis.capture.v1 import fleet_pb2
from jarvis_controller.authorization import CERTIFICATE_SERVICE, FLEET_SERVICE
from jarvis_trust.ca import FleetCA, generate_key, identity_of_certificate, load_certificate, make_csr
from jarvis_trust.ca_bundle import serial_of
from jarvis_trust.identities import Identity, Role, controller_dns_name

from testbed.attack.arena import Arena
from testbed.attack.model import Attack
from testbed.attack.peers import Party, as_reason, call, issue, operator
from testbed.attack.roles import METHODS
from testbed.attack.stored import reasons_in
from testbed.fleet import Fleet, FleetError, program, wait_for
from testbed.policy import PolicyText

_POLICY = PolicyText(interval_s=1, lease_s=60)


def _bought(arena: Arena, role: str, name: str) -> Party:
    """A certificate that an administrator issued, as operators get theirs."""
    key = generate_key()
    request = pb.IssueOperatorCertificateRequest(csr=make_csr(key), name=name, role=role)
    ended, answer = call(arena.admin, CERTIFICATE_SERVICE + "IssueOperatorCertificate", request.SerializeToString())
    if ended != "OK":
        raise FleetError(f"no certificate was issued: {ended}")
    pem = pb.IssueOperatorCertificateResponse.FromString(answer).certificate_pem
    return Party(root_pem=arena.ca.certificate_pem, certificate_pem=pem, key_pem=key)


def _revoke(arena: Arena, party: Party) -> None:
    serial = serial_of(load_certificate(party.certificate_pem))
    request = pb.RevokeCertificateRequest(serial=serial, reason="stolen")
    ended, _ = call(arena.admin, CERTIFICATE_SERVICE + "RevokeCertificate", request.SerializeToString())
    if ended != "OK":
        raise FleetError(f"not revoked: {ended}")


def _revoked_call(method: str) -> Callable[[Arena], str]:
    def run(arena: Arena) -> str:
        thief = _bought(arena, "admin", "thief")
        with arena.to_controller(thief) as channel:
            before, _ = call(channel, FLEET_SERVICE + "ListAgents")
            _revoke(arena, thief)
            again, _ = call(channel, method)
        with arena.to_controller(thief) as channel:
            anew, _ = call(channel, method)
        return again if (before, again) == ("OK", anew) else f"{before}, then {again}, on a new connection {anew}"

    return run


@contextmanager
def _events(channel: grpc.Channel) -> Iterator[Iterator[bytes]]:
    """Follows the fleet's events, until it is told that it may not."""
    stub = channel.unary_stream(FLEET_SERVICE + "WatchEvents", request_serializer=None, response_deserializer=None)
    answers = stub(fleet_pb2.WatchEventsRequest(follow=True).SerializeToString(), timeout=60)
    try:
        yield iter(answers)
    finally:
        answers.cancel()  # type: ignore[no-untyped-call]  # absent from the stubs


def _ends(answers: Iterator[bytes]) -> str:
    ended: list[str] = []
    with as_reason(ended):
        for _ in answers:
            pass
    return ended[0]


def _revoked_in_a_stream(arena: Arena) -> str:
    thief = _bought(arena, "admin", "streamer")
    with arena.to_controller(thief) as channel, _events(channel) as answers:
        next(answers)
        _revoke(arena, thief)
        return _ends(answers)


def _expired_in_a_stream(arena: Arena) -> str:
    identity = Identity(fleet="arena", role=Role.VIEWER, name="late")
    late = issue(arena.ca, identity, lifetime=timedelta(seconds=4))
    with arena.to_controller(late) as channel, _events(channel) as answers:
        next(answers)
        return _ends(answers)


def _expired_on_an_open_connection(arena: Arena) -> str:
    late = issue(arena.ca, Identity(fleet="arena", role=Role.ADMIN, name="late"), lifetime=timedelta(seconds=3))
    with arena.to_controller(late) as channel:
        if call(channel, FLEET_SERVICE + "ListAgents")[0] != "OK":
            raise FleetError("the certificate was not accepted while it was valid")
        return str(wait_for("the end", lambda: _unless_ok(call(channel, FLEET_SERVICE + "ListAgents")[0]), seconds=20))


def _unless_ok(ended: str) -> str:
    return "" if ended == "OK" else ended


def _renewal_with_another_role(arena: Arena) -> str:
    """There is no field for it; the CSR's own names must not become one."""
    viewer = _bought(arena, "viewer", "vera")
    request = pb.RenewOperatorCertificateRequest(csr=make_csr(viewer.key_pem))
    # What a caller of another version, or of none, might add: name and role as IssueOperatorCertificate has them.
    smuggled = pb.IssueOperatorCertificateRequest(csr=request.csr, name="root", role="admin")
    with arena.to_controller(viewer) as channel:
        ended, answer = call(channel, CERTIFICATE_SERVICE + "RenewOperatorCertificate", smuggled.SerializeToString())
        if ended == "OK":
            pem = pb.RenewOperatorCertificateResponse.FromString(answer).certificate_pem
            identity = identity_of_certificate(pem)
            if identity.uri != identity_of_certificate(viewer.certificate_pem).uri:
                return f"OK as {identity.uri}"
            viewer = Party(root_pem=viewer.root_pem, certificate_pem=pem, key_pem=viewer.key_pem)
    with arena.to_controller(viewer) as channel:
        return call(channel, CERTIFICATE_SERVICE + "RotateAuthority")[0]


def _longer_renewal(arena: Arena) -> str:
    viewer = _bought(arena, "viewer", "vera")
    request = pb.RenewOperatorCertificateRequest(csr=make_csr(viewer.key_pem))
    request.lifetime.FromTimedelta(timedelta(days=300))
    with arena.to_controller(viewer) as channel:
        return call(channel, CERTIFICATE_SERVICE + "RenewOperatorCertificate", request.SerializeToString())[0]


def _revoked_key_again(arena: Arena) -> str:
    thief = _bought(arena, "viewer", "keeper")
    _revoke(arena, thief)
    request = pb.IssueOperatorCertificateRequest(csr=make_csr(thief.key_pem), name="keeper", role="viewer")
    return call(arena.admin, CERTIFICATE_SERVICE + "IssueOperatorCertificate", request.SerializeToString())[0]


def _agent_as_operator(arena: Arena) -> str:
    tls = arena.victim.directory / "state" / "tls"
    stolen = Party(
        root_pem=arena.ca.certificate_pem,
        certificate_pem=(tls / "agent.crt").read_bytes(),
        key_pem=(tls / "agent.key").read_bytes(),
    )
    with arena.to_controller(stolen) as channel:
        return call(channel, CERTIFICATE_SERVICE + "ListCertificates")[0]


def _self_made_ca(arena: Arena) -> str:
    """Of the same name, with the same subject: only its key is another one."""
    forged = issue(
        FleetCA.create("arena"), Identity(fleet="arena", role=Role.ADMIN, name="ada"), root_pem=arena.ca.certificate_pem
    )
    with arena.to_controller(forged) as channel:
        ended = call(channel, CERTIFICATE_SERVICE + "ListCertificates")[0]
    served = call(arena.admin, CERTIFICATE_SERVICE + "ListCertificates")[0]
    return ended if served == "OK" else f"{ended}, and then the port did not serve: {served}"


def _old_ca_after_its_retirement(arena: Arena) -> str:
    """A connection that was opened while the old CA was trusted, and a new one."""
    with Fleet(directory=arena.directory / "retired-ca", name="retired", policy=_POLICY) as fleet:
        fleet.start()
        old = FleetCA.load(fleet.controller_directory / "ca")
        thief = operator(old, Role.ADMIN)
        address = f"127.0.0.1:{fleet.ports[0]}"
        with thief.channel(address, controller_dns_name("retired")) as channel:
            if call(channel, FLEET_SERVICE + "ListAgents")[0] != "OK":
                raise FleetError("the old CA's certificate was not accepted before")
            for stage in ("prepare", "activate", "retire"):
                fleet.jarvisctl("ca", stage, "--reason", "stolen", *(() if stage == "prepare" else ("--force",)))
                if stage == "activate":
                    fleet.jarvisctl("certs", "renew")
            got = call(channel, FLEET_SERVICE + "ListAgents")[0]
        both = (fleet.controller_directory / "fleet-ca.crt").read_bytes() + old.certificate_pem
        late = issue(old, Identity(fleet="retired", role=Role.ADMIN, name="late"), root_pem=both)
        with late.channel(address, controller_dns_name("retired")) as channel:
            anew = call(channel, FLEET_SERVICE + "ListAgents")[0]
        served = fleet.run("agents", "list").returncode
    return got if (anew, served) == ("UNAVAILABLE", 2) else f"{got}, anew {anew}, the fleet's own administrator {served}"


def _bootstrap_again(arena: Arena) -> str:
    """`init` over a fleet, and over what is left of one whose directory was emptied but for the database."""
    directory = arena.directory / "bootstrap"
    with Fleet(directory=directory, name="bootstrap", policy=_POLICY) as fleet:
        fleet.start()
        fleet.stop()
        home = fleet.controller_directory
        again = _init(fleet, home)
        database = (home / "controller.db").read_bytes()
        kept = {path.name: path.read_bytes() for path in home.glob("controller.toml")}
        shutil.rmtree(home)
        made = _init(fleet, home)
        if made.returncode != 0:
            raise FleetError(made.stderr)
        (home / "controller.db").write_bytes(database)
        (home / "controller.toml").write_bytes(kept["controller.toml"])
        command = [program("jarvis-controller"), "run", "--config", str(home / "controller.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if again.returncode == 0 or "is not empty" not in again.stderr:
        return f"init over a fleet: {again.returncode} {again.stderr}"
    return reasons_in(done.stderr) if done.returncode == 2 else f"the controller ran: {done.returncode}"


def _init(fleet: Fleet, directory: object) -> subprocess.CompletedProcess[str]:
    command = [program("jarvis-controller"), "init", str(directory), "--fleet", fleet.name, "--host", "127.0.0.1"]
    options = ["--ek-root", str(fleet.vendor.roots), "--release-root", str(fleet.release_root)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=60)


def _admin_offline(arena: Arena) -> str:
    """The controller's program, on the controller's own host, makes no second administrator in silence."""
    home = arena.fleet.controller_directory
    out = arena.directory / "offline-admin"
    options = ["--role", "admin", "--out", str(out), "--config", str(home / "controller.toml")]
    command = [program("jarvis-controller"), "operator", "mallory", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "REFUSED" if done.returncode == 2 and not out.exists() else f"{done.returncode}: {json.dumps(done.stdout)}"


ATTACKS = (
    *(
        Attack(
            name=f"certificates/revoked-{method.rpartition('/')[2]}",
            tries=f"{method} with a revoked administrator's certificate, over the open connection and a new one",
            expected="CERTIFICATE_REVOKED",
            run=_revoked_call(method),
            is_fast=method.endswith("/StartCaptures"),
        )
        for method in METHODS
    ),
    Attack(
        name="certificates/revoked-in-a-stream",
        tries="to go on reading a stream that began before the certificate was revoked",
        expected="CERTIFICATE_REVOKED",
        run=_revoked_in_a_stream,
        is_fast=True,
    ),
    Attack(
        name="certificates/expired-in-a-stream",
        tries="to go on reading a stream after the end of the certificate",
        expected="CERTIFICATE_EXPIRED",
        run=_expired_in_a_stream,
    ),
    Attack(
        name="certificates/expired-on-an-open-connection",
        tries="to go on calling over a connection that began before the end of the certificate",
        expected="CERTIFICATE_EXPIRED",
        run=_expired_on_an_open_connection,
    ),
    Attack(
        name="certificates/renewal-with-another-role",
        tries="a viewer renews its certificate as an administrator, and orders a new CA with what it gets",
        expected="ROLE_DENIED",
        run=_renewal_with_another_role,
    ),
    Attack(
        name="certificates/longer-renewal",
        tries="an operator renews its certificate for longer than an administrator gave it",
        expected="INVALID_ARGUMENT",
        run=_longer_renewal,
    ),
    Attack(
        name="certificates/revoked-key",
        tries="a new certificate for a key whose certificate was revoked",
        expected="KEY_REVOKED",
        run=_revoked_key_again,
    ),
    Attack(
        name="certificates/agent-as-operator",
        tries="an agent's own certificate and key on the operators' port",
        expected="ROLE_DENIED",
        run=_agent_as_operator,
    ),
    Attack(
        name="certificates/self-made-ca",
        tries="an administrator's certificate of a CA with the fleet's name and subject",
        expected="UNAVAILABLE",
        run=_self_made_ca,
    ),
    Attack(
        name="certificates/old-ca",
        tries="an administrator's certificate of the old CA after its retirement, over an open connection and a new one",
        expected="CERTIFICATE_UNTRUSTED",
        run=_old_ca_after_its_retirement,
    ),
    Attack(
        name="certificates/bootstrap-again",
        tries="jarvis-controller init over a fleet, and over its database in an emptied directory",
        expected="DATABASE_OF_ANOTHER_FLEET",
        run=_bootstrap_again,
    ),
    Attack(
        name="certificates/second-administrator",
        tries="jarvis-controller operator --role admin",
        expected="REFUSED",
        run=_admin_offline,
    ),
)
