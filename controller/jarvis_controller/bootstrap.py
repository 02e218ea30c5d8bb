# SPDX-License-Identifier: Apache-2.0
"""`jarvis-controller init`: a fleet from nothing. CA, command key, controller certificate, first administrator, configuration.

    DIR/controller.toml  policy.toml  jarvisctl.toml   ca/ca.crt  ca/ca.key   command.key  controller.pem   admin.crt  admin.key
        root.json  ek-roots/*.pem       (copies of what was given)

Every file is written once, 0600 in a directory that is 0700; a second run is refused before anything is touched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from jarvis_trust.ca import FleetCA, generate_key, load_certificate, public_key_of
from jarvis_trust.ca_bundle import serial_of
from jarvis_trust.commands import generate_command_key
from jarvis_trust.errors import FirmwareError, IdentityError
from jarvis_trust.identities import Identity, Role, validate_fleet_name
from jarvis_trust.keyfiles import write_private
from jarvis_trust.release_root import ROOT_FILE, ReleaseRoot

from jarvis_controller.authorities import CA_DIRECTORY
from jarvis_controller.issuer import SPOOL_DIRECTORY
from jarvis_controller.state_files import COMMAND_KEY_FILE
from jarvis_controller.tls import CERTIFICATE_FILE, controller_identity, issue_controller_pem

CONFIG_FILE = "controller.toml"
POLICY_FILE = "policy.toml"
CTL_FILE = "jarvisctl.toml"
OPERATOR_LIFETIME = timedelta(days=365)


class InitError(Exception):
    """The fleet cannot be made; the message names the option or file, what was found and what would be accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """What `init` was asked for."""

    directory: Path
    fleet: str
    name: str
    host: str
    """Where agents and operators reach this controller: a DNS name or an address."""
    port: int
    """For operators."""
    enroll_port: int
    tunnel_port: int
    ek_roots: Sequence[Path]
    """May be empty: then the policy has to be completed before `run` accepts it."""
    release_root: Path | None
    """May be None, likewise."""


def initialise(options: InitOptions) -> None:
    """Makes everything, or refuses before it makes anything.

    Raises:
        InitError: the directory holds a fleet already, or an option cannot be used.
    """
    roots, release_root = _check(options)
    directory = options.directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    try:
        _write(options, roots, release_root)
    except OSError as error:
        raise InitError(f"{error.filename}: {error.strerror}") from error


def _write(options: InitOptions, roots: Sequence[bytes], release_root: bytes | None) -> None:
    directory = options.directory
    ca = FleetCA.create(options.fleet)
    (directory / CA_DIRECTORY).mkdir(mode=0o700)
    ca.save(directory / CA_DIRECTORY)
    write_private(directory / COMMAND_KEY_FILE, generate_command_key()[0])
    write_private(directory / CERTIFICATE_FILE, issue_controller_pem(ca, controller_identity(options.fleet, options.name)))
    if release_root is not None:
        write_private(directory / ROOT_FILE, release_root)
    (directory / "ek-roots").mkdir(mode=0o700)
    names = [f"ek-roots/{index:02}-{path.stem}.pem" for index, path in enumerate(options.ek_roots, start=1)]
    for name, pem in zip(names, roots, strict=True):
        write_private(directory / name, pem)
    admin = Identity(fleet=options.fleet, role=Role.ADMIN, name="admin")
    issued = issue_operator(ca, admin, directory, endpoint=join_address(options.host, options.port))
    spool(directory, issued, "init")
    write_private(directory / POLICY_FILE, _policy_toml(options, names).encode())
    # Last: its presence says that everything else is there.
    write_private(directory / CONFIG_FILE, _controller_toml(options).encode())


def spool(state_directory: Path, pem: bytes, by: str) -> None:
    """Leaves a certificate for the controller's register: it is recorded when the controller starts, and hourly.

    Raises:
        OSError: it cannot be written.
    """
    directory = state_directory / SPOOL_DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    write_private(directory / f"{by}-{serial_of(load_certificate(pem))}.pem", pem)


