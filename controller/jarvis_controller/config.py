# SPDX-License-Identifier: Apache-2.0
"""The controller's configuration: one TOML file, read in one place into one frozen dataclass."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jarvis_trust.audit_syslog import DEFAULT_SD_ID, valid_sd_id
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role, validate_fleet_name


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the field, the value and what would be accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """controller.toml. Paths are relative to the file that names them."""

    fleet: str
    """The fleet's name: SPIFFE trust domain and tail of the DNS names."""
    name: str
    """This controller's name, a DNS label."""
    state_directory: Path
    """Holds ca/, command.key, controller.pem and the database, as `jarvis-controller init` made them."""
    advertise_enroll: str
    """host:port where agents reach the enrolment port; goes into join files."""
    release_root: Path
    """root.json: the keys that firmware manifests must be signed with, and how many of them."""
    policy: Path
    """policy.toml: what is demanded of agents. The highest version goes: a file that is newer than the policy in force is put in
    force at the start, an older one is not looked at."""
    database_url: str = ""
    """SQLAlchemy URL; empty = SQLite file controller.db in the state directory."""
    listen: str = "0.0.0.0:7440"
    """host:port for operators (mTLS)."""
    enroll_listen: str = "0.0.0.0:7441"
    """host:port for enrolment (TLS without client certificates)."""
    tunnel_listen: str = "0.0.0.0:7442"
    """host:port for agents that dial (mTLS)."""
    advertise_tunnel: str = ""
    """host:port where agents reach it; empty = the host of advertise_enroll and the port of tunnel_listen."""
    tunnel_hellos_per_s: float = 100.0
    """Tunnels that may begin in a second, 1..10,000; agents that hold a lease have as many of their own."""
    revocations: Path | None = None
    """revoked.json: firmware that must not run although it was signed; None = none is known. Read anew when it changes."""
    attest_concurrency: int = 32
    """Attestations under way at once, 1..1024; a quarter more is kept for agents that hold a lease."""
    agent_certificate_h: float = 24.0
    """Lifetime of agents' certificates in hours, 0.1..24."""
    agent_timeout_s: float = 10.0
    """Deadline of one call to one agent in seconds, 0.1..300."""
    command_concurrency: int = 64
    """Agents that one request commands at once, 1..1024."""
    subscriber_queue_messages: int = 4096
    """Messages held for one subscriber of flows before the oldest batch is dropped, 2..1,000,000."""
    subscriber_queue_bytes: int = 64 * 1024 * 1024
    """Bytes held for one subscriber of flows before the oldest batch is dropped, 1 MiB..4 GiB."""
    kept_events: int = 100_000
    """Events of the fleet kept in the database, the newest so many, 1,000..10,000,000."""
    audit_checkpoint_entries: int = 100
    """Audit entries after which the chain is signed, 1..1000."""
    audit_syslog: str = ""
    """tls://host:port of a syslog collector (RFC 5425) that the audit chain is sent to; empty = none."""
    audit_syslog_ca: Path | None = None
    """PEM of the CAs that the collector's certificate may come from; empty = the system's."""
    audit_syslog_certificate: Path | None = None
    """PEM of a client certificate and its key, 0600, for a collector that asks for one; empty = none."""
    audit_syslog_sd_id: str = DEFAULT_SD_ID
    """SD-ID of the structured data, name@enterprise-number; the default's number is the one for examples (RFC 5612)."""
    evidence_days: int = 400
    """Days for which what verdicts were reached on is kept, 1..36500."""
    evidence_mib: int = 1024
    """MiB of it that are kept at most; the oldest go first. 16..1048576."""
    audit_checkpoint_s: float = 300.0
    """Seconds after which entries that no checkpoint covers are signed, 1..3600."""
    store_pcrs: tuple[int, ...] = (7,)
    """PCRs that a boot state is, for the approvals that open agents' store keys: 0..23, ascending. Given where the policy has
    them quoted (boot_pcrs); must hold what agents demand (their store_pcrs). Empty = none is given."""

    def __post_init__(self) -> None:
        try:
            validate_fleet_name(self.fleet)
            Identity(fleet=self.fleet, role=Role.CONTROLLER, name=self.name)
        except IdentityError as error:
            raise ConfigError(error.message) from error
        for field, low, high in _RANGES:
            value = getattr(self, field)
            if not low <= value <= high:
                raise ConfigError(f"{field} = {value}: {low}..{high} is accepted")
        self._check_syslog()
        pcrs = self.store_pcrs
        if list(pcrs) != sorted(set(pcrs)) or not set(pcrs) <= set(range(24)):
            raise ConfigError(f"store_pcrs = {list(pcrs)}: different PCRs 0..23, ascending, are accepted")
        for field in ("listen", "enroll_listen", "advertise_enroll", "tunnel_listen"):
            _check_address(field, getattr(self, field))
        if self.advertise_tunnel:
            _check_address("advertise_tunnel", self.advertise_tunnel)

    def _check_syslog(self) -> None:
        if not valid_sd_id(self.audit_syslog_sd_id):
            accepted = f"name@enterprise-number, at most 32 characters, such as {DEFAULT_SD_ID} is accepted"
            raise ConfigError(f"audit_syslog_sd_id = {self.audit_syslog_sd_id!r}: {accepted}")
        if self.audit_syslog:
            self.syslog_address()
        elif self.audit_syslog_ca or self.audit_syslog_certificate:
            raise ConfigError('audit_syslog = "": with audit_syslog_ca or audit_syslog_certificate tls://host:port is accepted')

    def syslog_address(self) -> tuple[str, int]:
        """Host and port of audit_syslog.

        Raises:
            ConfigError: it is not tls://host:port.
        """
        match = _SYSLOG.fullmatch(self.audit_syslog)
        if match is None or not 0 < int(match[2]) < 65536:
            raise ConfigError(f"audit_syslog = {self.audit_syslog!r}: tls://host:port is accepted, an IPv6 address in [brackets]")
        return match[1].strip("[]"), int(match[2])

    @property
    def tunnel_address(self) -> str:
        """Where agents that dial are sent."""
        host, port = self.advertise_enroll.rpartition(":")[0], self.tunnel_listen.rpartition(":")[2]
        return self.advertise_tunnel or f"{host}:{port}"

    @property
    def database(self) -> str:
        """The URL in force."""
        return self.database_url or f"sqlite:///{self.state_directory / 'controller.db'}"


