# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl flows`: the lines, the stream, what is said about losses, and what happens when the connection goes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import Any

import grpc
from google.rpc import code_pb2
from jarvis.capture.v1 import capture_pb2, fleet_pb2, flow_pb2
from jarvisctl.format.flows import FlowJson, FlowText

from tests.fakes.fleet_service import status
from tests.unit.jarvisctl.conftest import Controller, start_ctl

WEB = "web2" + "a" * 28
LAB = "lab2" + "b" * 28
#: 2026-11-22T12:00:01.100Z.
BASE_NS = 1_795_348_801_100_000_000


def record(number: int = 0, **fields: int | bytes) -> flow_pb2.FlowRecord:
    values: dict[str, int | bytes] = {
        "flow_id": 0xABC0 + number,
        "start_delta_ns": 10_000_000,
        "end_delta_ns": 23_000_000,
        "src_addr": bytes([10, 0, 0, 1]),
        "dst_addr": bytes([10, 0, 0, 2]),
        "src_port": 4242 + number,
        "dst_port": 80,
        "ip_protocol": 6,
        "fwd_packets": 5,
        "fwd_octets": 420,
        "rev_packets": 4,
        "rev_octets": 1234,
        "fwd_tcp_flags": 0x1B,
        "rev_tcp_flags": 0x13,
        "end_reason": flow_pb2.FLOW_END_REASON_IDLE_TIMEOUT,
        "state": flow_pb2.FLOW_STATE_CLOSED,
    }
    return flow_pb2.FlowRecord(**{**values, **fields})  # type: ignore[arg-type]


def batch(agent_id: str, *records: flow_pb2.FlowRecord, token: bytes = b"") -> fleet_pb2.WatchFlowsResponse:
    content = flow_pb2.FlowBatch(base_time_unix_ns=BASE_NS, records=records, resume_token=token)
    return fleet_pb2.WatchFlowsResponse(agent_id=agent_id, batch=content)


def loss(agent_id: str, point: flow_pb2.LossPoint, lost: int) -> fleet_pb2.WatchFlowsResponse:
    return fleet_pb2.WatchFlowsResponse(agent_id=agent_id, loss=flow_pb2.LossNotice(point=point, lost=lost, first_sequence=7))


def gone(agent_id: str) -> fleet_pb2.WatchFlowsResponse:
    event = fleet_pb2.AgentStatusEvent(state=fleet_pb2.AGENT_STATE_QUARANTINED, message="digest not in the manifest")
    return fleet_pb2.WatchFlowsResponse(agent_id=agent_id, status=event)


def watermark(agent_id: str) -> fleet_pb2.WatchFlowsResponse:
    mark = flow_pb2.Watermark()
    mark.low_watermark.FromNanoseconds(BASE_NS)
    return fleet_pb2.WatchFlowsResponse(agent_id=agent_id, watermark=mark)


def test_a_flow_is_one_line_that_a_person_reads() -> None:
    lines = FlowText(agent_width=8).lines(WEB, batch(WEB, record()).batch)
    time, rest = lines.split(" ", 1)
    assert time.endswith(":01.123")
    assert rest == "web2aaaa  TCP 10.0.0.1:4242 → 10.0.0.2:80  fwd 5/420B rev 4/1.2kB  0.01s  end:idle\n"


def test_ipv6_icmp_vlan_and_unknown_protocols_have_their_forms() -> None:
    six = {"src_addr": socket.inet_pton(socket.AF_INET6, "fe80::1"), "dst_addr": socket.inet_pton(socket.AF_INET6, "2001:db8::2")}
    lines = (
        FlowText(arrow="->")
        .lines(
            "a",
            flow_pb2.FlowBatch(
                base_time_unix_ns=BASE_NS,
                records=[
                    record(ip_protocol=17, vlan_id=42, **six),
                    record(ip_protocol=58, icmp_type_code=128 * 256, **six),
                    record(ip_protocol=1, icmp_type_code=3 * 256 + 1),
                    record(ip_protocol=200, end_delta_ns=3_723 * 10**9, end_reason=0),
                    record(tunnel_type=flow_pb2.TUNNEL_TYPE_GTP_U, tunnel_id=7),
                    record(ip_protocol=47, tunnel_type=flow_pb2.TUNNEL_TYPE_IP_IN_IP, vlan_id=5),
                ],
            ),
        )
        .splitlines()
    )
    assert "UDP [fe80::1]:4242 -> [2001:db8::2]:80  " in lines[0]
    assert "  vlan 42  end:idle" in lines[0]
    assert "ICMPv6 fe80::1 -> 2001:db8::2 type 128 code 0  fwd" in lines[1]
    assert "ICMP 10.0.0.1 -> 10.0.0.2 type 3 code 1  fwd" in lines[2]
    assert "proto-200 10.0.0.1 -> 10.0.0.2  fwd" in lines[3]
    assert lines[3].endswith("  1h02m  end:-")
    assert lines[4].endswith("  in gtp-u 7  end:idle")
    assert lines[5].endswith("  vlan 5  in ip-in-ip  end:idle")


