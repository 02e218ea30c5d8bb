# SPDX-License-Identifier: Apache-2.0
"""Who is refused although TLS let it in, and how a stream is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jarvis_controller.authorities import Authorities, Stage, StageError
from jarvis_controller.certificate_rows import Denial
from jarvis_controller.deny_list import DenyList, Peer
from jarvis_controller.rpc_status import RpcError
from jarvis_trust.ca import FleetCA, generate_key, load_certificate, public_key_of
from jarvis_trust.ca_bundle import serial_of
from jarvis_trust.identities import Identity, Role
from jarvis_trust.status import reason_of

CA = FleetCA.create("lab", now=datetime.now(UTC) - timedelta(days=100))
TRUSTED = (load_certificate(CA.certificate_pem),)
OTTO = Identity(fleet="lab", role=Role.OPERATOR, name="otto")


class Clock:
    def __init__(self) -> None:
        self.ns = int(datetime.now(UTC).timestamp()) * 10**9

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 10**9)


class Connection:
    def __init__(self, ca: FleetCA = CA, *, age_s: float = 0, hours: float = 1) -> None:
        issued = datetime.now(UTC) - timedelta(seconds=age_s)
        self.pem = ca.issue(OTTO, public_key_of(generate_key()), timedelta(hours=hours), now=issued)
        self.serial = serial_of(load_certificate(self.pem))

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.pem]}


def admitted(deny_list: DenyList, connection: Any) -> str:
    try:
        peer = deny_list.admit(connection)
    except RpcError as error:
        return reason_of(error.status)
    assert peer is not None
    assert peer.serial == connection.serial
    return "OK"


def denial(serial: str = "", subject: str = "", time_ns: int = 0, *, is_open: bool = False) -> Denial:
    return Denial(serial=serial, subject=subject, time_ns=time_ns, reason="stolen", is_open=is_open)


def test_a_serial_is_refused_and_its_neighbour_is_not() -> None:
    deny_list, one, two = DenyList(TRUSTED), Connection(), Connection()
    deny_list.deny([denial(serial=one.serial)])
    assert (admitted(deny_list, one), admitted(deny_list, two)) == ("CERTIFICATE_REVOKED", "OK")


def test_an_id_is_refused_with_what_was_issued_before_and_not_with_what_comes_later() -> None:
    clock = Clock()
    deny_list = DenyList(TRUSTED, wall_clock_ns=clock)
    before, after = Connection(age_s=10), Connection(age_s=0)
    deny_list.deny([denial(subject=OTTO.uri, time_ns=clock.ns - 5 * 10**9)])
    assert (admitted(deny_list, before), admitted(deny_list, after)) == ("CERTIFICATE_REVOKED", "OK")


def test_a_certificate_is_refused_from_its_end_on() -> None:
    clock = Clock()
    deny_list, connection = DenyList(TRUSTED, wall_clock_ns=clock), Connection(hours=1)
    clock.advance(3590)
    assert admitted(deny_list, connection) == "OK"
    clock.advance(20)
    assert admitted(deny_list, connection) == "CERTIFICATE_EXPIRED"


def test_a_ca_that_is_trusted_no_more_takes_its_certificates_along() -> None:
    deny_list, connection, new = DenyList(TRUSTED), Connection(), FleetCA.create("lab")
    assert admitted(deny_list, connection) == "OK"
    deny_list.trust((load_certificate(new.certificate_pem),))
    assert (admitted(deny_list, connection), admitted(deny_list, Connection(new))) == ("CERTIFICATE_UNTRUSTED", "OK")


def test_an_agent_is_not_spoken_to_until_it_was_admitted_again() -> None:
    deny_list, uri = DenyList(TRUSTED), f"spiffe://lab/agent/{'a' * 32}"
    deny_list.check_agent(uri)
    deny_list.deny([denial(subject=uri, time_ns=1, is_open=True)])
    with pytest.raises(RpcError):
        deny_list.check_agent(uri)
    deny_list.admitted(uri)
    deny_list.check_agent(uri)


async def served(deny_list: DenyList, peer: Peer, begun: asyncio.Event) -> str:
    """A handler that waits for ever, as the interceptor runs it."""
    with deny_list.watching(peer) as watch:
        try:
            watch.enter()
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            converted = watch.convert(error)
            if not isinstance(converted, RpcError):
                raise
            return reason_of(converted.status)
        except RpcError as error:
            return reason_of(error.status)
        finally:
            watch.leave()
    return "ended"


def peer_of(deny_list: DenyList, connection: Any) -> Peer:
    peer = deny_list.admit(connection)
    assert peer is not None
    return peer


async def test_a_waiting_stream_is_told_at_once_and_others_are_not() -> None:
    deny_list, one, two = DenyList(TRUSTED), Connection(), Connection()
    begun = [asyncio.Event(), asyncio.Event()]
    tasks = [
        asyncio.ensure_future(served(deny_list, peer_of(deny_list, connection), event))
        for connection, event in zip((one, two), begun, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in begun))
    deny_list.deny([denial(serial=one.serial)])
    assert await tasks[0] == "CERTIFICATE_REVOKED"
    assert not tasks[1].done()
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]


async def test_what_the_client_cancels_is_no_refusal() -> None:
    deny_list, connection, begun = DenyList(TRUSTED), Connection(), asyncio.Event()
    task = asyncio.ensure_future(served(deny_list, peer_of(deny_list, connection), begun))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_stream_that_is_writing_is_told_when_it_comes_back() -> None:
    deny_list, connection = DenyList(TRUSTED), Connection()
    with deny_list.watching(peer_of(deny_list, connection)) as watch:
        watch.enter()
        watch.leave()
        deny_list.deny([denial(serial=connection.serial)])
        with pytest.raises(RpcError):
            watch.enter()


async def test_a_stream_over_a_certificate_that_is_over_does_not_begin() -> None:
    clock = Clock()
    deny_list, connection = DenyList(TRUSTED, wall_clock_ns=clock), Connection()
    peer = peer_of(deny_list, connection)
    clock.advance(3700)
    assert await served(deny_list, peer, asyncio.Event()) == "CERTIFICATE_EXPIRED"


# ---- the CAs on disk


@pytest.fixture
def authorities(tmp_path: Any) -> Authorities:
    (tmp_path / "ca").mkdir()
    FleetCA.create("lab").save(tmp_path / "ca")
    return Authorities(tmp_path)


def test_a_change_of_the_ca_survives_a_restart_at_every_stage(authorities: Authorities, tmp_path: Any) -> None:
    first = authorities.issuing.certificate_pem
    for step, stage, trusted in (("prepare", Stage.PREPARED, 2), ("activate", Stage.ACTIVATED, 2), ("finish", Stage.NONE, 1)):
        getattr(authorities, step)()
        again = Authorities(tmp_path)
        assert (again.stage, len(again.bundle.certificates)) == (stage, trusted)
        assert again.bundle.sha256 == authorities.bundle.sha256
    assert authorities.issuing.certificate_pem != first
    assert [load_certificate(first)] == list(authorities.retired)


def test_the_old_key_is_gone_after_its_retirement(authorities: Authorities, tmp_path: Any) -> None:
    authorities.prepare()
    authorities.activate()
    assert authorities.serving is authorities.previous
    authorities.finish()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.key")] == ["ca/ca.key"]


def test_a_step_out_of_its_order_changes_nothing(authorities: Authorities) -> None:
    for step in (authorities.activate, authorities.finish):
        with pytest.raises(StageError):
            step()
    authorities.prepare()
    with pytest.raises(StageError, match="ACTIVATED or NONE is accepted"):
        authorities.prepare()
    assert authorities.stage is Stage.PREPARED


def test_a_crash_while_the_next_ca_was_made_leaves_none(authorities: Authorities, tmp_path: Any) -> None:
    (tmp_path / ".ca-next").mkdir()
    again = Authorities(tmp_path)
    assert again.stage is Stage.NONE
    again.prepare()
    assert again.stage is Stage.PREPARED
