# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: TOML in, one frozen dataclass out. Every error names the field, its value and what is accepted."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from jarvis_trust.errors import TrustError
from jarvis_trust.identities import validate_fleet_name

from jarvis_agent.errors import ConfigError

_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_LOG_RECORDS_MIN, _LOG_RECORDS_MAX = 1_024, 16_777_216
_EAL_ARGS_MAX = 64
_TLS_FIELDS = ("export_tls_ca", "export_tls_certificate", "export_tls_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What `jarvis-agent run` needs to know. Paths are absolute; relative ones in the file are relative to the file."""

    fleet: str
    """Name of the fleet, a DNS name; must be the join file's."""
    join_file: Path
    """What `jarvisctl enroll token` wrote: token, fleet CA, command key, enrolment address. Mode 0600."""
    release_root: Path
    """root.json: the keys that firmware must be signed with, and how many of them."""
    firmware_directory: Path
    """Holds libjarvis_capture.so, manifest.json and manifest.sig."""
    state_directory: Path = Path("/var/lib/jarvis-capture/agent")
    """TLS key and certificate, firmware event log, lease state. Mode 0700."""
    firmware_floor: int = 0
    """Lowest security_version of firmware that may run; the TPM's own floor counts too."""
    revocations: Path | None = None
    """revoked.json: firmware that must not run although it was signed; unset = none is known."""
    floor_nv_index: int = 0x01800100
    """NV index of the TPM's own rollback floor, a counter that this agent makes; of the owner's range, 0x01800000..0x01bfffff."""
    tcti: str = "device:/dev/tpmrm0"
    """TCTI configuration string of the TPM. There is no default search. "none": this agent has no TPM (level L0)."""
    pcr: int = 14
    """PCR (SHA-256 bank) that firmware is measured into, 0..15."""
    ak_handle: int | None = None
    """Persistent handle, 0x81000000..0x817fffff, that the attestation key is kept at; unset: it is made at each start."""
    ek_handle: int | None = None
    """The same of the endorsement key."""
    tls_key_handle: int | None = None
    """The same of the TLS key, with carrier tunnel."""
    store_pcrs: tuple[int, ...] = (7,)
    """PCRs that an approval must be over to open the packet stores' master key: 0..23, not `pcr`."""
    boot_log: Path = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    """The firmware's TCG event log, sent when the controller asks for PCRs of the boot chain."""
    carrier: str = "tunnel"
    """"tunnel": this agent dials the controller, and no port is open here; "direct": it listens, and the controller dials it."""
    tunnel_address: str = ""
    """host:port of the controller's TunnelService; empty = what the enrolment gives."""
    tunnel_retry_s: float = 0.5
    """Ceiling, in seconds, of the first wait after the tunnel was lost; doubles up to tunnel_retry_max_s, with full jitter."""
    tunnel_retry_max_s: float = 60.0
    """Ceiling, in seconds, of any wait for the tunnel."""
    advertise: str = ""
    """Carrier direct: host:port where the controller reaches this agent."""
    ima_log: Path = Path("/sys/kernel/security/ima/binary_runtime_measurements")
    """IMA's measurement list, sent when the controller asks for PCR 10."""
    listen: str = "0.0.0.0:7443"
    """Carrier direct: host:port to serve on."""
    enroll_address: str = ""
    """host:port of the EnrollmentService; empty = the join file's."""
    enroll_retry_s: float = 5.0
    """Ceiling, in seconds, of the first wait after a failed enrolment; doubles up to 5 min, with full jitter."""
    replay_directory: Path | None = None
    """Capture files may be replayed from below this directory; unset = none may."""
    worker_cpus: tuple[int, ...] = ()
    """CPU for each worker of a capture; empty = one worker, not pinned."""
    dpdk_eal_args: tuple[str, ...] = ()
    """Arguments of DPDK's EAL, for captures with backend dpdk; the host's devices with arguments are --vdev here."""
    flow_log_records: int = 262_144
    """Finished flow records that each worker keeps for subscribers (136 bytes each, 352 with statistics), a power of two."""
    export_directory: Path | None = None
    """Exports with transport file write below this directory; unset = none may."""
    spool_directory: Path | None = None
    """Where records wait that find no room in memory; unset = `spool` in the state directory. Made with mode 0700."""
    spool_memory_mb: int = 64
    """MiB of memory in which records wait, each collector's own."""
    spool_disk_mb: int = 1024
    """MiB of disk likewise; 0 = none: what finds no room in memory is lost, and so is what waits when the agent stops."""
    export_tls_ca: Path | None = None
    """Transport tls: PEM of the CAs that collectors' certificates must come from. Set with the next two, or none of them."""
    export_tls_certificate: Path | None = None
    """PEM of the certificate that is shown to collectors, with the chain up to what they trust."""
    export_tls_key: Path | None = None
    """PEM of its private key, mode 0600."""
    export_routes: bool = True
    """Exports with profile full tell next hop and prefix lengths from the kernel's routing table."""
    asn_database: Path | None = None
    """MaxMind DB with AS numbers (GeoLite2-ASN.mmdb), for exports with profile full; read again when the file is replaced."""
    log_format: str = "json"
    """"json" or "console"."""

    @classmethod
    def load(cls, path: Path) -> AgentConfig:
        """Reads and checks a TOML file.

        Raises:
            ConfigError: one sentence per problem.
        """
        try:
            with path.open("rb") as file:
                values = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"the configuration {path} is not TOML: {error}") from error
        return cls.from_mapping(values, base=path.absolute().parent)

    @classmethod
    def from_mapping(cls, values: dict[str, Any], *, base: Path) -> AgentConfig:
        """Checks values as a TOML file gives them; relative paths are taken from `base`.

        Raises:
            ConfigError: as `load`.
        """
        known = {field.name: field for field in fields(cls)}
        problems = [
            f"{name}: no such field; accepted are {', '.join(sorted(known))}" for name in sorted(values.keys() - known.keys())
        ]
        problems += [
            f"{name}: is missing; {_ACCEPTED[name]}"
            for name, field in known.items()
            if field.default is MISSING and name not in values
        ]
        accepted: dict[str, Any] = {}
        for name in sorted(values.keys() & known.keys()):
            try:
                accepted[name] = _READERS[name](values[name], base)
            except ValueError as error:
                detail = f" ({error})" if str(error) else ""
                problems.append(f"{name}: {values[name]!r} is not accepted{detail}; {_ACCEPTED[name]}")
        if accepted.get("carrier") == "direct" and "advertise" not in values:
            problems.append(f'advertise: is missing; with carrier = "direct" {_ACCEPTED["advertise"]}')
        store_pcrs = accepted.get("store_pcrs", known["store_pcrs"].default)
        if accepted.get("pcr", known["pcr"].default) in store_pcrs:
            problems.append(f"store_pcrs: {list(store_pcrs)} holds `pcr`; {_ACCEPTED['store_pcrs']}")
        problems += [
            f"{name}: is missing; {_ACCEPTED[name]} with the other two of export_tls_, or none of them"
            for name in _TLS_FIELDS
            if name not in values and any(other in values for other in _TLS_FIELDS)
        ]
        used = [(name, accepted[name]) for name in ("ak_handle", "ek_handle", "tls_key_handle") if accepted.get(name)]
        for position, (name, handle) in enumerate(used):
            problems += [f"{other}: {same:#010x} is {name} too" for other, same in used[position + 1 :] if same == handle]
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(**accepted)


