# SPDX-License-Identifier: Apache-2.0
"""jarvis-controller: init, run, operator, recover-admin, version.

Exit codes: 0 done; 1 something failed while running; 2 the command line, the configuration or a file it names cannot be used.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity, Role
from jarvis_trust.release_root import ROOT_FILE

from jarvis_controller import __version__
from jarvis_controller.authorities import Authorities
from jarvis_controller.bootstrap import (
    CONFIG_FILE,
    CTL_FILE,
    POLICY_FILE,
    InitError,
    InitOptions,
    initialise,
    issue_operator,
    join_address,
    spool,
)
from jarvis_controller.certificate_rows import RECOVERY
from jarvis_controller.config import ConfigError, load_config
from jarvis_controller.server import serve

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The fleet's controller.", pretty_exceptions_enable=False)

_DEFAULT_CONFIG = Path("/etc/jarvis-capture/controller.toml")


@app.command()
def init(  # noqa: PLR0917 - typer gives them by name
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="New directory for the fleet's keys, state and configuration.")
    ],
    fleet: Annotated[str, typer.Option(help="The fleet's name: a lower-case DNS name, e.g. lab.example.")],
    release_root: Annotated[
        Path | None, typer.Option(help="root.json: the keys that firmware manifests are signed with.")
    ] = None,
    ek_root: Annotated[list[Path] | None, typer.Option(help="PEM of a TPM vendor's root; may be given several times.")] = None,
    host: Annotated[str, typer.Option(help="Where agents and operators reach this host.")] = socket.gethostname(),
    port: Annotated[int, typer.Option(help="TCP port for operators.", min=1, max=65535)] = 7440,
    enroll_port: Annotated[int, typer.Option(help="TCP port for enrolment.", min=1, max=65535)] = 7441,
    tunnel_port: Annotated[int, typer.Option(help="TCP port for agents that dial.", min=1, max=65535)] = 7442,
    name: Annotated[str, typer.Option(help="This controller's name.")] = "main",
) -> None:
    """Make a fleet: CA, command key, controller certificate, first administrator, configuration."""
    options = InitOptions(
        directory=directory,
        fleet=fleet,
        name=name,
        host=host,
        port=port,
        enroll_port=enroll_port,
        tunnel_port=tunnel_port,
        ek_roots=ek_root or (),
        release_root=release_root,
    )
    try:
        initialise(options)
    except InitError as error:
        _fail(str(error))
    typer.echo(f"Fleet {fleet} is in {directory}.")
    if release_root is None:
        typer.echo(f"  Before it runs: put the release root at {directory / ROOT_FILE}")
    if not ek_root:
        typer.echo(f"  Before it runs: name the TPM vendors' root certificates at vendors.roots in {directory / POLICY_FILE}")
    typer.echo(f"  jarvis-controller run --config {directory / CONFIG_FILE}")
    typer.echo(f"  jarvisctl --config {directory / CTL_FILE} agents list")


@app.command()
def run(
    config: Annotated[Path, typer.Option(envvar="JARVIS_CONTROLLER_CONFIG", help="controller.toml")] = _DEFAULT_CONFIG,
    verbose: Annotated[bool, typer.Option(help="Also log what goes as it should, in detail.")] = False,
) -> None:
    """Serve operators and agents until SIGTERM or SIGINT."""
    _log_to_stderr(verbose=verbose)
    try:
        asyncio.run(serve(load_config(config)))
    except ConfigError as error:
        _fail(str(error))


@app.command()
def operator(  # noqa: PLR0917 - typer gives them by name
    name: Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.")],
    role: Annotated[Role, typer.Option(help="viewer, operator or admin.")],
    out: Annotated[Path, typer.Option(help="New directory for the key, the certificate and jarvisctl.toml.")],
    config: Annotated[Path, typer.Option(envvar="JARVIS_CONTROLLER_CONFIG", help="controller.toml")] = _DEFAULT_CONFIG,
    host: Annotated[str, typer.Option(help="Where operators reach this host.")] = socket.gethostname(),
    port: Annotated[int, typer.Option(help="TCP port for operators.", min=1, max=65535)] = 7440,
) -> None:
    """Issue a viewer's or operator's certificate (one year) with a jarvisctl configuration. Run it where the CA is.

    It needs no administrator; `jarvisctl certs issue` does, and keeps the operator's key where it was made.
    """
    if role not in {Role.VIEWER, Role.OPERATOR}:
        _fail(f"--role {role}: viewer and operator are accepted; administrators are made by one: jarvisctl certs issue")
    _issue(name, role, out, config, join_address(host, port), by="offline")


@app.command("recover-admin")
def recover_admin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new administrator's name.")],
    out: Annotated[Path, typer.Option(help="New directory for the key, the certificate and jarvisctl.toml.")],
    config: Annotated[Path, typer.Option(envvar="JARVIS_CONTROLLER_CONFIG", help="controller.toml")] = _DEFAULT_CONFIG,
    host: Annotated[str, typer.Option(help="Where operators reach this host.")] = socket.gethostname(),
    port: Annotated[int, typer.Option(help="TCP port for operators.", min=1, max=65535)] = 7440,
) -> None:
    """When no administrator is left: issue a certificate for a new one, which REVOKES every other administrator's.

    It counts at the controller's next start, and is in the audit chain and among the events then.
    """
    _issue(name, Role.ADMIN, out, config, join_address(host, port), by=RECOVERY)
    typer.echo("Every other administrator's certificate is revoked at the controller's next start.")


def _issue(name: str, role: Role, out: Path, config: Path, endpoint: str, *, by: str) -> None:
    try:
        settings = load_config(config)
        authorities = Authorities(settings.state_directory)
        identity = Identity(fleet=settings.fleet, role=role, name=name)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate = issue_operator(authorities.issuing, identity, out, endpoint=endpoint, ca_pem=authorities.bundle.pem)
        spool(settings.state_directory, certificate, by)
    except (ConfigError, TrustError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename2 or error.filename}: {error.strerror}")
    typer.echo(f"{identity.uri} is in {out}.")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"jarvis-controller {__version__}")


def _log_to_stderr(*, verbose: bool) -> None:
    """Lines for people on a terminal, JSON for a journal."""
    journal = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *((structlog.dev.ConsoleRenderer(),) if sys.stderr.isatty() else journal),
        ],
    )


def _fail(message: str) -> NoReturn:
    typer.echo(f"jarvis-controller: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the jarvis-controller program."""
    app()


if __name__ == "__main__":
    main()
