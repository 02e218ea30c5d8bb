# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl export`: what is asked for, what is refused before it is, and what people and programs are shown."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from jarvis.capture.v1 import export_pb2, fleet_pb2
from jarvis.capture.v1.export_pb2 import CollectorStatus, ExportCollector, ExportSpec, ExportStatus
from jarvisctl.commands.export_spec import PROFILES, PROTOCOLS, TIME_UNITS, TRANSPORTS, parse_collectors
from jarvisctl.errors import CtlError

from tests.fakes.fleet_service import status
from tests.unit.jarvisctl.conftest import Controller, start_ctl

WEB = "web2" + "a" * 28
LAB = "lab2" + "b" * 28
ENABLE = ("export", "enable", "--all", "--id", "siem")


@pytest.fixture(autouse=True)
def agents(controller: Controller) -> None:
    controller.service.add_agent(WEB)


def enabled(controller: Controller) -> ExportSpec:
    (request,) = [request for request in controller.service.requests if isinstance(request, fleet_pb2.EnableExportsRequest)]
    assert request.request_id
    return request.spec


def exported(**fields: Any) -> ExportStatus:
    spec = ExportSpec(export_id="siem", protocol=export_pb2.EXPORT_PROTOCOL_IPFIX)
    collector = CollectorStatus(
        **{
            "collector": ExportCollector(host="2001:db8::1", port=4739),
            "state": export_pb2.COLLECTOR_STATE_CONNECTED,
            "address": "[2001:db8::1]:4739",
            "flows": 1_234_567,
            "spooled_flows": 89,
            "dropped_flows": 7,
            **fields,
        }
    )
    return ExportStatus(spec=spec, state=export_pb2.EXPORT_STATE_ACTIVE, collectors=[collector])


