# SPDX-License-Identifier: Apache-2.0
"""jarvisctl.toml: where the controller is and which certificate to show it.

    endpoint = "controller.example.net:7440"
    fleet = "example"
    ca = "ca.pem"              # paths are relative to this file
    certificate = "alice.pem"
    key = "alice.key"          # readable by its owner only

Found by --config, then JARVISCTL_CONFIG, then ~/.config/jarvis-capture/jarvisctl.toml.
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jarvisctl.errors import CtlError, ExitCode

ENVIRONMENT_VARIABLE = "JARVISCTL_CONFIG"
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(\d{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CtlConfig:
    """One operator's way to one fleet."""

    #: host:port of the controller's operator service.
    endpoint: str
    #: Trust domain; the controller must show controller.<fleet>.
    fleet: str
    #: PEM file of the fleet CA.
    ca: Path
    #: PEM file of the operator's certificate.
    certificate: Path
    #: PEM file of its private key.
    key: Path


def default_path(environment: Mapping[str, str]) -> Path:
    """Where the configuration is when --config does not say."""
    if named := environment.get(ENVIRONMENT_VARIABLE):
        return Path(named)
    base = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "jarvis-capture" / "jarvisctl.toml"


def load_config(path: Path | None) -> CtlConfig:
    """Reads and checks the configuration.

    Raises:
        CtlError: it is missing, not TOML, or a key is missing, unknown or of the wrong form; names file, key and value.
    """
    source = path or default_path(os.environ)
    try:
        table = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unusable(
            f"there is no configuration at {source}: name one with --config or {ENVIRONMENT_VARIABLE}"
            " (jarvis-controller init writes the first administrator's)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(f"configuration {source} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise _unusable(f"configuration {source} is not TOML: {error}") from error
    return _checked(table, source)


def read_private(path: Path, what: str) -> bytes:
    """The content of a secret file, refused when anybody but its owner may touch it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise _unusable(
                    f"{what} {path} has mode {mode:04o}: only 0600 is accepted, its owner's alone; run: chmod 600 {path}"
                )
            return file.read()
    except OSError as error:
        raise _unusable(f"{what} {path} cannot be read: {error.strerror}") from error


def read_public(path: Path, what: str) -> bytes:
    """The content of a file that is no secret."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(f"{what} {path} cannot be read: {error.strerror}") from error


def retired_path(config: CtlConfig) -> Path:
    """Where CAs are kept that the fleet does not trust any more: signatures of their time are checked with them."""
    return config.ca.with_name(config.ca.name + ".retired")


def retired_cas(config: CtlConfig) -> bytes:
    """Their certificates, PEM; empty when there are none."""
    path = retired_path(config)
    return read_public(path, "the retired CAs") if path.exists() else b""


def _checked(table: Mapping[str, Any], source: Path) -> CtlConfig:
    names = [field.name for field in fields(CtlConfig)]
    for name in table:
        if name not in names:
            raise _unusable(f"{source}: the key {name!r} is unknown: accepted are {', '.join(names)}")
    for name in names:
        value = table.get(name)
        if not isinstance(value, str) or not value:
            found = "is missing" if name not in table else f"is {value!r}"
            raise _unusable(f"{source}: the key {name!r} {found}: a non-empty string is needed")
    endpoint = table["endpoint"]
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[2]) < 65536:
        raise _unusable(
            f"{source}: endpoint is {endpoint!r}: host:port is needed,"
            " with a port of 1 to 65535 and an IPv6 address in [brackets]"
        )
    directory = source.parent
    return CtlConfig(
        endpoint=endpoint,
        fleet=table["fleet"],
        ca=directory / table["ca"],
        certificate=directory / table["certificate"],
        key=directory / table["key"],
    )


def _unusable(message: str) -> CtlError:
    return CtlError(message, ExitCode.USAGE)
