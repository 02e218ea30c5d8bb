# SPDX-License-Identifier: Apache-2.0
"""The program: global options, and one row per command.

Each row names the module that is imported when the command is used, so that `jarvisctl --help` and `jarvisctl firmware
verify` load neither gRPC nor anything else that they do not need.
"""

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from jarvisctl.errors import CtlError, ExitCode
from jarvisctl.settings import OutputFormat, Settings

#: Command or group: module with its typer app, one line of help.
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "agents": ("jarvisctl.commands.agents", "List the fleet's agents, show one, take its trust away or let it try again."),
        "enroll": ("jarvisctl.commands.enroll", "Make join files for new agents."),
        "attest": ("jarvisctl.commands.attest", "Challenge agents now and show every check, or try another policy on them."),
        "boot": ("jarvisctl.commands.boot", "Show, record, sign and compare what hosts' firmware measured."),
        "policy": ("jarvisctl.commands.policy", "Show the policy in force, or put another one in its place."),
        "capture": ("jarvisctl.commands.capture", "Start, stop and look at captures."),
        "metrics": ("jarvisctl.commands.metrics", "Show the counters of captures."),
        "flows": ("jarvisctl.commands.flows", "Show live flows, or follow finished ones as they arrive."),
        "export": ("jarvisctl.commands.export", "Export flows to collectors: NetFlow, IPFIX, sFlow."),
        "events": ("jarvisctl.commands.events", "Show what happened in the fleet, or follow it."),
        "audit": ("jarvisctl.commands.audit", "List or export the audit chain, verify it here, or replay its verdicts."),
        "certs": ("jarvisctl.commands.certs", "List, issue, renew and revoke certificates."),
        "ca": ("jarvisctl.commands.ca", "Show the fleet CA, or change it for a new one in stages."),
        "firmware": (
            "jarvisctl.commands.firmware",
            "Sign, verify and revoke capture firmware, and name the keys that count; needs no controller.",
        ),
        "releases": (
            "jarvisctl.commands.releases",
            "Hand releases of the firmware to the controller, and roll them out to agents.",
        ),
        "version": ("jarvisctl.commands.version", "Print the version of this program."),
    }
)

HELP = """Operates a JARVIS Capture fleet through its controller."""

#: An empty line between two makes typer begin a new line.
EPILOG = "\n\n".join(
    (
        "Exit codes:",
        "0 everything went well",
        "1 some agents failed, or the controller could not do it",
        "2 bad arguments or configuration, or nothing selected",
        "3 the controller cannot be reached or does not allow it",
        "4 a verification failed",
        "130 interrupted",
    )
)


class LazyCommand(typer.core.TyperCommand):
    """Stands for a command until it is used: knows its name and one line of help, and hands parsing to the real one."""

    def __init__(self, name: str, module: str, help_line: str) -> None:
        super().__init__(name=name, help=help_line, short_help=help_line)
        self._module = module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which from here on is the one that runs."""
        command = typer.main.get_command(importlib.import_module(self._module).app)
        return command.make_context(info_name, args, parent=parent, **extra)


class RootGroup(typer.core.TyperGroup):
    """The table of commands, and the place where a CtlError becomes a sentence and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (module, help_line) in COMMANDS.items():
            self.add_command(LazyCommand(name, module, help_line))

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Raises:
            typer.Exit: with the code of the error that was printed.
        """
        try:
            return super().invoke(ctx)
        except CtlError as error:
            _print_error(error, as_json=isinstance(ctx.obj, Settings) and ctx.obj.json)
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:
            # The reader of our output had enough (`| head`). Python's flush at exit must not find the pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.OK) from error


def _print_error(error: CtlError, *, as_json: bool) -> None:
    if as_json:
        value = {
            "message": error.message,
            "exit_code": int(error.exit_code),
            "code": error.code,
            "reason": error.reason,
            "metadata": error.metadata,
        }
        sys.stderr.write(json.dumps({"error": value}, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"jarvisctl: {error.message}\n")


app = typer.Typer(
    cls=RootGroup,
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="PATH", help="Configuration. Otherwise JARVISCTL_CONFIG, ~/.config/jarvis-capture/jarvisctl.toml."
        ),
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="Tables for people, or one JSON object a line.")
    ] = OutputFormat.TABLE,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", help="Seconds to wait for the whole answer.")] = 30.0,
) -> None:
    """Keeps the global options for the command."""
    context.obj = Settings(config=config, output=output, timeout_s=timeout)
    if not 0 < timeout <= 86_400:
        raise CtlError(f"--timeout is {timeout:g}: accepted are more than 0 and up to 86,400 seconds", ExitCode.USAGE)


def main() -> None:
    """Entry point of the `jarvisctl` script."""
    # What gRPC's core says of a failed handshake is said better by status.py.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app(prog_name="jarvisctl")
