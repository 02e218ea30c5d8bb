# SPDX-License-Identifier: Apache-2.0
"""Real collectors on loopback, each at a port of its own, gone when the `with` block ends.

    with Nfcapd(directory) as collector:
        ...export to 127.0.0.1:collector.port...
        flows = collector.flows()            stops it first

Nfcapd (nfdump), Nfacctd and Sfacctd (pmacct) are the packaged programs; DatagramSink and StreamSink keep what arrives as it is,
for tshark, ipfixDump and the `netflow` package (dissectors.py). All listen on 127.0.0.1 alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.collected import CollectedFlow, flow_key
from testbed.ports import free_port

HOST = "127.0.0.1"
BUFFER_BYTES = 64 << 20
"""Receive buffer: more than a test sends, so that a collector that is behind loses nothing."""
START_S = 20.0
STOP_S = 30.0
QUIET_S = 0.3
"""A collector that reads nothing more for so long has got everything: what is sent on loopback is there at once."""

_SO_RCVBUFFORCE = 33
_UDP_TABLES = ("udp", "udp6")


def missing(*programs: str) -> str:
    """Why tests with these programs cannot run here; empty when they can."""
    absent = [program for program in programs if find_program(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def find_program(name: str) -> str | None:
    """Where a program is, also in the directories of system programs."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def queued_octets(port: int) -> int | None:
    """What waits in the receive queues of UDP sockets at a port; None while there is no such socket."""
    queued = None
    for table in _UDP_TABLES:
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                queued = (queued or 0) + int(fields[4].partition(":")[2], 16)
    return queued


class _Program:
    """A collector that is a program with a log."""

    STOP_SIGNAL = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line, once the directory is there."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether it listens."""

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"TZ": "UTC"}
            )
        until = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__(None, None, None)
                raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log()}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until_read(self) -> None:
        """Waits until its socket is empty and it has had time to work off what it took."""
        until = time.monotonic() + STOP_S
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET_S:
            if queued_octets(self.port) != 0:
                quiet_since = time.monotonic()
            if time.monotonic() > until:
                raise RuntimeError(f"{type(self).__name__} does not read its socket")
            time.sleep(0.02)

    def begin_stop(self) -> None:
        """Lets it read what waits, and tells it to end in order; does not wait for that."""
        if self._process is not None and not self._is_stopping:
            self.wait_until_read()
            self._process.send_signal(self.STOP_SIGNAL)
            self._is_stopping = True

    def stop(self) -> None:
        """Lets it read what waits, and waits until it has ended in order. Once is enough."""
        if self._process is None or self._process.poll() is not None:
            return
        self.begin_stop()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{type(self).__name__} does not end:\n{self.log()}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class NfcapdSummary:
    """What nfcapd says at its end."""

    flows: int
    packets: int
    octets: int
    sequence_errors: int
    bad_packets: int


