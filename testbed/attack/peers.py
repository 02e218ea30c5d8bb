# SPDX-License-Identifier: Apache-2.0
"""Parties with certificates of an attacker's choice, and raw calls: what came back is one word.

credentials (stolen, forged, none) -> channel -> bytes -> "OK", the reason of the refusal, or gRPC's code where there is none
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import grpc
from grpc_status import rpc_status
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.identities import Identity, Role
from jarvis_trust.status import reason_of

Metadata = Sequence[tuple[str, str | bytes]]

TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Who calls: a certificate with its key, or nobody."""

    root_pem: bytes
    certificate_pem: bytes = b""
    key_pem: bytes = b""

    def channel(self, address: str, name: str) -> grpc.Channel:
        """To whoever serves there under this DNS name."""
        credentials = grpc.ssl_channel_credentials(self.root_pem, self.key_pem or None, self.certificate_pem or None)
        options = [
            ("grpc.ssl_target_name_override", name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", 16 << 20),
        ]
        return grpc.secure_channel(address, credentials, options=options)


def issue(ca: FleetCA, identity: Identity, *, root_pem: bytes = b"", lifetime: timedelta = timedelta(hours=1)) -> Party:
    """A party with a certificate of this CA; it trusts another root where one is given."""
    key = generate_key()
    certificate = ca.issue(identity, public_key_of(key), lifetime)
    return Party(root_pem=root_pem or ca.certificate_pem, certificate_pem=certificate, key_pem=key)


def operator(ca: FleetCA, role: Role, name: str = "mallory") -> Party:
    """An operator of this role."""
    return issue(ca, Identity(fleet=ca.fleet, role=role, name=name))


@contextmanager
def as_reason(into: list[str]) -> Iterator[None]:
    """Puts how the call under it ended into a list: "OK" or the refusal."""
    try:
        yield
    except grpc.RpcError as error:
        into.append(reason(error))
    else:
        into.append("OK")


def reason(error: grpc.RpcError) -> str:
    """Of a refusal: the reason that it gives, else the name of its code."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an RpcError that a call raised is that call
    found = reason_of(status) if status is not None else ""
    return found or str(error.code().name)


def call(channel: grpc.Channel, method: str, payload: bytes = b"", metadata: Metadata = ()) -> tuple[str, bytes]:
    """One request; how it ended, and the answer's bytes (a stream's first message)."""
    ended: list[str] = []
    answer = b""
    with as_reason(ended):
        stub = channel.unary_stream(method, request_serializer=None, response_deserializer=None)
        # The framing of a unary call is that of a stream of one message: every rpc can be called so.
        for message in stub(payload, metadata=tuple(metadata), timeout=TIMEOUT_S):
            answer = bytes(message)
            break
    return ended[0], answer
