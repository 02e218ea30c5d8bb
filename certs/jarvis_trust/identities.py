# SPDX-License-Identifier: Apache-2.0
"""Who is who: SPIFFE ids, roles, and the agent id that follows from the TPM's endorsement key.

    spiffe://<fleet>/agent/<id>    /controller/<name>    /operator/{viewer,operator,admin}/<name>

Authorisation looks at the SPIFFE id only; DNS names exist so that TLS clients can check the server's name.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from jarvis_trust.errors import IdentityError

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_FLEET = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_FLEET_MAX = 128
_AGENT_ID = re.compile(r"[a-z2-7]{32}")
_CONTROLLER_NAME = re.compile(_LABEL)
_OPERATOR_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_URI = re.compile(r"spiffe://([^/]*)/(?:(agent|controller)|operator/(viewer|operator|admin))/([^/]*)")
_URI_MAX = 512


class Role(StrEnum):
    """What an identity may be. Operators are ranked: viewer < operator < admin."""

    AGENT = "agent"
    CONTROLLER = "controller"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def is_operator(self) -> bool:
        """One of the three operator roles."""
        return self in _RANK

    def permits(self, required: Role) -> bool:
        """Whether a holder of this role may do what `required` may. Agents and controllers stand in for nobody else."""
        if self.is_operator and required.is_operator:
            return _RANK[self] >= _RANK[required]
        return self is required


_RANK = {Role.VIEWER: 1, Role.OPERATOR: 2, Role.ADMIN: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One party of one fleet. Checked on construction; equal means the same party in the same role."""

    fleet: str
    """Trust domain, a lower-case DNS name."""
    role: Role
    name: str
    """Agent id, controller name (a DNS label) or operator name."""

    def __post_init__(self) -> None:
        validate_fleet_name(self.fleet)
        if self.role is Role.AGENT:
            validate_agent_id(self.name)
        elif self.role is Role.CONTROLLER:
            if _CONTROLLER_NAME.fullmatch(self.name) is None:
                raise IdentityError("IDENTITY_INVALID", f"controller name {self.name[:80]!r}: a lower-case DNS label is accepted")
        elif _OPERATOR_NAME.fullmatch(self.name) is None:
            raise IdentityError(
                "IDENTITY_INVALID",
                f"operator name {self.name[:80]!r}: 1-63 characters of a-z 0-9 . _ - are accepted, at the ends a-z 0-9",
            )

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        path = f"operator/{self.role}" if self.role.is_operator else str(self.role)
        return f"spiffe://{self.fleet}/{path}/{self.name}"

    @property
    def dns_names(self) -> tuple[str, ...]:
        """DNS names of the certificate; only controllers get `controller.<fleet>`, which every client asks for."""
        if self.role is Role.AGENT:
            return (f"{self.name}.agents.{self.fleet}",)
        if self.role is Role.CONTROLLER:
            return (f"{self.name}.controllers.{self.fleet}", controller_dns_name(self.fleet))
        return ()

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Reads a SPIFFE id; only the exact spelling that `uri` gives is accepted.

        Raises:
            IdentityError: IDENTITY_INVALID.
        """
        match = _URI.fullmatch(uri) if len(uri) <= _URI_MAX else None
        if match is None:
            raise IdentityError(
                "IDENTITY_INVALID",
                f"SPIFFE id {uri[:99]!r}: spiffe://<fleet>/ agent/<id>, controller/<name> or operator/<role>/<name> is accepted",
            )
        fleet, role, operator_role, name = match.groups()
        return cls(fleet=fleet, role=Role(role or operator_role), name=name)


def validate_fleet_name(fleet: str) -> None:
    """A fleet's name is its SPIFFE trust domain and the tail of its DNS names.

    Raises:
        IdentityError: FLEET_NAME_INVALID.
    """
    if len(fleet) > _FLEET_MAX or _FLEET.fullmatch(fleet) is None:
        raise IdentityError(
            "FLEET_NAME_INVALID", f"fleet {fleet[:160]!r}: a lower-case DNS name of at most {_FLEET_MAX} characters is accepted"
        )


def validate_agent_id(agent_id: str) -> None:
    """32 characters of base32, lower case.

    Raises:
        IdentityError: AGENT_ID_INVALID.
    """
    if _AGENT_ID.fullmatch(agent_id) is None:
        raise IdentityError("AGENT_ID_INVALID", f"agent id {agent_id[:80]!r}: 32 characters of a-z 2-7 are accepted")


def agent_id_from_ek(spki_der: bytes) -> str:
    """The agent's id: base32 of the first 20 bytes of SHA-256 over the endorsement key's SubjectPublicKeyInfo (DER)."""
    return base64.b32encode(hashlib.sha256(spki_der).digest()[:20]).decode("ascii").lower()


def controller_dns_name(fleet: str) -> str:
    """The name that every client of a controller asks TLS for."""
    return f"controller.{fleet}"