def test_a_flow_as_json_is_exact() -> None:
    value = json.loads(FlowJson().lines(WEB, batch(WEB, record(flow_id=2**64 - 1, icmp_type_code=3 * 256 + 1)).batch))
    assert value == {
        "event": "flow",
        "agent_id": WEB,
        "shard": 0,
        "flow_id": "f" * 16,
        "src_addr": "10.0.0.1",
        "dst_addr": "10.0.0.2",
        "src_port": 4242,
        "dst_port": 80,
        "ip_protocol": 6,
        "vlan_id": 0,
        "fwd_packets": 5,
        "fwd_octets": 420,
        "rev_packets": 4,
        "rev_octets": 1234,
        "start_time_unix_ns": BASE_NS + 10_000_000,
        "end_time_unix_ns": BASE_NS + 23_000_000,
        "tcp_flags": 0x1B,
        "fwd_tcp_flags": 0x1B,
        "rev_tcp_flags": 0x13,
        "end_reason": 1,
        "state": 3,
        "interface_index": 0,
        "icmp_type": 3,
        "icmp_code": 1,
        "dscp": 0,
        "first_packet_id": 0,
        "last_packet_id": 0,
        "tunnel_id": 0,
        "tunnel_type": 0,
        "second_interface_index": 0,
        "sampling_interval": 0,
    }


def test_every_field_of_a_record_is_in_its_json() -> None:
    elsewhere = {
        "start_delta_ns",
        "end_delta_ns",
        "icmp_type_code",
    }  # as start_time_unix_ns, end_time_unix_ns, icmp_type, icmp_code
    fields = {field.name for field in flow_pb2.FlowRecord.DESCRIPTOR.fields} - elsewhere
    sampled = record(sampling_interval=1000, second_interface_index=4, **one_statistic("fwd_payload_mean"))
    written = json.loads(FlowJson().lines("a", flow_pb2.FlowBatch(records=[sampled])))
    assert fields <= set(written)
    assert (written["sampling_interval"], written["second_interface_index"]) == (1000, 4)


def test_a_sampled_flow_says_its_interval() -> None:
    line = FlowText().lines("a", flow_pb2.FlowBatch(records=[record(sampling_interval=1000)]))
    assert line.endswith("  0.01s  sampled 1:1000  end:idle\n")


def test_statistics_are_shown_where_there_are_any() -> None:
    counted = record(
        fwd_retransmissions=3, rev_zero_windows=2, syn_to_synack_ns=10_000_000, synack_to_ack_ns=2_345_000,
        fwd_payload_max=900, fwd_payload_mean=512.25, rev_payload_mean=80,
        fwd_interval_mean_ns=1_234_000, rev_interval_mean_ns=2e9,
    )  # fmt: skip
    lines = FlowText().lines("a", flow_pb2.FlowBatch(records=[counted, record(fwd_interval_mean_ns=7)])).splitlines()
    assert lines[0].endswith("  rtt 12.35ms  retransmitted 3/0  zero window 0/2  payload 512/80B  every 1.23ms/2.00s  end:idle")
    assert lines[1].endswith("  every 0.00ms/-  end:idle")