class Nfcapd(_Program):
    """nfdump's collector: NetFlow v5, v9 and IPFIX over UDP."""

    PROGRAM = "nfcapd"

    def _command(self) -> list[str]:
        (self.directory / "flows").mkdir()
        files = ["-w", str(self.directory / "flows"), "-t", "3600"]
        return [self.PROGRAM, "-b", HOST, "-p", str(self.port), "-B", str(BUFFER_BYTES), *files]

    def _is_ready(self) -> bool:
        return queued_octets(self.port) is not None

    def records(self) -> list[dict[str, Any]]:
        """Its records as nfdump prints them (-o json); stops it."""
        self.stop()
        if not any((self.directory / "flows").iterdir()):
            return []
        command = ["nfdump", "-R", str(self.directory / "flows"), "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"TZ": "UTC"})
        return list(json.loads(done.stdout)) if done.stdout.lstrip().startswith("[") else []

    def flows(self) -> list[CollectedFlow]:
        """A flow for each direction that has packets; stops it."""
        return [flow for record in self.records() for flow in _nfdump_directions(record)]

    def summary(self) -> NfcapdSummary:
        """Its last line; stops it."""
        self.stop()
        found = re.findall(r"Flows: (\d+), Packets: (\d+), Bytes: (\d+), Sequence Errors: (\d+), Bad Packets: (\d+)", self.log())
        flows, packets, octets, sequence_errors, bad_packets = map(int, found[-1])
        return NfcapdSummary(
            flows=flows, packets=packets, octets=octets, sequence_errors=sequence_errors, bad_packets=bad_packets
        )


class Sfcapd(Nfcapd):
    """nfdump's collector of sFlow: each flow sample is a flow of one packet times the sampling rate."""

    PROGRAM = "sfcapd"


def _nfdump_directions(record: dict[str, Any]) -> Iterator[CollectedFlow]:
    source = record.get("src4_addr") or record["src6_addr"]
    destination = record.get("dst4_addr") or record["dst6_addr"]
    ends = (source, record.get("src_port", 0)), (destination, record.get("dst_port", 0))
    times_ms = _milliseconds(record["first"]), _milliseconds(record["last"])
    for direction, (one, other) in (("in", ends), ("out", ends[::-1])):
        if record.get(f"{direction}_packets"):
            yield CollectedFlow(
                key=flow_key(record["proto"], *one, *other),
                packets=record[f"{direction}_packets"],
                octets=record[f"{direction}_bytes"],
                times_ms=times_ms,
            )


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class _Pmacct(_Program):
    """A daemon of pmacct with its print plugin, which adds flows up by addresses, ports and protocol and prints them at the end.

    It loses silently what does not fit between its two processes: the pipe is large, and the cache grows by itself.
    """

    STOP_SIGNAL = signal.SIGINT
    PROGRAM = ""
    PREFIX = ""
    READY = ""

    def __init__(self, directory: Path, *, renormalize: bool = False) -> None:
        """With renormalize it multiplies what it is told by the sampling rate that it is told."""
        super().__init__(directory)
        self._renormalize = renormalize

    def _command(self) -> list[str]:
        own = {
            "ip": HOST,
            "port": str(self.port),
            "pipe_size": str(BUFFER_BYTES),
            "time_new": "true",
            "renormalize": str(self._renormalize).lower(),
        }
        settings = {
            "daemonize": "false",
            "plugins": "print[all]",
            "aggregate[all]": "src_host,dst_host,src_port,dst_port,proto,flows",
            "print_num_protos[all]": "true",
            "print_output[all]": "json",
            "print_output_file[all]": str(self.directory / "flows.json"),
            "print_refresh_time[all]": "3600",
            "plugin_buffer_size": "131072",
            "plugin_pipe_size": str(BUFFER_BYTES),
        } | {f"{self.PREFIX}_{name}": value for name, value in own.items()}
        config = self.directory / "config"
        config.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()), encoding="ascii")
        return [find_program(self.PROGRAM) or self.PROGRAM, "-f", str(config)]

    def _is_ready(self) -> bool:
        return self.READY in self.log() and "setting object handlers" in self.log()

    def flows(self) -> list[CollectedFlow]:
        """Its sums by key; stops it."""
        self.stop()
        output = self.directory / "flows.json"
        until = time.monotonic() + STOP_S
        while "OK, Exiting" not in self.log() and time.monotonic() < until:
            time.sleep(0.02)
        lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
        return [_pmacct_flow(json.loads(line)) for line in lines]

    def complaints(self) -> list[str]:
        """Its warnings and errors."""
        return [line for line in self.log().splitlines() if " WARN " in line or " ERROR " in line]


def _protocol_number(text: str) -> int:
    """A protocol by number or name: sfacctd writes names in spite of print_num_protos."""
    return int(text) if text.isdigit() else socket.getprotobyname(text)


def _pmacct_flow(record: dict[str, Any]) -> CollectedFlow:
    ends = record["ip_src"], record["port_src"], record["ip_dst"], record["port_dst"]
    return CollectedFlow(
        key=flow_key(_protocol_number(record["ip_proto"]), *ends),
        packets=record["packets"],
        octets=record["bytes"],
        records=record.get("flows", 0),
    )


class Nfacctd(_Pmacct):
    """pmacct's collector of NetFlow v5, v9 and IPFIX over UDP."""

    PROGRAM = PREFIX = "nfacctd"
    READY = "waiting for NetFlow/IPFIX data"


class Sfacctd(_Pmacct):
    """pmacct's collector of sFlow."""

    PROGRAM = PREFIX = "sfacctd"
    READY = "waiting for sFlow data"


class _Sink:
    """A socket of ours and the thread that reads it."""

    KIND = socket.SOCK_DGRAM

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, self.KIND)
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        self._socket.bind((HOST, 0))
        self.port = int(self._socket.getsockname()[1])
        self._ending = False
        self._thread = threading.Thread(target=self._read, name="sink", daemon=True)

    @abstractmethod
    def _read(self) -> None:
        """Reads until `_ending`, and then what is there still."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._socket.close()

    def stop(self) -> None:
        """Reads what is there still, and no more."""
        if self._thread.is_alive():
            self._ending = True
            self._thread.join()


class DatagramSink(_Sink):
    """Keeps datagrams in their order."""

    def __init__(self) -> None:
        super().__init__()
        self._datagrams: list[bytes] = []

    def _read(self) -> None:
        self._socket.settimeout(QUIET_S)
        while True:
            try:
                self._datagrams.append(self._socket.recv(65_535))
            except TimeoutError:
                if self._ending:
                    return

    def datagrams(self) -> list[bytes]:
        """What came; stops it."""
        self.stop()
        return self._datagrams


class StreamSink(_Sink):
    """Takes TCP connections one after the other and keeps what each of them said."""

    KIND = socket.SOCK_STREAM

    def __init__(self) -> None:
        super().__init__()
        self._socket.listen()
        self._streams: list[bytearray] = []

    def _read(self) -> None:
        self._socket.settimeout(QUIET_S)
        while True:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                if self._ending:
                    return
                continue
            self._streams.append(stream := bytearray())
            connection.settimeout(STOP_S)
            with connection:
                while data := connection.recv(1 << 20):
                    stream += data

    def streams(self) -> list[bytes]:
        """The bytes of each connection; stops it when the last one has ended."""
        self.stop()
        return [bytes(stream) for stream in self._streams]
