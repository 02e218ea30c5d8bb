# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl events`: what is asked for, what people and programs are shown, and streams that are kept up."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import grpc
from google.rpc import code_pb2
from jarvis.capture.v1 import event_pb2, fleet_pb2, flow_pb2
from jarvisctl.commands.events import complete_type
from jarvisctl.format.events import event_line

from tests.fakes.fleet_service import status
from tests.unit.jarvisctl.conftest import Controller, start_ctl

WEB = "web2" + "a" * 28
TIME_NS = 1_700_000_000_000_000_000


def event(number: int = 1, **fields: Any) -> event_pb2.Event:
    made = event_pb2.Event(
        **{
            "type": event_pb2.EVENT_TYPE_CAPTURE_LOSS,
            "severity": event_pb2.EVENT_SEVERITY_WARNING,
            "agent_id": WEB,
            "capture_id": "c1",
            "value": 42,
            "message": f"42 frames were lost ({number})",
            "source_id": "ab" * 16,
            "sequence": number,
            **fields,
        }
    )
    made.time.FromNanoseconds(TIME_NS)
    made.receive_time.FromNanoseconds(TIME_NS + 10**9)
    return made


def answer(number: int = 1, **fields: Any) -> fleet_pb2.WatchEventsResponse:
    return fleet_pb2.WatchEventsResponse(happened=event(number, **fields), resume_token=b"t%d" % number)


def lost(count: int) -> fleet_pb2.WatchEventsResponse:
    loss = flow_pb2.LossNotice(point=flow_pb2.LOSS_POINT_CONTROLLER_QUEUE, lost=count)
    return fleet_pb2.WatchEventsResponse(loss=loss, resume_token=b"t0")


PLACE = fleet_pb2.WatchEventsResponse(resume_token=b"t0")


def requests(controller: Controller) -> list[fleet_pb2.WatchEventsRequest]:
    return [request for request in controller.service.requests if isinstance(request, fleet_pb2.WatchEventsRequest)]


async def test_kept_events_are_a_table(controller: Controller) -> None:
    controller.service.event_calls = [[lost(1234), answer(1, interface="eth0"), answer(2, message="evil\x1b[2J\nline")]]
    result = await controller.ctl("events")
    assert result.code == 0
    titles, first, second = result.out.splitlines()
    assert titles.split() == ["TIME", "SEVERITY", "AGENT", "TYPE", "INTERFACE", "MESSAGE"]
    assert f"  warning   {WEB}  capture_loss  eth0       42 frames were lost (1)" in first
    assert second.endswith("evil\\x1b[2J\\x0aline"), "an agent's words do not move the cursor"
    assert "1,234 events of the fleet are no longer kept" in result.err
    (request,) = requests(controller)
    assert (request.last_events, request.follow) == (100, False)


async def test_in_json_every_event_is_an_object_with_all_its_fields(controller: Controller) -> None:
    controller.service.event_calls = [[lost(5), answer(1, detail={"reason": "PCR_MISMATCH"}, delta=-7)]]
    result = await controller.ctl("--output", "json", "events")
    loss, found = result.objects
    assert (loss["event"], loss["lost"], loss["unit"]) == ("loss", 5, "events")
    assert found == {
        "event": "event", "time": "2023-11-14T22:13:20Z", "type": "capture_loss", "severity": "warning", "agent_id": WEB,
        "capture_id": "c1", "interface": "", "value": 42, "delta": -7, "message": "42 frames were lost (1)",
        "detail": {"reason": "PCR_MISMATCH"}, "source_id": "ab" * 16, "sequence": 1, "receive_time": "2023-11-14T22:13:21Z",
    }  # fmt: skip


async def test_the_options_are_sent_as_they_are_meant(controller: Controller) -> None:
    controller.service.add_agent(WEB)
    await controller.ctl("events", "--since", "oldest", "--severity", "error", "--type", "clock_step", "--type", "events_lost")
    await controller.ctl("events", "--agent", "web2", "--since", "2026-11-22T10:00:00Z")
    await controller.ctl("events", "--last", "7")
    everything, since, last = requests(controller)
    assert (everything.WhichOneof("start"), everything.min_severity) == (None, event_pb2.EVENT_SEVERITY_ERROR)
    assert list(everything.types) == [event_pb2.EVENT_TYPE_CLOCK_STEP, event_pb2.EVENT_TYPE_EVENTS_LOST]
    assert (since.since.seconds, list(since.selector.agent_ids)) == (1795341600, ["web2"])
    assert last.last_events == 7


async def test_a_followed_stream_goes_on_after_the_last_event_when_the_connection_is_lost(controller: Controller) -> None:
    controller.service.event_calls = [[PLACE, answer(1)], [], [PLACE, answer(2), answer(3)]]
    controller.service.event_endings = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, None]
    result = await controller.ctl("events", "--follow", "--limit", "3")
    assert result.code == 0, result.err
    assert [line.rsplit("(", 1)[1] for line in result.out.splitlines()] == ["1)", "2)", "3)"]
    assert result.err.count("connection lost") == 1
    assert "no event was missed or repeated" in result.err
    assert [request.WhichOneof("start") for request in requests(controller)] == ["only_new", "resume_token", "resume_token"]
    assert requests(controller)[-1].resume_token == b"t1"


async def test_a_stream_that_was_lost_before_its_first_event_begins_where_it_was_asked_to(controller: Controller) -> None:
    controller.service.event_calls = [[PLACE], [PLACE, answer(1)]]
    controller.service.event_endings = [grpc.StatusCode.UNAVAILABLE, None]
    result = await controller.ctl("--output", "json", "events", "--follow", "--limit", "1")
    assert [item["event"] for item in result.objects] == ["connection", "connection", "event"]
    assert [request.resume_token for request in requests(controller)] == [b"", b"t0"]


async def test_a_controller_with_another_log_is_read_from_its_beginning(controller: Controller) -> None:
    controller.service.event_calls = [[PLACE, answer(1)], [], [PLACE, answer(1)]]
    refused = status(code_pb2.INVALID_ARGUMENT, "another log", "RESUME_TOKEN_INVALID")
    controller.service.event_endings = [grpc.StatusCode.UNAVAILABLE, refused, None]
    result = await controller.ctl("events", "--follow", "--limit", "2")
    assert result.code == 0, result.err
    assert "event log is another one now" in result.err
    assert [request.WhichOneof("start") for request in requests(controller)] == ["only_new", "resume_token", None]


async def test_what_the_controller_refuses_ends_the_command(controller: Controller) -> None:
    controller.service.refusals["WatchEvents"] = status(code_pb2.PERMISSION_DENIED, "no", "ROLE_DENIED")
    result = await controller.ctl("events", "--follow")
    assert result.code == 3
    assert "ROLE_DENIED" in result.err


async def test_ctrl_c_ends_a_followed_stream(controller: Controller) -> None:
    controller.service.event_calls = [[PLACE]]
    process = await start_ctl("events", "--follow", config=controller.config)
    await asyncio.wait_for(controller.service.streaming.wait(), 20)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (130, b""), err


def test_a_line_names_time_severity_agent_type_and_place() -> None:
    line = event_line(event(interface="eth0"))
    assert line.endswith(f"  WARNING   {WEB}  capture_loss eth0  42 frames were lost (1)\n")
    assert "  capture_loss  42" in event_line(event())


def test_the_shell_completes_types() -> None:
    assert complete_type("clock") == ["clock_step", "clock_sync"]
    assert "agent_state_changed" in complete_type("")