def _text(value: Any, _base: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _fleet(value: Any, base: Path) -> str:
    name = _text(value, base)
    try:
        validate_fleet_name(name)
    except TrustError as error:
        raise ValueError from error
    return name


def _path(value: Any, base: Path) -> Path:
    return base / _text(value, base)


def _host_port(value: Any, base: Path) -> str:
    text = _text(value, base)
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 1 <= int(match.group(1)) <= 65_535:
        raise ValueError
    return text


def _integer(low: int, high: int) -> Callable[[Any, Path], int]:
    def read(value: Any, _base: Path) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return read


def _seconds(value: Any, _base: Path) -> float:
    if type(value) not in (int, float) or not 0.1 <= value <= 300.0:
        raise ValueError
    return float(value)


def _flag(value: Any, _base: Path) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _cpus(value: Any, _base: Path) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64 or any(type(cpu) is not int or not 0 <= cpu <= 4_095 for cpu in value):
        raise ValueError
    return tuple(value)


def _handle(value: Any, base: Path) -> int | None:
    if value == "":
        return None
    text = _text(value, base)
    if re.fullmatch(r"0x81[0-7][0-9a-fA-F]{5}", text) is None:
        raise ValueError
    return int(text, 16)


def _pcrs(value: Any, _base: Path) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(pcr) is not int or not 0 <= pcr <= 23 for pcr in value):
        raise ValueError
    if len(set(value)) != len(value):
        raise ValueError("one is named twice")
    return tuple(sorted(value))


