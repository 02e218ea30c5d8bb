# SPDX-License-Identifier: Apache-2.0
"""What the offline meter's --export options ask for: PROTOCOL[/TRANSPORT]:HOST[:PORT] and its neighbours made into export plans.

Nothing is opened or resolved here; see meter_export.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast, get_args

from jarvis_native.engine import Statistic
from jarvis_native.export import ExportProfile, ExportProtocol, TimeUnit
from jarvis_native.sampler import MAX_SAMPLERS

from jarvis_agent.export.plan import DEFAULT_PORTS, IPFIX_TLS_PORT, Collector, ExportPlan, ExportTransport
from jarvis_agent.meter_output import OutputError

FORM: Final = "PROTOCOL[/TRANSPORT]:HOST[:PORT]"
TRANSPORTS: Final[dict[ExportProtocol, tuple[ExportTransport, ...]]] = {
    "ipfix": ("udp", "tcp", "tls", "sctp"),
    "netflow9": ("udp",),
    "netflow5": ("udp",),
    "sflow": ("udp",),
}
DEFAULT_RATE: Final = 200_000
"""Records a second to a collector over UDP, see docs/export.md."""

_MOST_PORT = 65_535
_MOST_NUMBER = 0xFFFF_FFFF
_MOST_ENGINE = 0xFFFF  # NetFlow v5 has engine type and id, 8 bits each
_MOST_RATE = 100_000_000
_MOST_SAMPLING_RATE = 16_777_215


class ExportOptionError(OutputError):
    """The options cannot be carried out; the message names the option, its value and what would be accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, usage=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Where the records go besides the output, and in which form."""

    targets: tuple[str, ...] = ()
    """Each PROTOCOL[/TRANSPORT]:HOST[:PORT]; an IPv6 address in brackets."""
    profile: str = "default"
    biflow: bool = False
    time_unit: str = "ms"
    domain: int = 0
    """Observation domain, 0..2^32-1."""
    rate: int = DEFAULT_RATE
    """Records a second to each collector over UDP; 0 = as fast as they come."""
    balance: bool = False
    """Each flow goes to one of the collectors, else to all."""
    sampling_rate: int = 0
    """SFlow: N of 1 in N frames, 1..16,777,215; 0 = 1, every frame."""
    routes: bool = False
    """Next hops and prefixes by this host's routing tables; profile full, and NetFlow v5."""
    asn_database: Path | None = None
    """AS numbers by this MaxMind DB, likewise."""
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None


def parse_target(text: str) -> tuple[ExportProtocol, ExportTransport, Collector]:
    """The parts of one PROTOCOL[/TRANSPORT]:HOST[:PORT].

    Raises:
        ExportOptionError: with the part at fault.
    """
    kind, colon, place = text.partition(":")
    protocol, slash, transport = kind.partition("/")
    if protocol not in TRANSPORTS:
        raise _refused(text, f"{protocol!r} is no protocol: accepted are {', '.join(TRANSPORTS)}")
    known: ExportProtocol = protocol
    if slash and transport not in TRANSPORTS[known]:
        raise _refused(text, f"{transport!r} is no transport of {protocol}: accepted are {', '.join(TRANSPORTS[known])}")
    if not colon:
        raise _refused(text, f"it names no collector: accepted is {FORM}")
    way = cast("ExportTransport", transport or "udp")
    host, port = _place(text, place)
    default = IPFIX_TLS_PORT if way == "tls" else DEFAULT_PORTS[known]
    return known, way, Collector(host=host, port=default if port is None else port)


def _place(text: str, place: str) -> tuple[str, int | None]:
    """HOST[:PORT], an IPv6 address in brackets."""
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in ("", ":"):
            raise _refused(text, "an IPv6 address is [ADDRESS] or [ADDRESS]:PORT")
    else:
        host, colon, port = place.partition(":")
        if ":" in port:
            raise _refused(text, "an IPv6 address goes in brackets, as ipfix:[2001:db8::1]:4739")
    if not host:
        raise _refused(text, f"it names no collector: accepted is {FORM}")
    if not colon:
        return host, None
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 10 else -1
    if not 1 <= number <= _MOST_PORT:
        raise _refused(text, f"{port!r} is no port: accepted are 1 to {_MOST_PORT}")
    return host, number


def check_export(options: ExportOptions, *, to_file: bool) -> None:
    """Refuses what cannot be, of all the options.

    Args:
        options: of the command line.
        to_file: the output is IPFIX, which the options shape too.

    Raises:
        ExportOptionError: names the option, its value and what would be accepted.
    """
    _check_routes(options, plans_of(options))
    shaped = ExportOptions(targets=options.targets)
    if not options.targets and not to_file and options != shaped:
        raise ExportOptionError(f"nothing is exported: name a collector with --export {FORM}, or write --output ipfix")


def _check_routes(options: ExportOptions, plans: tuple[ExportPlan, ...]) -> None:
    """Only profile full has elements for what routes know, and NetFlow v5, which has one form."""
    option = "--export-routes" if options.routes else "--export-asn-database" if options.asn_database else ""
    if option and options.profile != "full" and not any(plan.protocol == "netflow5" for plan in plans):
        raise ExportOptionError(f"{option} is given and --export-profile is {options.profile}: accepted with it is full")