def test_header_fields_are_shown_where_there_are_any() -> None:
    there, back = bytes.fromhex("020000000001"), bytes.fromhex("0200000000ab")
    both = record(
        fwd_src_mac=there, fwd_dst_mac=back, rev_src_mac=back, rev_dst_mac=there, fwd_inner_vlan_id=7, rev_inner_vlan_id=7,
        fwd_min_ttl=63, fwd_max_ttl=64, rev_min_ttl=57, rev_max_ttl=57, fwd_flow_label=0x12345,
    )  # fmt: skip
    cooked = record(fwd_src_mac=there, fwd_min_ttl=1, fwd_max_ttl=1)
    lines = FlowText().lines("a", flow_pb2.FlowBatch(records=[both, cooked])).splitlines()
    assert lines[0].endswith(
        "  mac 02:00:00:00:00:01 > 02:00:00:00:00:ab  inner vlan 7/7  ttl 63-64/57  label 0x12345/0x0  end:idle"
    )
    assert lines[1].endswith("  mac 02:00:00:00:00:01 > -  ttl 1/0  end:idle")


def test_statistics_as_json_are_all_or_none() -> None:
    names = [field.name for field in flow_pb2.FlowRecord.DESCRIPTOR.fields if 28 <= field.number <= 63]
    for name in names:
        values = one_statistic(name)
        text = FlowJson().lines("a", flow_pb2.FlowBatch(records=[record(**values), record()]))
        (with_one, without) = map(json.loads, text.splitlines())
        assert [key for key in with_one if key in names] == names
        assert not set(names) & set(without)
        assert {key: value for key, value in with_one.items() if key in names and value} == as_written(values)


def one_statistic(name: str) -> dict[str, Any]:
    """One that is not 0; a least or greatest value or a deviation never comes without its mean, a header field without a TTL."""
    if name.endswith("_mac"):
        return {name: b"\2\0\0\0\0\xff", "fwd_max_ttl": 64}
    if name.endswith(("_ttl", "_vlan_id", "_label")):
        return {"fwd_max_ttl": 64, name: 7}
    for part in ("min", "max", "stddev"):
        if f"_{part}" in name:
            return {name: 7, name.replace(f"_{part}", "_mean"): 0.5}
    return {name: 7}


def as_written(values: dict[str, Any]) -> dict[str, Any]:
    """Addresses as text."""
    return {name: value.hex(":") if isinstance(value, bytes) else value for name, value in values.items()}