async def test_enable_sends_exactly_what_was_asked(controller: Controller) -> None:
    result = await controller.ctl(
        *ENABLE, "--collector", "siem.example", "--collector", "[2001:db8::1]:9", "--collector", "192.0.2.1:4740",
        "--transport", "tls", "--tls-name", "siem.example", "--balance", "--interval", "1m", "--profile", "full", "--biflow",
        "--time", "ns", "--domain", "7", "--template-refresh", "30s", "--max-rate", "5000", "--filter", "tcp",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert enabled(controller) == ExportSpec(
        export_id="siem",
        protocol=export_pb2.EXPORT_PROTOCOL_IPFIX,
        transport=export_pb2.EXPORT_TRANSPORT_TLS,
        collectors=[
            ExportCollector(host="siem.example", tls_name="siem.example"),
            ExportCollector(host="2001:db8::1", port=9, tls_name="siem.example"),
            ExportCollector(host="192.0.2.1", port=4740, tls_name="siem.example"),
        ],
        distribution=export_pb2.EXPORT_DISTRIBUTION_BALANCE,
        export_interval_sec=60,
        profile=export_pb2.EXPORT_PROFILE_FULL,
        biflow=True,
        time_unit=export_pb2.EXPORT_TIME_UNIT_NANOSECONDS,
        observation_domain_id=7,
        template_refresh=Duration(seconds=30),
        max_records_per_second=5000,
        filter="tcp",
    )


async def test_what_is_not_asked_for_is_left_to_the_defaults(controller: Controller) -> None:
    result = await controller.ctl(*ENABLE, "--collector", "192.0.2.1")
    assert result.code == 0, result.err
    assert enabled(controller) == ExportSpec(
        export_id="siem",
        protocol=export_pb2.EXPORT_PROTOCOL_IPFIX,
        transport=export_pb2.EXPORT_TRANSPORT_UDP,
        collectors=[ExportCollector(host="192.0.2.1")],
    )


async def test_files_and_samples_have_options_of_their_own(controller: Controller) -> None:
    await controller.ctl(*ENABLE, "--transport", "file", "--file-size", "16", "--file-age", "1h", "--files-kept", "24")
    file = enabled(controller)
    assert (file.file_size_mb, file.file_age.seconds, file.files_kept, len(file.collectors)) == (16, 3600, 24, 0)
    controller.service.requests.clear()
    await controller.ctl(*ENABLE, "--protocol", "sflow", "-c", "siem.example:6343", "--sampling-rate", "512")
    sampled = enabled(controller)
    assert (sampled.protocol, sampled.sampling_rate) == (export_pb2.EXPORT_PROTOCOL_SFLOW_V5, 512)


def test_every_value_of_the_wire_can_be_asked_for() -> None:
    for table, values in (
        (PROTOCOLS, export_pb2.ExportProtocol.values()),
        (TRANSPORTS, export_pb2.ExportTransport.values()),
        (PROFILES, export_pb2.ExportProfile.values()),
        (TIME_UNITS, export_pb2.ExportTimeUnit.values()),
    ):
        assert len(table) == len(values) - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--id", "Bad Id"], "--id is 'Bad Id': accepted are 1 to 32 of a-z 0-9 -"),
        ([], "nobody to export to: give --collector HOST[:PORT], or --transport file"),
        (["-c", "192.0.2.1:0"], "--collector is '192.0.2.1:0': accepted are HOST, HOST:PORT, an IPv6 address or [IPv6]:PORT"),
        (["-c", "192.0.2.1:65536"], "--collector is '192.0.2.1:65536'"),
        (["-c", "siem.example:"], "--collector is 'siem.example:'"),
        (["-c", "127.1"], "--collector is '127.1'"),
        (["-c", "fe80::1%eth0"], "--collector is 'fe80::1%eth0'"),
        (["-c", "[192.0.2.1]:9"], "--collector is '[192.0.2.1]:9'"),
        (["-c", "a.example", "-c", "a.example"], "--collector 'a.example' is given twice"),
        ([word for number in range(9) for word in ("-c", f"c{number}.example")], "--collector is given 9 times: accepted are 1"),
        (["-c", "a.example", "--transport", "tls", "--tls-name", "a", "--tls-name", "b"], "one name for all, or one for each"),
        (["-c", "a.example", "--transport", "tls", "--tls-name", "*.example"], "--tls-name is '*.example'"),
        (["-c", "a.example", "--protocol", "netflow9", "--transport", "tcp"], "accepted with it is 'udp'"),
        (["-c", "a.example", "--transport", "file"], "--collector is given and --transport is 'file'"),
        (["-c", "a.example", "--interval", "2h"], "--interval is 2h: accepted are 1s to 1h"),
        (["-c", "a.example", "--interval", "1.5s"], "--interval is 1.5s: accepted are whole seconds"),
        (["-c", "a.example", "--template-refresh", "2d"], "--template-refresh is 2d: accepted are 1s to 1d"),
        (["-c", "a.example", "--protocol", "netflow5", "--domain", "65536"], "--domain is 65,536: accepted are 0 to 65,535"),
        (["-c", "a.example", "--max-rate", "-1"], "--max-rate is -1"),
        (["-c", "a.example", "--template-messages", "1000001"], "--template-messages is 1,000,001"),
        (["--transport", "file", "--file-age", "0.5s"], "--file-age is 0.5s: accepted are 1s to 1d"),
    ],
)  # fmt: skip
async def test_a_value_that_cannot_be_is_refused_by_its_option_before_anything_is_sent(
    controller: Controller, arguments: list[str], said: str
) -> None:
    result = await controller.ctl("export", "enable", "--all", *([] if "--id" in arguments else ["--id", "siem"]), *arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert controller.service.requests == []


@pytest.mark.parametrize(
    ("arguments", "option", "accepted"),
    [
        (["--tls-name", "siem.example"], "--tls-name", "--transport tls"),
        (["--protocol", "netflow9", "--biflow"], "--biflow", "--protocol ipfix"),
        (["--protocol", "netflow5", "--profile", "full"], "--profile", "--protocol ipfix and netflow9"),
        (["--protocol", "sflow", "--time", "us"], "--time", "--protocol ipfix and netflow9"),
        (["--protocol", "netflow5", "--template-refresh", "9s"], "--template-refresh", "--protocol ipfix and netflow9"),
        (["--transport", "tcp", "--template-messages", "9"], "--template-messages", "--transport udp"),
        (["--protocol", "sflow", "--filter", "tcp"], "--filter", "--protocol ipfix, netflow9 and netflow5"),
        (["--protocol", "sflow", "--balance"], "--balance", "--protocol ipfix, netflow9 and netflow5"),
        (["--sampling-rate", "9"], "--sampling-rate", "--protocol sflow"),
        (["--file-size", "9"], "--file-size", "--transport file"),
        (["--file-age", "9s"], "--file-age", "--transport file"),
        (["--files-kept", "9"], "--files-kept", "--transport file"),
    ],
)
async def test_an_option_of_another_protocol_or_transport_is_refused(
    controller: Controller, arguments: list[str], option: str, accepted: str
) -> None:
    result = await controller.ctl(*ENABLE, "-c", "a.example", *arguments)
    assert result.code == 2
    assert result.err.startswith(f"jarvisctl: {option} is given with --protocol ")
    assert result.err.strip().endswith(f"accepted with {accepted}")


def test_names_of_certificates_go_with_collectors_in_their_order() -> None:
    found = parse_collectors(["a.example", "b.example"], ["x.example", "y.example"])
    assert [one.tls_name for one in found] == ["x.example", "y.example"]
    assert parse_collectors([], []) == []
    with pytest.raises(CtlError, match="--collector 0 times"):
        parse_collectors([], ["x.example", "y.example"])


async def test_a_refusal_of_the_policy_is_shown_with_its_reason(controller: Controller) -> None:
    message = "spec.collectors[0] = 'a.example:4739': not in the policy's allow-list ([export] collectors)"
    controller.service.refusals["EnableExports"] = status(code_pb2.FAILED_PRECONDITION, message, "EXPORT_NOT_ALLOWED")
    result = await controller.ctl(*ENABLE, "-c", "a.example")
    assert (result.code, result.err) == (1, f"jarvisctl: {message} [EXPORT_NOT_ALLOWED]\n")
    as_json = await controller.ctl("--output", "json", *ENABLE, "-c", "a.example")
    assert json.loads(as_json.err)["error"]["reason"] == "EXPORT_NOT_ALLOWED"


async def test_changing_commands_address_everybody_only_with_all(controller: Controller) -> None:
    for arguments in (["export", "enable", "--id", "siem", "-c", "a.example"], ["export", "disable", "siem"]):
        result = await controller.ctl(*arguments)
        assert result.code == 2
        assert "no agent is addressed" in result.err
    assert controller.service.requests == []


async def test_an_agents_failure_is_its_row_and_makes_exit_1(controller: Controller) -> None:
    controller.service.add_agent(LAB)
    controller.service.agent_failures[LAB] = status(code_pb2.NOT_FOUND, "a.example has no address", "EXPORT_UNRESOLVED")
    result = await controller.ctl(*ENABLE, "-c", "a.example")
    assert result.code == 1
    (row,) = (line for line in result.out.splitlines() if line.startswith(LAB))
    assert row.split()[:3] == [LAB, "siem", "failed"]
    assert row.endswith("a.example has no address [EXPORT_UNRESOLVED]")
    assert result.err.strip().endswith("1 of 2 agents failed")


async def test_disable_names_the_export_and_what_becomes_of_the_rest(controller: Controller) -> None:
    controller.service.exports = [exported()]
    result = await controller.ctl("export", "disable", "siem", "--agent", WEB, "--discard")
    assert result.code == 0, result.err
    (request,) = controller.service.requests
    assert (request.export_id, request.discard, list(request.selector.agent_ids)) == ("siem", True, [WEB])
    refused = await controller.ctl("export", "disable", "No Id", "--all")
    assert (refused.code, "ID is 'No Id': accepted are 1 to 32" in refused.err) == (2, True)


async def test_status_is_a_row_for_each_collector_and_exact_for_programs(controller: Controller) -> None:
    paused = exported(state=export_pb2.COLLECTOR_STATE_IDLE, message="evil\x1b[2J", unexportable_flows=4, address="")
    paused.spec.export_id, paused.state, paused.message = "other", export_pb2.EXPORT_STATE_PAUSED, "the lease is over"
    paused.spec.protocol = export_pb2.EXPORT_PROTOCOL_NETFLOW_V5
    controller.service.exports = [exported(), paused]
    result = await controller.ctl("export", "status")
    assert result.code == 0, result.err
    titles, first, second = (line.split() for line in result.out.splitlines())
    assert titles == [
        "AGENT",
        "EXPORT",
        "STATE",
        "PROTOCOL",
        "COLLECTOR",
        "LINK",
        "ADDRESS",
        "FLOWS",
        "SPOOLED",
        "DROPPED",
        "MESSAGE",
    ]
    link = ["[2001:db8::1]:4739", "connected", "[2001:db8::1]:4739"]
    assert first == [WEB, "siem", "active", "ipfix/udp", *link, "1,234,567", "89", "7", "-"]
    assert second[:4] == [WEB, "other", "paused", "netflow5/udp"]
    assert "the lease is over; evil\\x1b[2J; 4 flows cannot be said in this protocol" in result.out

    one = await controller.ctl("--output", "json", "export", "status", "siem")
    (found,) = one.objects
    assert (found["agent_id"], found["ok"], found["error"]) == (WEB, True, None)
    assert [export["spec"]["export_id"] for export in found["exports"]] == ["siem"]
    assert found["exports"][0]["collectors"][0]["flows"] == 1_234_567


async def test_status_of_an_agent_that_exports_nothing_says_so(controller: Controller) -> None:
    result = await controller.ctl("export", "status")
    assert result.code == 0
    assert result.out.splitlines()[1].split()[:3] == [WEB, "-", "none"]
    missing = await controller.ctl("export", "status", "nosuch")
    assert missing.code == 2
    assert "ID is 'nosuch': no agent addressed has an export of this name" in missing.err


async def test_status_is_followed_until_it_is_interrupted(controller: Controller) -> None:
    controller.service.exports = [exported()]
    arguments = ("--output", "json", "export", "status", "--follow", "--interval", "500ms")
    process = await start_ctl(*arguments, config=controller.config)
    assert process.stdout is not None
    lines = [json.loads(await asyncio.wait_for(process.stdout.readline(), 20)) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 20)
    assert [line["exports"][0]["state"] for line in lines] == ["active"] * 3
    assert process.returncode == 130
    refused = await controller.ctl("export", "status", "--interval", "2s")
    assert (refused.code, "accepted only together with --follow" in refused.err) == (2, True)