def file_plan(options: ExportOptions) -> ExportPlan:
    """What --output ipfix writes.

    Raises:
        ExportOptionError: a value is out of range.
    """
    profile, time_unit = _form(options)
    return ExportPlan(
        export_id="meter-file",
        protocol="ipfix",
        transport="file",
        collectors=(),
        profile=profile,
        biflow=options.biflow,
        time_unit=time_unit,
        observation_domain_id=options.domain,
    )


def statistics_of_profile(options: ExportOptions) -> tuple[Statistic, ...]:
    """What the profile needs the capture to keep besides what is asked for."""
    return ("headers",) if options.profile == "full" else ()


def plans_of(options: ExportOptions) -> tuple[ExportPlan, ...]:
    """One plan a collector.

    Raises:
        ExportOptionError: the options contradict each other, or a value is out of range.
    """
    profile, time_unit = _form(options)
    plans = []
    for number, target in enumerate(options.targets, start=1):
        protocol, transport, collector = parse_target(target)
        if options.biflow and protocol != "ipfix":
            raise ExportOptionError(f"--biflow: {target} has no records of both directions, accepted is ipfix")
        plans.append(
            ExportPlan(
                export_id=f"meter-{number}",
                protocol=protocol,
                transport=transport,
                collectors=(collector,),
                distribution="balance" if options.balance else "mirror",
                profile=profile,
                biflow=options.biflow,
                time_unit=time_unit,
                observation_domain_id=options.domain,
                max_records_per_second=options.rate if transport == "udp" else 0,
                sampling_rate=(options.sampling_rate or 1) if protocol == "sflow" else 0,
            )
        )
    _check_together(options, plans)
    return tuple(plans)


def _form(options: ExportOptions) -> tuple[ExportProfile, TimeUnit]:
    """Profile and unit of times, once everything that is of no one collector was looked at."""
    profile = _one_of("--export-profile", options.profile, get_args(ExportProfile))
    time_unit = _one_of("--export-time", options.time_unit, get_args(TimeUnit))
    _in_range("--export-domain", options.domain, _MOST_NUMBER)
    _in_range("--export-rate", options.rate, _MOST_RATE)
    return cast("ExportProfile", profile), cast("TimeUnit", time_unit)


def _check_together(options: ExportOptions, plans: list[ExportPlan]) -> None:
    if options.balance and len(plans) < 2:
        raise ExportOptionError("--export-balance: flows are balanced over several --export, there is one or none")
    if options.domain > _MOST_ENGINE and any(plan.protocol == "netflow5" for plan in plans):
        raise ExportOptionError(f"--export-domain is {options.domain}: accepted with netflow5 are 0 to {_MOST_ENGINE}")
    _check_twice(options, plans)
    _check_sflow(options, plans)
    files = {
        "--export-tls-ca": options.tls_ca,
        "--export-tls-certificate": options.tls_certificate,
        "--export-tls-key": options.tls_key,
    }
    if any(plan.transport == "tls" for plan in plans):
        missing = [name for name, path in files.items() if path is None]
        if missing:
            raise ExportOptionError(f"{missing[0]} is not given: ipfix/tls needs {', '.join(files)}")
    else:
        given = [name for name, path in files.items() if path is not None]
        if given:
            raise ExportOptionError(f"{given[0]} is given and no --export goes over TLS: accepted with it is ipfix/tls:HOST")


def _check_twice(options: ExportOptions, plans: list[ExportPlan]) -> None:
    """A collector that is named twice would count everything twice."""
    seen: dict[tuple[ExportTransport, str, int], str] = {}
    for target, plan in zip(options.targets, plans, strict=True):
        (collector,) = plan.collectors
        place = (plan.transport, collector.host.lower(), collector.port)
        if place in seen:
            raise ExportOptionError(f"--export {target}: {seen[place]} goes there too: accepted is each collector once")
        seen[place] = target


def _check_sflow(options: ExportOptions, plans: list[ExportPlan]) -> None:
    samplers = sum(1 for plan in plans if plan.protocol == "sflow")
    _in_range("--sampling-rate", options.sampling_rate, _MOST_SAMPLING_RATE)
    if options.sampling_rate and not samplers:
        raise ExportOptionError("--sampling-rate is given and no --export samples frames: accepted with it is sflow:HOST")
    if options.balance and samplers:
        raise ExportOptionError("--export-balance: the samples of sflow belong to no flow, accepted are the other protocols")
    if samplers > MAX_SAMPLERS:
        raise ExportOptionError(f"--export: sflow is given {samplers} times, accepted are {MAX_SAMPLERS}")


def _one_of(option: str, value: str, accepted: tuple[str, ...]) -> str:
    if value not in accepted:
        raise ExportOptionError(f"{option} is {value!r}: accepted are {', '.join(accepted)}")
    return value


def _in_range(option: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise ExportOptionError(f"{option} is {value}: accepted are 0 to {most}")


def _refused(target: str, why: str) -> ExportOptionError:
    return ExportOptionError(f"--export {target}: {why}")