_SYSLOG = re.compile(r"tls://(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("tunnel_hellos_per_s", 1, 10_000),
    ("attest_concurrency", 1, 1024),
    ("agent_certificate_h", 0.1, 24),
    ("agent_timeout_s", 0.1, 300),
    ("command_concurrency", 1, 1024),
    ("subscriber_queue_messages", 2, 1_000_000),
    ("subscriber_queue_bytes", 1 << 20, 1 << 32),
    ("kept_events", 1_000, 10_000_000),
    ("audit_checkpoint_entries", 1, 1000),
    ("audit_checkpoint_s", 1, 3600),
    ("evidence_days", 1, 36500),
    ("evidence_mib", 16, 1 << 20),
)


def _check_address(field: str, value: str) -> None:
    host, _, port = value.rpartition(":")
    # Port 0 in a listening address lets the system choose: tests do.
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{field} = {value!r}: host:port is accepted")


def load_config(path: Path) -> ControllerConfig:
    """Reads controller.toml.

    Raises:
        ConfigError: it cannot be read, is not TOML, or a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return ControllerConfig(**_typed(table, path.parent))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _typed(table: Mapping[str, Any], base: Path) -> dict[str, Any]:
    known = {field.name: field for field in fields(ControllerConfig)}
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown field {key!r}; accepted are {', '.join(sorted(known))}")
    hints = get_type_hints(ControllerConfig)
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in table:
            values[name] = _convert(name, table[name], hints[name], base)
        elif field.default is field.default_factory:  # both are MISSING: it has no default
            raise ConfigError(f"{name} is missing")
    return values


def _convert(name: str, value: Any, hint: Any, base: Path) -> Any:
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_convert(name, item, get_args(hint)[0], base) for item in value)
    if hint in {Path, Path | None} and isinstance(value, str) and (value or hint is not Path):
        return base / value if value else None
    if hint is bool and isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    wanted = _WANTED.get(hint, "a list")
    raise ConfigError(f"{name} = {value!r}: {wanted} is accepted")


_WANTED: Mapping[Any, str] = {
    Path: "a path",
    Path | None: "a path",
    float: "a number",
    int: "a whole number",
    str: "a string",
    bool: "true or false",
}
