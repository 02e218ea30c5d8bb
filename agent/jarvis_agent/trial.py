# SPDX-License-Identifier: Apache-2.0
"""A staged release tried out: loaded by the loader itself in a process of its own, which must meter a small trace exactly.

    this process                                       python -m jarvis_agent.trial
    what to try, by which rules ── {"directory": ...} ▶
    log and extend the digest  ◀── {"measure": ...} ──  object sealed, hashed, not judged yet
    "go"                       ── go ────────────────▶  judged, loaded, the built-in trace metered, counters compared
    version                    ◀── {"version": ...} or {"reason": ..., "message": ...}

What is new may crash, hang or print: it costs that process. The kernel's alarm ends the child, whatever it is doing; the parent
kills it besides. It is a program of its own, not a fork: nothing of gRPC, keys or TPM is in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from jarvis.capture.v1.agent_pb2 import StreamFlowsResponse
from jarvis_native import CaptureError, MeasuredObject, PacketCaptureEngine, load_firmware
from jarvis_trust.encoding import parse_json_object
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_files import ReleaseError

TRIAL_S = 30
"""How long a trial may take."""
_MAX_LINE = 4096
_FLOWS = 8
_PACKETS = 25
"""Of each flow."""
_PAYLOAD = 100
_IP_OCTETS = 20 + 8 + _PAYLOAD
_MEASURE_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrder:
    """What is tried, and by which rules it is judged."""

    directory: Path
    release_root: bytes
    """root.json."""
    floor: int
    floor_source: str = ""
    revoked: Mapping[str, str] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """One line of JSON, for the child."""
        value = {
            "directory": str(self.directory),
            "release_root": self.release_root.decode("ascii", "replace"),
            "floor": self.floor,
            "floor_source": self.floor_source,
            "revoked": dict(self.revoked),
        }
        return json.dumps(value).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> TrialOrder:
        """What `to_line` wrote."""
        value = json.loads(line)
        return cls(
            directory=Path(value["directory"]),
            release_root=value["release_root"].encode(),
            floor=value["floor"],
            floor_source=value["floor_source"],
            revoked=value["revoked"],
        )


def run_trial(order: TrialOrder, measure: Callable[[MeasuredObject], None]) -> str:
    """Tries a release in a process of its own; blocks for up to TRIAL_S.

    Args:
        order: what to try.
        measure: called with every object's name and digest before it is judged there; what it raises ends the trial.

    Returns:
        The version that the library says of itself.

    Raises:
        ReleaseError: RELEASE_TRIAL_FAILED: it crashed, took too long or metered something else than is in the trace.
        FirmwareError: the loader refused it.
    """
    command = [sys.executable, "-m", "jarvis_agent.trial"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            answer = _converse(child, order, measure, time.monotonic() + TRIAL_S)
        finally:
            child.kill()
    if "reason" in answer:
        raise FirmwareError(str(answer["reason"]), f"in its trial: {answer.get('message', '')}")
    if "version" not in answer:
        raise _failed(str(answer.get("failed", "it gave no answer")))
    return str(answer["version"])


def _converse(
    child: subprocess.Popen[bytes], order: TrialOrder, measure: Callable[[MeasuredObject], None], deadline: float
) -> dict[str, object]:
    """Tells the child what to try, and answers its measurements until it says how it went."""
    assert child.stdin is not None  # noqa: S101 - both were asked for
    assert child.stdout is not None  # noqa: S101
    _tell(child.stdin, order.to_line())
    received = b""
    while True:
        while b"\n" not in received:
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _failed(f"it took longer than {TRIAL_S} s")
            data = os.read(child.stdout.fileno(), _MAX_LINE)
            if not data:
                raise _failed(_ending(child.wait(max(0.1, deadline - time.monotonic()))))
            received += data
            if len(received) > _MAX_LINE:
                raise _failed("it printed what it should not")
        line, _, received = received.partition(b"\n")
        message = _parse(line)
        if "measure" not in message:
            return message
        measure(MeasuredObject(name=str(message["measure"]), sha256=_digest(message)))
        _tell(child.stdin, b"go\n")


def _tell(stdin: IO[bytes], line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended; the next read says how
        stdin.write(line)
        stdin.flush()


def _parse(line: bytes) -> dict[str, object]:
    try:
        return parse_json_object(line, max_bytes=_MAX_LINE, canonical=False)
    except ValueError as error:
        raise _failed("it printed what it should not") from error


def _digest(message: dict[str, object]) -> bytes:
    text = message.get("sha256")
    if not isinstance(text, str) or len(text) != _MEASURE_DIGITS:
        raise _failed("it printed what it should not")
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise _failed("it printed what it should not") from error


def _ending(code: int) -> str:
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit status {code} and no answer"


def _failed(message: str) -> ReleaseError:
    return ReleaseError("RELEASE_TRIAL_FAILED", f"the release was tried in a process of its own: {message}")


# ---- the child


def main() -> int:
    """`python -m jarvis_agent.trial`: see the module."""
    signal.alarm(TRIAL_S)  # its default action ends the process even where no Python runs any more
    order = TrialOrder.from_line(sys.stdin.buffer.readline())
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        firmware = load_firmware(
            order.directory,
            release_root=order.release_root,
            floor=order.floor,
            floor_source=order.floor_source,
            revoked=order.revoked,
            measure=lambda found: _ask(answers, found),
        )
    except FirmwareError as error:
        _say(answers, {"reason": error.reason, "message": error.message})
        return 1
    try:
        failed = _meter()
    except CaptureError as error:
        failed = f"it could not meter the built-in trace: {error.message}"
    _say(answers, {"failed": failed} if failed else {"version": firmware.version})
    return 1 if failed else 0


def _ask(answers: int, found: MeasuredObject) -> None:
    """Nothing is judged or loaded before the parent has logged it."""
    _say(answers, {"measure": found.name, "sha256": found.sha256.hex()})
    if sys.stdin.buffer.readline() != b"go\n":
        _give_up()


def _give_up() -> NoReturn:
    os._exit(1)


def _say(answers: int, message: dict[str, str]) -> None:
    os.write(answers, json.dumps(message).encode()[: _MAX_LINE - 1] + b"\n")


def _meter() -> str:
    """Meters the built-in trace; what is wrong with the outcome, or nothing."""
    fd = os.memfd_create("trial.pcap")
    os.write(fd, synthetic_trace())
    with PacketCaptureEngine(files=[f"/proc/self/fd/{fd}"], backend="file") as engine:
        engine.enable_flow_metering()
        engine.start()
        while engine.poll():
            pass
        engine.stop(graceful=True)
        records = StreamFlowsResponse.FromString(engine.open_flow_reader().read_batch().data).batch.records
        metrics = engine.get_metrics()
    flows = sorted((record.src_port, record.fwd_packets, record.fwd_octets) for record in records)
    expected = [(40_000 + number, _PACKETS, _PACKETS * _IP_OCTETS) for number in range(_FLOWS)]
    counted = (metrics.received, metrics.metered, metrics.metered_octets, metrics.flow_records_ended)
    wanted = (_FLOWS * _PACKETS, _FLOWS * _PACKETS, _FLOWS * _PACKETS * _IP_OCTETS, _FLOWS)
    if flows != expected:
        return f"it found {len(flows)} flows of the built-in trace's {_FLOWS}, or counted them otherwise"
    if counted != wanted:
        return f"it counted packets, metered, octets and records as {counted}; {wanted} are in the built-in trace"
    return ""


def synthetic_trace() -> bytes:
    """A pcap of 8 UDP flows, 25 packets each, in turn; 1 ms apart, little-endian, Ethernet."""
    records = []
    for number in range(_FLOWS * _PACKETS):
        frame = _frame(number % _FLOWS)
        records.append(struct.pack("<IIII", 1_700_000_000, number * 1000, len(frame), len(frame)) + frame)
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1) + b"".join(records)


def _frame(flow: int) -> bytes:
    source, destination = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, _IP_OCTETS, 0, 0, 64, socket.IPPROTO_UDP, 0, source, destination)
    datagram = struct.pack("!HHHH", 40_000 + flow, 53, 8 + _PAYLOAD, 0) + bytes(_PAYLOAD)
    return bytes.fromhex("020000000002020000000001" + "0800") + header + datagram


if __name__ == "__main__":
    sys.exit(main())