def issue_operator(ca: FleetCA, identity: Identity, directory: Path, *, endpoint: str, ca_pem: bytes = b"") -> bytes:
    """Writes an operator's key, certificate and jarvisctl configuration into an existing directory; never over existing files.

    Returns the certificate, PEM. `ca_pem`: every CA that is trusted; `ca` alone when it is empty.

    Raises:
        OSError: a file exists or cannot be written.
    """
    key = generate_key()
    write_private(directory / f"{identity.name}.key", key)
    certificate = ca.issue(identity, public_key_of(key), OPERATOR_LIFETIME)
    write_private(directory / f"{identity.name}.crt", certificate)
    if not (directory / "fleet-ca.crt").exists():
        write_private(directory / "fleet-ca.crt", ca_pem or ca.certificate_pem)
    lines = {
        "endpoint": endpoint,
        "fleet": identity.fleet,
        "ca": "fleet-ca.crt",
        "certificate": f"{identity.name}.crt",
        "key": f"{identity.name}.key",
    }
    text = "# jarvisctl; paths are relative to this file.\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in lines.items()
    )
    write_private(directory / CTL_FILE, text.encode())
    return certificate


def _check(options: InitOptions) -> tuple[list[bytes], bytes | None]:
    directory = options.directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InitError(f"DIR {directory} is not empty: a fleet is made once, in a new or empty directory")
    try:
        validate_fleet_name(options.fleet)
        controller_identity(options.fleet, options.name)
    except IdentityError as error:
        raise InitError(error.message) from error
    if not options.host or any(character.isspace() for character in options.host):
        raise InitError(f"--host {options.host!r}: a DNS name or an address is accepted")
    return [_root(path) for path in options.ek_roots], _release_root(options.release_root)


def _root(path: Path) -> bytes:
    try:
        pem = path.read_bytes()
        x509.load_pem_x509_certificates(pem)
    except OSError as error:
        raise InitError(f"--ek-root {path}: {error.strerror}") from error
    except ValueError as error:
        raise InitError(f"--ek-root {path}: not a certificate in PEM: {error}") from error
    return pem


def _release_root(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = path.read_bytes()
        ReleaseRoot.from_bytes(data)
    except OSError as error:
        raise InitError(f"--release-root {path}: {error.strerror}") from error
    except FirmwareError as error:
        raise InitError(f"--release-root {path}: {error.message}") from error
    return data


def _controller_toml(options: InitOptions) -> str:
    everywhere = "[::]" if ":" in options.host else "0.0.0.0"  # noqa: S104 - the ports are for other hosts
    return f"""\
# jarvis-controller; every field is described in controller.example.toml. Paths are relative to this file.
fleet = {json.dumps(options.fleet)}
name = {json.dumps(options.name)}
state_directory = "."
listen = "{everywhere}:{options.port}"
enroll_listen = "{everywhere}:{options.enroll_port}"
advertise_enroll = {json.dumps(join_address(options.host, options.enroll_port))}
tunnel_listen = "{everywhere}:{options.tunnel_port}"
advertise_tunnel = {json.dumps(join_address(options.host, options.tunnel_port))}
release_root = "{ROOT_FILE}"
policy = "{POLICY_FILE}"
"""


def _policy_toml(options: InitOptions, ek_roots: Sequence[str]) -> str:
    return f"""\
# What is demanded of agents; every field is described in policy.example.toml. Paths are relative to this file.
# A change needs a higher version: `jarvisctl attest --simulate FILE` tries it, `jarvisctl policy apply FILE` does it.
name = {json.dumps(options.fleet)}
version = 1

[vendors]
roots = {json.dumps(list(ek_roots))}

[[rule]]
selector = ""
level = "L1"

# Collectors that flow records may be exported to; without an entry none may.
# [export]
# collectors = ["192.0.2.0/24", "siem.{options.fleet}:4739"]
"""


def join_address(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