async def test_live_flows_of_all_agents_are_merged_in_the_order_asked_for(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.add_agent(LAB)
    for agent_id, octets in ((WEB, (10, 3000)), (LAB, (200, 40_000))):
        content = flow_pb2.FlowBatch(
            base_time_unix_ns=BASE_NS, records=[record(fwd_octets=value, rev_octets=0) for value in octets]
        )
        controller.service.live_flows.append(fleet_pb2.FleetListFlowsResponse(agent_id=agent_id, batch=content))
    result = await controller.ctl("flows", "--sort-by", "octets", "--limit", "3", "--min-packets", "2", "--filter", "port 80")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == [LAB, WEB, LAB]
    assert "40.0kB" in result.out
    query = controller.service.requests[-1].query
    assert (query.sort_by, query.limit, query.min_packets, query.filter) == (capture_pb2.FLOW_SORT_OCTETS, 3, 2, "port 80")
    as_json = await controller.ctl("--output", "json", "flows")
    assert len(as_json.objects) == 4
    assert as_json.objects[0]["event"] == "flow"


async def test_live_flows_have_a_column_of_statistics_when_any_has_some(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    records = [record(), record(fwd_retransmissions=3, fwd_payload_mean=512.25)]
    for shown in (records[:1], records):
        content = flow_pb2.FlowBatch(base_time_unix_ns=BASE_NS, records=shown)
        controller.service.live_flows = [fleet_pb2.FleetListFlowsResponse(agent_id=WEB, batch=content)]
        result = await controller.ctl("flows")
        assert result.code == 0, result.err
        assert ("STATISTICS" in result.out) is (len(shown) == 2)
    assert "retransmitted 3/0  payload 512/0B" in result.out


async def test_an_agent_whose_live_flows_cannot_be_had_is_said_and_makes_exit_1(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    refusal = status(code_pb2.FAILED_PRECONDITION, "its lease has ended", "LEASE_EXPIRED")
    controller.service.live_flows = [
        fleet_pb2.FleetListFlowsResponse(agent_id=LAB, status=refusal),
        fleet_pb2.FleetListFlowsResponse(agent_id=WEB, batch=flow_pb2.FlowBatch(base_time_unix_ns=BASE_NS, records=[record()])),
    ]
    result = await controller.ctl("flows")
    assert result.code == 1
    assert f"{LAB}: its lease has ended [LEASE_EXPIRED]" in result.err
    assert WEB in result.out


async def test_finished_flows_come_with_losses_and_agent_status_on_stderr_and_a_tally(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [
        [
            batch(WEB, record(0), record(1)),
            loss(WEB, flow_pb2.LOSS_POINT_AGENT_QUEUE, 17),
            loss(WEB, flow_pb2.LOSS_POINT_KERNEL_RING, 1500),
            watermark(WEB),
            gone(LAB),
            batch(LAB, record(2)),
        ]
    ]
    controller.service.flow_endings = [None]
    result = await controller.ctl("flows", "--since", "oldest")
    assert result.code == 1, "what one agent keeps could not be had"
    assert len(result.out.splitlines()) == 3
    assert f"LOSS {WEB}: 17 flow records at agent queue" in result.err
    assert f"LOSS {WEB}: 1,500 packets at kernel ring" in result.err
    assert f"AGENT {LAB}: quarantined, its flows are not arriving: digest not in the manifest" in result.err
    assert result.err.splitlines()[-1] == "3 flows from 2 agents, lost on the way: 17 flow records, 1,500 packets"
    assert controller.service.requests[-1].subscription.WhichOneof("start") is None


async def test_in_json_losses_status_and_watermarks_are_objects_among_the_flows(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [
        [batch(WEB, record()), loss(WEB, flow_pb2.LOSS_POINT_CONTROLLER_QUEUE, 3), gone(WEB), watermark(WEB)]
    ]
    controller.service.flow_endings = [None]
    result = await controller.ctl("--output", "json", "flows", "--last", "9")
    assert result.code == 1, "the agent's stream broke"
    values = result.objects
    assert [value["event"] for value in values] == ["flow", "loss", "status", "watermark", "end"]
    assert {"agent_id": WEB, "point": "controller_queue", "lost": 3, "unit": "records", "first_sequence": 7}.items() <= values[
        1
    ].items()
    assert values[2]["state"] == "quarantined"
    assert values[3]["low_watermark"] == "2026-11-22T12:00:01.100Z"
    assert values[4] == {
        "event": "end",
        "flows": 1,
        "agents": 1,
        "lost_records": 3,
        "lost_packets": 0,
        "count_unknown": False,
    }
    assert result.err == ""
    assert controller.service.requests[-1].subscription.last_records == 9


def died() -> fleet_pb2.WatchFlowsResponse:
    notice = flow_pb2.LossNotice(point=flow_pb2.LOSS_POINT_AGENT_PROCESS, count_unknown=True)
    return fleet_pb2.WatchFlowsResponse(agent_id=WEB, loss=notice)


async def test_a_loss_that_nobody_could_count_is_said_as_such_and_not_as_nothing(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[died(), loss(WEB, flow_pb2.LOSS_POINT_AGENT_QUEUE, 17), batch(WEB, record())]]
    result = await controller.ctl("flows", "--follow", "--agent", WEB, "--limit", "1")
    assert f"LOSS {WEB}: an unknown number of flow records at agent process" in result.err
    assert result.err.splitlines()[-1].endswith("lost on the way: 17 flow records and an unknown number more, 0 packets")


async def test_in_json_a_loss_that_nobody_could_count_has_a_flag(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[died(), batch(WEB, record())]]
    result = await controller.ctl("--output", "json", "flows", "--follow", "--limit", "1")
    told, end = result.objects[0], result.objects[-1]
    assert (told["event"], told["point"], told["lost"], told["count_unknown"]) == ("loss", "agent_process", 0, True)
    assert (end["event"], end["lost_records"], end["count_unknown"]) == ("end", 0, True)


async def test_the_limit_ends_the_stream_exactly(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[batch(WEB, *[record(n) for n in range(10)]), batch(WEB, *[record(n) for n in range(10)])]]
    result = await controller.ctl("flows", "--follow", "--limit", "13")
    assert result.code == 0
    assert len(result.out.splitlines()) == 13
    assert result.err.startswith("13 flows from 1 agent,")


async def test_ctrl_c_ends_a_followed_stream_cleanly_with_the_tally(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[batch(WEB, record())]]
    process = await start_ctl("flows", "--follow", config=controller.config)
    await asyncio.wait_for(controller.service.streaming.wait(), 20)
    assert process.stdout is not None
    first = await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130
    assert b"end:idle" in first + out
    assert err.decode() == "1 flow from 1 agent, lost on the way: 0 flow records, 0 packets\n"
    assert controller.service.requests[-1].subscription.only_new is True


async def test_one_agents_stream_is_taken_up_again_at_its_resume_token(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [
        [batch(WEB, record(0), token=b"t1"), batch(WEB, record(1), token=b"t2")],
        [batch(WEB, record(2))],
    ]
    controller.service.flow_endings = [grpc.StatusCode.UNAVAILABLE, None]
    result = await controller.ctl("flows", "--follow", "--agent", WEB)
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    assert "connection lost, trying again" in result.err
    assert "connected again, no flow was missed or repeated unless a loss is said" in result.err
    assert controller.service.requests[-1].subscription.resume_token == b"t2"


async def test_a_stream_of_several_agents_says_what_may_be_missing_after_a_lost_connection(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.add_agent(LAB)
    controller.service.flow_calls = [[batch(WEB, record(0), token=b"t1")], [batch(LAB, record(1))]]
    controller.service.flow_endings = [grpc.StatusCode.UNAVAILABLE, None]
    result = await controller.ctl("--output", "json", "flows", "--follow", "--since", "5m")
    assert result.code == 0
    assert [value["event"] for value in result.objects] == ["flow", "connection", "connection", "flow", "end"]
    assert [value["state"] for value in result.objects if value["event"] == "connection"] == ["lost", "gap"]
    assert "may be missing" in result.objects[2]["message"]
    first, second = [request for request in controller.service.requests if isinstance(request, fleet_pb2.WatchFlowsRequest)]
    assert first.subscription.HasField("since")
    assert second.subscription.only_new is True


async def test_a_resume_token_that_the_agent_no_longer_knows_leads_to_a_stated_gap(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[batch(WEB, record(0), token=b"t1")], [], [batch(WEB, record(1))]]
    stale = status(code_pb2.FAILED_PRECONDITION, "the log begins at 900", "RESUME_TOKEN_STALE")
    controller.service.flow_endings = [grpc.StatusCode.UNAVAILABLE, stale, None]
    result = await controller.ctl("flows", "--follow", "--agent", WEB)
    assert result.code == 0
    assert "the agent lost the place (the log begins at 900)" in result.err
    assert "may be missing" in result.err
    watches = [request for request in controller.service.requests if isinstance(request, fleet_pb2.WatchFlowsRequest)]
    assert [watch.subscription.WhichOneof("start") for watch in watches] == ["only_new", "resume_token", None]


async def test_a_controller_that_is_killed_and_comes_back_is_found_again(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[batch(WEB, record(0), token=b"t1")], [batch(WEB, record(1))]]
    process = await start_ctl("flows", "--follow", "--limit", "2", "--agent", WEB, config=controller.config)
    await asyncio.wait_for(controller.service.streaming.wait(), 20)
    await controller.restart()
    out, err = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 2
    assert b"connected again" in err


async def test_a_silent_stream_is_taken_up_again_too(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[], [batch(WEB, record(1))]]
    controller.service.flow_endings = [grpc.StatusCode.UNAVAILABLE, None]
    result = await controller.ctl("flows", "--follow", "--since", "1h")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    assert "no flow was missed or repeated" in result.err
    assert controller.service.requests[-1].subscription.HasField("since")


async def test_following_a_controller_that_never_was_there_is_no_reconnect(controller: Controller) -> None:
    await controller.server.stop(None)
    result = await controller.ctl("flows", "--follow")
    assert result.code == 3
    assert result.err.startswith("jarvisctl: nothing listens at")
    assert len(result.err.splitlines()) == 1


async def test_a_slow_consumer_that_is_disconnected_is_an_error_with_its_tally(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[batch(WEB, record(0))]]
    controller.service.flow_endings = [grpc.StatusCode.RESOURCE_EXHAUSTED]
    result = await controller.ctl("flows", "--follow")
    assert result.code == 1
    assert "1 flow from 1 agent" in result.err
    assert "jarvisctl: the fake ends the stream" in result.err


async def test_a_reader_that_has_had_enough_ends_it_quietly(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    controller.service.flow_calls = [[batch(WEB, *[record(n) for n in range(1000)]) for _ in range(20)]]
    process = await start_ctl("flows", "--follow", config=controller.config)
    assert process.stdout is not None
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert process.stderr is not None
    err = await asyncio.wait_for(process.stderr.read(), 20)
    assert await process.wait() == 0
    assert b"Traceback" not in err
