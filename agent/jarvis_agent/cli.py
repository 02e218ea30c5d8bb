# SPDX-License-Identifier: Apache-2.0
"""Entry point of `jarvis-agent`.

The commands are commands.py's, a typer application. `meter` is started often and on small files, and importing typer costs more
than metering one: a well-formed `meter` line is read here without it, and everything else (help, completion, any mistake) is left
to typer, so that there is one help text and one set of error messages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jarvis_agent.meter import MeterOptions
    from jarvis_agent.meter_export_options import ExportOptions

_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBERS = re.compile(r"[0-9]{1,4}(?:,[0-9]{1,4})*")
_DECIMAL = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")


class _NotPlainError(Exception):
    """An argument that only typer can judge."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _matching(pattern: re.Pattern[str], convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if pattern.fullmatch(text) is None:
            raise _NotPlainError
        return convert(text)

    return parse


def _sampling(text: str) -> Any:
    from jarvis_agent.meter import parse_sampling  # noqa: PLC0415 - only for this command

    try:
        return parse_sampling(text)
    except ValueError as error:
        raise _NotPlainError from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


# Option -> (field of MeterOptions, how its value is read). The same names and meanings as commands.meter's; a test compares them.
_STATISTICS = "(?:tcp|sizes|intervals|headers)"
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--filter": ("filter", str),
    "--idle": ("idle_s", _matching(_DECIMAL, float)),
    "--active": ("active_s", _matching(_DECIMAL, float)),
    "--max-flows": ("max_flows", _matching(_INTEGER, int)),
    "--workers": ("workers", _matching(_INTEGER, int)),
    "--worker-cpus": ("worker_cpus", _matching(_NUMBERS, _numbers)),
    "--tunnel": ("tunnel", _matching(re.compile("outer|inner|both"), str)),
    "--sampling": ("sampling", _sampling),
    "--statistics": ("statistics", _matching(re.compile(f"{_STATISTICS}(?:,{_STATISTICS})*"), _names)),
    "--output": ("output", _matching(re.compile("none|json|csv|parquet|ipfix"), str)),
    "-o": ("output_path", Path),
    "--release-root": ("release_root", Path),
    "--firmware-dir": ("firmware_directory", Path),
}
# The same for options without a value.
_FLAGS = {"--mirror-timestamps": "mirror_timestamps"}
# The same for those of MeterOptions.export, and which of all may be repeated.
_EXPORT_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--export": ("targets", str),
    "--export-profile": ("profile", str),
    "--export-time": ("time_unit", str),
    "--export-domain": ("domain", _matching(_INTEGER, int)),
    "--export-rate": ("rate", _matching(_INTEGER, int)),
    "--sampling-rate": ("sampling_rate", _matching(_INTEGER, int)),
    "--export-asn-database": ("asn_database", Path),
    "--export-tls-ca": ("tls_ca", Path),
    "--export-tls-certificate": ("tls_certificate", Path),
    "--export-tls-key": ("tls_key", Path),
}
_EXPORT_FLAGS = {"--biflow": "biflow", "--export-balance": "balance", "--export-routes": "routes"}
_REPEATED = {"--export"}


def main() -> None:
    """Runs the command line and exits with its code."""
    arguments = sys.argv[1:]
    options = plain_meter_options(arguments[1:]) if arguments[:1] == ["meter"] else None
    if options is None:
        from jarvis_agent.commands import app  # noqa: PLC0415 - slow to import, see above

        app(prog_name="jarvis-agent")
    else:
        from jarvis_agent.meter import meter  # noqa: PLC0415 - only for this command

        sys.exit(meter(options))


def plain_meter_options(arguments: Sequence[str]) -> MeterOptions | None:
    """What a well-formed `meter` line asks for; None when typer must look at it."""
    from jarvis_agent.meter import MeterOptions, default_output  # noqa: PLC0415 - only for this command

    files: list[Path] = []
    fields: dict[str, Any] = {}
    export: dict[str, Any] = {}
    rest = list(arguments)
    try:
        while rest:
            name = rest.pop(0)
            if not name.startswith("-"):
                files.append(Path(name))
            elif not _take_flag(name, fields, export):
                _take_option(name, rest, fields, export)
    except (KeyError, IndexError, _NotPlainError):
        return None
    if not files:
        return None
    options = _export_options(export) if export else None
    return MeterOptions(files=tuple(files), export=options, **{"output": default_output(options), **fields})


def _export_options(fields: dict[str, Any]) -> ExportOptions | None:
    from jarvis_agent.meter_export_options import ExportOptions  # noqa: PLC0415 - only for exports

    options = ExportOptions(**fields)
    return None if options == ExportOptions() else options


def _take_flag(name: str, fields: dict[str, Any], export: dict[str, Any]) -> bool:
    """Sets the field of an option without a value; False: it is no such option, or came before."""
    for flags, into in ((_FLAGS, fields), (_EXPORT_FLAGS, export)):
        if name in flags and flags[name] not in into:
            into[flags[name]] = True
            return True
    return False


def _take_option(name: str, rest: list[str], fields: dict[str, Any], export: dict[str, Any]) -> None:
    """Sets the field of an option with a value, which is in the name behind = or the first of the rest.

    Raises:
        KeyError, IndexError, _NotPlainError: only typer can judge it.
    """
    name, equals, value = name.partition("=")
    into = export if name in _EXPORT_OPTIONS else fields
    field, parse = _EXPORT_OPTIONS.get(name) or _OPTIONS[name]
    if (field in into and name not in _REPEATED) or (equals and not name.startswith("--")):
        raise _NotPlainError
    if not equals:
        value = rest.pop(0)
        if value.startswith("-"):
            raise _NotPlainError
    into[field] = (*into.get(field, ()), parse(value)) if name in _REPEATED else parse(value)
