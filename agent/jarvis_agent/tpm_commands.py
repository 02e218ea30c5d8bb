# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent tpm show|clear-handles|rotate-tls-key`: what of the agent is in this host's TPM."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from jarvis_agent.config import AgentConfig
    from jarvis_agent.tpm_device import TpmDevice

T = TypeVar("T")

DEFAULT_CONFIG = Path("/etc/jarvis-capture/agent.toml")

tpm_app = typer.Typer(
    name="tpm",
    help="The agent's keys in this host's TPM. Stop the agent first where the TPM has no resource manager (swtpm).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Config = Annotated[Path, typer.Option("--config", "-c", metavar="PATH", help="The agent's configuration, TOML.")]


class Format(StrEnum):
    """Format of a listing."""

    TABLE = "table"
    JSON = "json"


@tpm_app.command()
def show(
    config: Config = DEFAULT_CONFIG,
    output: Annotated[Format, typer.Option("--output", help="A table for people, or JSON.")] = Format.TABLE,
) -> None:
    """Show the TPM's counters, the agent's id and what is at the configured handles. Nothing is changed.

    Exit codes: 0 shown, 1 the TPM does not answer or refuses, 2 bad configuration.
    """
    loaded = _load(config)
    # Without the handles: nothing is put there by looking.
    found = _on_tpm(dataclasses.replace(loaded, ek_handle=None), lambda device: _facts(loaded, device))
    if output is Format.JSON:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if name == "handles":
            for handle in value:
                typer.echo(f"{handle['field']:<16} {handle['handle'] or '-':<12} {handle['holds']}")
        else:
            typer.echo(f"{name:<16} {value}")


@tpm_app.command("clear-handles")
def clear_handles(config: Config = DEFAULT_CONFIG) -> None:
    """Empty the configured handles that hold keys which the agent put there; the next start makes the keys again.

    Exit codes: 0 they are empty now, 1 one holds something else or the TPM does not answer, 2 bad configuration.
    """
    loaded = _load(config)

    def clear(device: TpmDevice) -> list[str]:
        return [
            f"{field} {handle:#010x}: {'emptied' if device.kept.remove_ours(handle) else 'is empty'}"
            for field, handle in _fields(loaded)
            if handle is not None
        ]

    for line in _on_tpm(loaded, clear):
        typer.echo(line)


@tpm_app.command("rotate-tls-key")
def rotate_tls_key(config: Config = DEFAULT_CONFIG) -> None:
    """Have the agent take another TLS key (carrier tunnel) at its next start: it then enrols that key by its TPM alone.

    Exit codes: 0 done, 1 the number cannot be read or written, 2 bad configuration.
    """
    from jarvis_trust.errors import TrustError  # noqa: PLC0415 - only for this command

    from jarvis_agent.tls_key import read_key_number, write_key_number  # noqa: PLC0415 - gRPC

    directory = _load(config).state_directory / "tls"
    try:
        number = read_key_number(directory) + 1
        write_key_number(directory, number)
    except (OSError, TrustError) as error:
        _fail(str(error), 1)
    typer.echo(f"TLS key {number} from the agent's next start on")


def _fields(config: AgentConfig) -> list[tuple[str, int | None]]:
    return [(name, getattr(config, name)) for name in ("ek_handle", "ak_handle", "tls_key_handle")]


def _facts(config: AgentConfig, device: TpmDevice) -> dict[str, Any]:
    from jarvis_trust.identities import agent_id_from_ek  # noqa: PLC0415 - only for this command
    from jarvis_trust.tpm_structures import parse_public  # noqa: PLC0415 - only for this command

    from jarvis_agent.tls_key import read_key_number  # noqa: PLC0415 - gRPC
    from jarvis_agent.tpm_handles import described  # noqa: PLC0415 - the TPM stack

    clock = device.clock()
    handles = []
    for field, handle in _fields(config):
        found = None if handle is None else device.kept.look(handle)
        holds = "not configured: made at each start" if handle is None else "empty" if found is None else described(found[1])
        handles.append({"field": field, "handle": "" if handle is None else f"{handle:#010x}", "holds": holds})
    endorsement = device.endorsement_identity()
    return {
        "tcti": config.tcti,
        "agent_id": agent_id_from_ek(parse_public(endorsement.public).spki_der),
        "reset_count": clock.reset_count,
        "restart_count": clock.restart_count,
        "tls_key_number": read_key_number(config.state_directory / "tls"),
        "handles": handles,
    }


def _load(path: Path) -> AgentConfig:
    from jarvis_agent.config import AgentConfig  # noqa: PLC0415 - only for these commands
    from jarvis_agent.errors import ConfigError  # noqa: PLC0415 - only for these commands
    from jarvis_agent.software_identity import NO_TPM  # noqa: PLC0415 - only for these commands

    try:
        config = AgentConfig.load(path)
    except ConfigError as error:
        _fail(str(error), 2)
    if config.tcti == NO_TPM:
        _fail(f"tcti: {NO_TPM!r}: this agent runs without a TPM; the TCTI string of one is accepted here", 2)
    return config


def _on_tpm(config: AgentConfig, operation: Callable[[TpmDevice], T]) -> T:
    """What an operation gives; an error line and exit 1 where it fails."""
    try:
        from jarvis_agent.tpm import TpmPriority, TpmWorker  # noqa: PLC0415 - the TPM stack
        from jarvis_agent.tpm_handles import KeyHandles  # noqa: PLC0415 - the TPM stack
    except ModuleNotFoundError as error:
        _fail(f"tpm needs the Python module {error.name}: install it with pip install 'jarvis-capture[agent]'", 1)
    from jarvis_trust.errors import TrustError  # noqa: PLC0415 - only for these commands

    worker = TpmWorker.for_tcti(config.tcti, KeyHandles.of(config))
    try:
        return worker.submit(TpmPriority.CREDENTIAL, operation).result()
    except TrustError as error:
        _fail(f"{error.reason}: {error.message}", 1)
    finally:
        worker.close()


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