def _arguments(value: Any, _base: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _EAL_ARGS_MAX or any(not isinstance(text, str) or not text for text in value):
        raise ValueError
    return tuple(value)


def _log_records(value: Any, base: Path) -> int:
    count = _integer(_LOG_RECORDS_MIN, _LOG_RECORDS_MAX)(value, base)
    if count & (count - 1):
        raise ValueError("not a power of two")
    return count


def _carrier(value: Any, _base: Path) -> str:
    if value not in ("tunnel", "direct"):
        raise ValueError
    return str(value)


def _log_format(value: Any, _base: Path) -> str:
    if value not in ("json", "console"):
        raise ValueError
    return str(value)


def _tcti(value: Any, base: Path) -> str:
    text = _text(value, base)
    if ":" not in text and text not in {"tabrmd", "none"}:
        raise ValueError
    return text


_HANDLE_ACCEPTED = 'a persistent handle of the owner such as "0x81010002" is accepted, "0x81000000" to "0x817fffff"'

_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "fleet": _fleet,
    "join_file": _path,
    "advertise": _host_port,
    "release_root": _path,
    "firmware_directory": _path,
    "state_directory": _path,
    "revocations": _path,
    "firmware_floor": _integer(0, 2**31 - 1),
    "floor_nv_index": _integer(0x01800000, 0x01BFFFFF),
    "tcti": _tcti,
    "pcr": _integer(0, 15),
    "ak_handle": _handle,
    "ek_handle": _handle,
    "tls_key_handle": _handle,
    "store_pcrs": _pcrs,
    "boot_log": _path,
    "carrier": _carrier,
    "tunnel_address": _host_port,
    "tunnel_retry_s": _seconds,
    "tunnel_retry_max_s": _seconds,
    "ima_log": _path,
    "listen": _host_port,
    "enroll_address": _host_port,
    "enroll_retry_s": _seconds,
    "replay_directory": _path,
    "worker_cpus": _cpus,
    "dpdk_eal_args": _arguments,
    "flow_log_records": _log_records,
    "export_directory": _path,
    "spool_directory": _path,
    "spool_memory_mb": _integer(1, 65_536),
    "spool_disk_mb": _integer(0, 1_048_576),
    "export_tls_ca": _path,
    "export_tls_certificate": _path,
    "export_tls_key": _path,
    "export_routes": _flag,
    "asn_database": _path,
    "log_format": _log_format,
}

_ACCEPTED = {
    "fleet": 'a lower-case DNS name such as "lab.example" is accepted',
    "join_file": "the path of a file is accepted",
    "advertise": "host:port is accepted, the port 1..65535",
    "release_root": "the path of a file is accepted",
    "firmware_directory": "the path of a directory is accepted",
    "state_directory": "the path of a directory is accepted",
    "revocations": "the path of a file is accepted",
    "firmware_floor": "an integer 0..2147483647 is accepted",
    "floor_nv_index": "an NV index of the owner's range, 0x01800000..0x01bfffff, is accepted",
    "tcti": 'a TCTI string such as "device:/dev/tpmrm0" or "swtpm:host=127.0.0.1,port=2321", or "none", is accepted',
    "pcr": "an integer 0..15 is accepted (user space can reset 16 and 23)",
    "ak_handle": _HANDLE_ACCEPTED,
    "ek_handle": _HANDLE_ACCEPTED,
    "tls_key_handle": _HANDLE_ACCEPTED,
    "store_pcrs": "a list of at least one PCR 0..23 is accepted, each once, without the one of `pcr`",
    "boot_log": "the path of a file is accepted",
    "carrier": '"tunnel" and "direct" are accepted',
    "tunnel_address": "host:port is accepted, the port 1..65535",
    "tunnel_retry_s": "0.1 to 300 seconds are accepted",
    "tunnel_retry_max_s": "0.1 to 300 seconds are accepted",
    "ima_log": "the path of a file is accepted",
    "listen": "host:port is accepted, the port 1..65535",
    "enroll_address": "host:port is accepted, the port 1..65535",
    "enroll_retry_s": "0.1 to 300 seconds are accepted",
    "replay_directory": "the path of a directory is accepted",
    "worker_cpus": "a list of at most 64 CPU numbers 0..4095 is accepted",
    "dpdk_eal_args": "a list of at most 64 strings that are not empty is accepted",
    "flow_log_records": "a power of two 1024..16777216 is accepted",
    "export_directory": "the path of a directory is accepted",
    "spool_directory": "the path of a directory is accepted",
    "spool_memory_mb": "an integer 1..65536 is accepted",
    "spool_disk_mb": "an integer 0..1048576 is accepted",
    "export_tls_ca": "the path of a file is accepted",
    "export_tls_certificate": "the path of a file is accepted",
    "export_tls_key": "the path of a file is accepted",
    "export_routes": "true and false are accepted",
    "asn_database": "the path of a file is accepted",
    "log_format": '"json" and "console" are accepted',
}
