# SPDX-License-Identifier: Apache-2.0
"""PacketCaptureEngine: one capture of the native core, as agent, meter and scripts use it.

    with PacketCaptureEngine(files=["trace.pcap"]) as engine:
        engine.enable_flow_metering()
        for batch in engine.flow_batches(): ...batch.data is a pyarrow.RecordBatch...

Python moves the capture forward and takes finished bytes; every call into the core releases the GIL. start, stop, poll and
packets are serialised here; everything else may be called from any thread at any time. The C capture is freed when the engine is
closed and the last reader, sampler and packet view are gone, so that nothing can point into freed memory.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jarvis_native import arguments, values
from jarvis_native.authority import Authority
from jarvis_native.errors import CaptureError, CaptureStateError, InvalidArgument, check, error_from_info
from jarvis_native.loader import Firmware, load_firmware, loaded_firmware
from jarvis_native.packets import PacketBatch, batch_from_ring
from jarvis_native.reader import FlowBatch, FlowReader
from jarvis_native.sampler import DEFAULT_HEADER_BYTES, FrameSampler
from jarvis_native.types import (
    BackendInfo,
    CaptureEvent,
    CaptureMetrics,
    ClockInfo,
    FlowStats,
    InterfaceInfo,
)

if TYPE_CHECKING:
    import pyarrow as pa

SLICE_S = 0.1
"""Longest single call into the core that moves a capture forward: bounds how long signals and stop() wait."""

_STOP_WAIT_S = 0.001
"""Between two looks for the last records while another thread is in `stop`."""

ENCODED_RECORD_BYTES = 224
ENCODED_STATISTICS_BYTES = 576
"""Enough for one FlowRecord, and for one with statistics (jarvis_capture.h)."""

MAX_EVENTS = 256
"""Events that the core keeps (jarvis_capture.h)."""

TimestampSource = Literal["default", "kernel", "hardware", "ptp", "ntp"]
Tunnel = Literal["outer", "inner", "both"]
Sampling = Literal["none", "systematic", "flow-hash"]
Statistic = Literal["tcp", "sizes", "intervals", "headers"]
SortKey = Literal["none", "packets", "octets", "start", "last", "duration"]
ReaderStart = Literal["oldest", "newest", "last", "token"]


class PacketCaptureEngine:
    """One capture, from an interface or from files, with flow metering.

    Args:
        interface: network interface, or several (1..32, each once); exactly one of interface and files. Every worker reads a
            queue of each.
        files: capture files, read in this order as one trace.
        backend: "auto", "file", "pcap", "afpacket", "pfring", or a module's: "xdp".
        buffer_size_mb: kernel ring of a live capture over all workers, MiB, 64..8192; 0 = 64.
        snaplen: bytes kept of each frame, 64..262144; 0 = 262144.
        filter: BPF expression; empty = everything.
        promiscuous: put the interface into promiscuous mode.
        timestamp_source: "default", "kernel", "hardware", "ptp" (the kernel's, carried over to the interface's PTP hardware
            clock) or "ntp" (the kernel's, refused while the system clock is not synchronised).
        workers: capture threads, 1..64; 0 processes frames inside `poll`. Default: 0 for files, 1 for an interface. Of files each
            meters the flows of its share of the address pairs.
        worker_cpus: a CPU number per worker; empty = not pinned.
        packet_ring_mb: ring for `packets`, MiB, 1..8192; 0 = off. When it is full, a live capture drops frames from it, and one
            of files waits until they are taken: with it, files must be read through `packets`.
        exclusive: backends "xdp" and "dpdk" may take the frames of an interface away from a host that uses the interface itself.
        dpdk_eal_args: for backend "dpdk", what DPDK is started with, once for the process: see docs/dpdk.md.
        loss_threshold: more frames lost than this within one second raise an event (`next_events`); 0 = any.
        busy_poll_us: backends "afpacket" and "xdp": microseconds for which the kernel polls the driver before it sleeps, 0 (off)
            to 1,000. Needs CAP_NET_ADMIN.
        firmware: from `load_firmware`; default: the process's, or loaded from the default directory.
        allow_unsigned: passed to `load_firmware` when it is called here; for scripts only.

    Raises:
        CaptureError: a leaf that names the field, the value and what would be accepted.
        FirmwareError: the native library must not be loaded.
    """

    def __init__(
        self,
        interface: str | Sequence[str] | None = None,
        *,
        files: Sequence[str | os.PathLike[str]] = (),
        backend: str = "auto",
        buffer_size_mb: int = 64,
        snaplen: int = 0,
        filter: str = "",  # noqa: A002 - the field's name
        promiscuous: bool = False,
        timestamp_source: TimestampSource = "default",
        workers: int | None = None,
        worker_cpus: Sequence[int] = (),
        packet_ring_mb: int = 0,
        exclusive: bool = False,
        dpdk_eal_args: Sequence[str] = (),
        loss_threshold: int = 0,
        busy_poll_us: int = 0,
        firmware: Firmware | None = None,
        allow_unsigned: bool = False,
    ) -> None:
        if isinstance(files, (str, os.PathLike)):
            raise InvalidArgument(f"files is {files!r}: accepted is a list of paths", field="files")
        if isinstance(dpdk_eal_args, str):
            raise InvalidArgument(f"dpdk_eal_args is {dpdk_eal_args!r}: accepted is a list of arguments", field="dpdk_eal_args")
        self._firmware = _firmware(firmware, allow_unsigned=allow_unsigned)
        self._ffi, self._lib = self._firmware.ffi, self._firmware.lib
        self._lifecycle = threading.RLock()
        self._stopping = False
        self._from_files = bool(files)
        self._statistics = 0  # kinds, or'ed as in the core
        self._readers: weakref.WeakSet[FlowReader | FrameSampler] = weakref.WeakSet()
        config, _kept = arguments.capture_config(
            self._ffi,
            interface=interface,
            files=files,
            backend=backend,
            filter=filter,
            snaplen=snaplen,
            buffer_size_mb=buffer_size_mb,
            workers=(0 if files else 1) if workers is None else workers,
            worker_cpus=worker_cpus,
            promiscuous=promiscuous,
            timestamp_source=timestamp_source,
            packet_ring_mb=packet_ring_mb,
            exclusive=exclusive,
            dpdk_eal_args=dpdk_eal_args,
            loss_threshold=loss_threshold,
            busy_poll_us=busy_poll_us,
        )
        self._backend = self._select_backend(config)
        out, info = self._ffi.new("capture_t **"), self._error_info()
        check(self._ffi, self._lib, self._lib.capture_init(config, out, info), info)
        self._capture: Any = self._ffi.gc(out[0], self._lib.capture_destroy)

    def _select_backend(self, config: Any) -> str:
        name, info = self._ffi.new("char[16]"), self._error_info()
        check(self._ffi, self._lib, self._lib.capture_select_backend(config, name, info), info)
        return str(self._ffi.string(name).decode("ascii"))

    # ---- life cycle

    @property
    def backend(self) -> str:
        """The backend in force ("auto" resolved); "several" when interfaces have different ones: see `get_interfaces`."""
        return self._backend

    @property
    def backend_detail(self) -> str:
        """How the running backend captures (mode, queues, memory); empty when there is nothing to say or nothing runs."""
        text = self._ffi.new("char[256]")
        self._check(self._lib.capture_describe_backend(self._open_capture(), text, 256))
        return str(self._ffi.string(text).decode("utf-8", "replace"))

    @property
    def firmware(self) -> Firmware:
        """The firmware this engine runs on."""
        return self._firmware

    def enable_flow_metering(
        self,
        max_flows: int = 1_048_576,
        idle_timeout_s: float = 30.0,
        active_timeout_s: float = 300.0,
        log_records: int = 0,
        *,
        fragment_slots: int = 0,
        hash_seed: int = 0,
        tunnel: Tunnel = "outer",
        sampling: Sampling = "none",
        sampling_interval: int = 0,
        mirror_timestamps: bool = False,
        statistics: Sequence[Statistic] = (),
        merge_interfaces: bool = False,
    ) -> None:
        """Turns metering on; before start.

        Args:
            max_flows: live flows over all workers, 4,096..16,777,216; 0 = 1,048,576.
            idle_timeout_s: seconds without a packet after which a flow ends, 0 (never) or 1..86,400.
            active_timeout_s: seconds after which a flow that goes on is reported, 0 (never) or 1..86,400.
            log_records: finished records each worker keeps for readers, power of two 1,024..16,777,216; 0 = 65,536.
            fragment_slots: fragment cache, power of two 256..1,048,576; 0 = 8,192.
            hash_seed: 0 = random, which is proof against flooding; tests fix it.
            tunnel: which IP header of a tunnelled packet makes its flow: the "outer"most, the "inner"most, or "both", each
                counting the packet.
            sampling: which packets are metered (RFC 5475): all ("none"), every N-th IP packet of a worker ("systematic"), or
                every packet of one flow in N, the same flows on every host ("flow-hash"). The others count as `unsampled`.
            sampling_interval: N, 1..1,000,000; without sampling 0.
            mirror_timestamps: inner flows of ERSPAN III take their times from the mirror's header; tunnel "inner" or "both".
            statistics: what else each flow carries, in memory of its own: "tcp" (retransmissions, out-of-order, zero windows,
                handshake round-trip times; FIN and RST judged by sequence numbers), "sizes" (of transport payloads), "intervals"
                (between packets of one direction), "headers" (MAC addresses, inner VLAN id, TTLs, IPv6 flow label).
            merge_interfaces: a flow seen on two interfaces is one record, which names both; else a record each.
        """
        config = arguments.flow_config(
            self._ffi,
            max_flows=max_flows,
            idle_timeout_s=idle_timeout_s,
            active_timeout_s=active_timeout_s,
            log_records=log_records,
            fragment_slots=fragment_slots,
            hash_seed=hash_seed,
            tunnel=tunnel,
            sampling=sampling,
            sampling_interval=sampling_interval,
            mirror_timestamps=mirror_timestamps,
            statistics=statistics,
            merge_interfaces=merge_interfaces,
        )
        info = self._error_info()
        with self._lifecycle:
            self._check(self._lib.capture_flow_enable(self._open_capture(), config, info), info)
            self._statistics = int(config.statistics)

    def bind(self, authority: Authority, request: bytes) -> None:
        """Makes the capture obey an authority, for good; before the start.

        Args:
            authority: whose leases it meters and gives out under.
            request: payload of the StartCapture command that `start` carries out; it has to be admitted by then.

        Raises:
            CaptureStateError: it is bound already, or was started.
        """
        info = self._error_info()
        with self._lifecycle:
            code = self._lib.capture_set_authority(self._open_capture(), authority.handle, request, len(request), info)
            self._check(code, info)

    def start(self) -> None:
        """Opens the backend and starts the workers.

        Raises:
            LeaseOver, AuthorityRefused: the capture is bound to an authority that does not entitle to it.
            CaptureError: the backend cannot be opened.
        """
        info = self._error_info()
        with self._lifecycle:
            self._check(self._lib.capture_start(self._open_capture(), info), info)

    def poll(self, timeout_s: float = SLICE_S) -> bool:
        """Moves the capture forward for at most `timeout_s` seconds, and at most 0.1 s in one call.

        Returns:
            True while there is more to come; False at the end of the files or once stop was called. With workers = 0 it also
            returns when a lossless reader must read before more can be metered.
        """
        timeout_ms = _milliseconds(min(timeout_s, SLICE_S))
        if self._stopping:
            return False
        with self._lifecycle:
            return False if self._stopping else self._poll(timeout_ms)

    def _poll(self, timeout_ms: int) -> bool:
        capture = self._open_capture()
        code = self._lib.capture_poll(capture, timeout_ms)
        if code < 0:
            raise self.last_error() or error_from_info(self._ffi, self._lib, code)
        return bool(code)

    def stop(self, graceful: bool = True) -> None:
        """Stops and ends every flow with reason 4 (forced end). Readers may go on reading; may be called again.

        Args:
            graceful: process what the ring holds first; else it is discarded and counted as dropped_user.
        """
        self._stopping = True
        with self._lifecycle:
            self._check(self._lib.capture_stop(self._open_capture(), graceful))

    def close(self) -> None:
        """Stops, closes readers and samplers and lets go of the native capture; may be called again."""
        self._stopping = True
        with self._lifecycle:
            capture, self._capture = self._capture, None
            if capture is not None:
                self._lib.capture_stop(capture, False)  # refused when it never started, which is what is wanted
        for reader in list(self._readers):
            reader.close()

    def __enter__(self) -> PacketCaptureEngine:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def set_deadline(self, boottime_ns: int) -> None:
        """Dead-man's switch: from this CLOCK_BOOTTIME instant (ns) on nothing is metered until a later one is set; 0 = none.

        Raises:
            CaptureStateError: the capture is bound to an authority, whose lease is its deadline.
        """
        deadline = arguments.unsigned("boottime_ns", boottime_ns, 64)
        self._check(self._lib.capture_set_deadline(self._open_capture(), deadline))

    def verify_firmware(self, *, release_root: bytes | None = None, floor: int = 0) -> Firmware:
        """Measures and judges the library's file anew, as `load_firmware` would with this root and floor.

        Returns:
            The firmware that runs; it is what the file holds.

        Raises:
            FirmwareError: with the reason, FIRMWARE_ALREADY_LOADED when the file is sound but no longer what runs.
        """
        return load_firmware(self._firmware.directory, release_root=release_root, floor=floor)

    # ---- what is known

    def get_metrics(self) -> CaptureMetrics:
        """Counters now; never waits for the packet path."""
        stats = self._ffi.new("struct capture_stats *")
        self._check(self._lib.capture_get_stats(self._open_capture(), stats))
        return values.metrics(stats)

    def last_error(self) -> CaptureError | None:
        """The last failure that came about while capturing (interface gone, file damaged), or None."""
        info = self._error_info()
        self._check(self._lib.capture_get_error(self._open_capture(), info))
        return error_from_info(self._ffi, self._lib, info.code, info) if info.code < 0 else None

    def next_events(self, after_sequence: int = 0) -> list[CaptureEvent]:
        """Events after that sequence number (0: all that are kept), oldest first; at most 256, never waits.

        A first sequence number above after_sequence + 1 means that those between were overwritten unread. Keep the last one's
        and pass it the next time.
        """
        found: list[CaptureEvent] = []
        event, sequence = self._ffi.new("struct capture_event *"), arguments.unsigned("after_sequence", after_sequence, 64)
        capture = self._open_capture()
        while len(found) < MAX_EVENTS and self._check(self._lib.capture_next_event(capture, sequence, event)):
            sequence = event.sequence
            found.append(values.event(self._ffi, event))
        return found

    def get_clock(self) -> ClockInfo:
        """The clock behind the timestamps; never waits for the packet path."""
        clock = self._ffi.new("struct capture_clock_info *")
        self._check(self._lib.capture_get_clock(self._open_capture(), clock))
        return values.clock(self._ffi, clock)

    def errors(self) -> list[CaptureError]:
        """Every asynchronous failure so far in the order in which they came, each once; the first 64."""
        capacity = 64
        infos = self._ffi.new("struct capture_error_info[]", capacity)
        count = self._check(self._lib.capture_get_errors(self._open_capture(), infos, capacity))
        return [error_from_info(self._ffi, self._lib, infos[number].code, infos[number]) for number in range(count)]

    def get_interfaces(self) -> list[InterfaceInfo]:
        """The interfaces of a live capture, removed ones left out; empty for files."""
        capacity = self._lib.CAPTURE_INTERFACES_MAX
        out = self._ffi.new("struct capture_interface_info[]", capacity)
        count = self._check(self._lib.capture_get_interfaces(self._open_capture(), out, capacity))
        return [values.interface(self._ffi, out[index]) for index in range(count)]

    def add_interface(self, interface: str) -> None:
        """Adds an interface to the running live capture; it is opened, with the capture's own configuration, before this returns.

        Raises:
            InvalidArgument: it is captured already, or there are 32.
            CaptureError: it cannot be opened, as at the start.
        """
        info, name = self._error_info(), arguments.c_string(self._ffi, "interface", interface)
        self._check(self._lib.capture_add_interface(self._open_capture(), name, info), info)

    def remove_interface(self, interface: str) -> None:
        """Removes one: what its rings hold is processed first, its counters stay in the capture's.

        Raises:
            InvalidArgument: it is not captured, or the last one: stop the capture.
        """
        info, name = self._error_info(), arguments.c_string(self._ffi, "interface", interface)
        self._check(self._lib.capture_remove_interface(self._open_capture(), name, info), info)

    def get_flows(
        self,
        limit: int = 100,
        min_packets: int = 0,
        sort_by: SortKey = "packets",
        filter: str = "",  # noqa: A002 - the field's name
    ) -> list[FlowStats]:
        """Live flows of the table, at most `limit` (1..100,000), sorted.

        Args:
            limit: how many at most.
            min_packets: only flows with so many packets, both directions together.
            sort_by: "packets", "octets", "start", "last", "duration", or "none" for table order.
            filter: BPF expression decided on each flow's addresses, ports, protocol and VLAN, either direction.
        """
        flows, statistics, count = self._query(limit=limit, min_packets=min_packets, sort_by=sort_by, filter=filter)
        return self._flow_list(flows, statistics, count)

    def encode_flows(
        self,
        limit: int = 100,
        min_packets: int = 0,
        sort_by: SortKey = "packets",
        filter: str = "",  # noqa: A002 - the field's name
    ) -> bytes:
        """What `get_flows` finds, as the bytes of one jarvis.capture.v1.ListFlowsResponse with `batch` set."""
        flows, statistics, count = self._query(limit=limit, min_packets=min_packets, sort_by=sort_by, filter=filter)
        room = count * (ENCODED_STATISTICS_BYTES if self._statistics else ENCODED_RECORD_BYTES)
        out = self._ffi.new("uint8_t[]", room)
        length = self._check(self._lib.capture_flow_encode(flows, statistics, count, out, room))
        return values.list_flows_response(bytes(self._ffi.buffer(out, length)))

    def lookup_flow(self, flow_id: int) -> list[FlowStats]:
        """The live flows with this id: none, one, or one a shard."""
        capacity = 64
        flows = self._ffi.new("struct capture_flow[]", capacity)
        statistics = self._new_statistics(capacity)
        wanted = arguments.unsigned("flow_id", flow_id, 64)
        count = self._lib.capture_flow_lookup(self._open_capture(), wanted, flows, statistics, capacity)
        if count == self._lib.CAPTURE_ERR_NOT_FOUND:
            return []
        return self._flow_list(flows, statistics, min(self._check(count), capacity))

    @staticmethod
    def get_available_backends(
        interface: str | None = None, *, firmware: Firmware | None = None, allow_unsigned: bool = False
    ) -> list[BackendInfo]:
        """Every backend of this build with its usability for `interface` (None: in general)."""
        loaded = _firmware(firmware, allow_unsigned=allow_unsigned)
        ffi, lib = loaded.ffi, loaded.lib
        capacity = 32
        out = ffi.new("struct capture_backend_info[]", capacity)
        count = check(ffi, lib, lib.capture_get_backends(arguments.c_string(ffi, "interface", interface), out, capacity))
        return [values.backend(ffi, out[index]) for index in range(min(count, capacity))]

    # ---- what comes out

    def open_flow_reader(
        self,
        *,
        filter: str = "",  # noqa: A002 - the field's name
        min_packets: int = 0,
        since_ns: int = 0,
        start: ReaderStart = "oldest",
        last_records: int = 0,
        token: bytes = b"",
        lossless: bool = False,
    ) -> FlowReader:
        """A subscriber's reader of finished flow records.

        Args:
            filter: BPF expression decided on each record, either direction.
            min_packets: only records with so many packets, both directions together.
            since_ns: only records whose end time is not before this, ns since the Unix epoch; 0 = any.
            start: "oldest" record still kept, "newest" (only those to come), "last" (`last_records`, then those to come), or
                "token": after the batch that carried `token`.
            last_records: for start = "last".
            token: a batch's resume token, for start = "token".
            lossless: the packet path waits for this reader (files only).
        """
        config, _kept = arguments.reader_config(
            self._ffi,
            filter=filter,
            min_packets=min_packets,
            since_ns=since_ns,
            start=start,
            last_records=last_records,
            token=token,
            lossless=lossless,
        )
        out, info = self._ffi.new("capture_flow_reader_t **"), self._error_info()
        capture = self._open_capture()
        self._check(self._lib.capture_reader_open(capture, config, out, info), info)
        reader = FlowReader(self._ffi, self._lib, capture, out[0], statistics=self._statistics)
        self._readers.add(reader)
        if self._capture is None:  # closed meanwhile by another thread
            reader.close()
        return reader

    def open_frame_sampler(
        self,
        sampling_rate: int,
        *,
        header_length: int = DEFAULT_HEADER_BYTES,
        samples: int = 0,
        seed: int = 0,
        lossless: bool = False,
    ) -> FrameSampler:
        """A place in frames taken at random, for sFlow; before the start or while the capture runs, at most 4 at a time.

        Frames that the capture's filter rejects, and those that come while no lease is in force, are never taken.

        Args:
            sampling_rate: N of 1 in N, 1..16,777,215: at random distances of N on average.
            header_length: bytes kept of each frame, 64..256.
            samples: kept for the exporter, a worker, power of two 256..65,536; 0 = 4,096. Older ones are overwritten and counted.
            seed: of the distances; 0 = random.
            lossless: the packet path waits for the exporter (files only).

        Raises:
            CaptureStateError: four are open.
        """
        sampler = FrameSampler(
            self._ffi,
            self._lib,
            self._open_capture(),
            sampling_rate=sampling_rate,
            header_length=header_length,
            samples=samples,
            seed=seed,
            lossless=lossless,
        )
        self._readers.add(sampler)
        if self._capture is None:  # closed meanwhile by another thread
            sampler.close()
        return sampler

    def flow_batches(
        self,
        *,
        filter: str = "",  # noqa: A002 - the field's name
        min_packets: int = 0,
        max_records: int = 65_536,
    ) -> Iterator[FlowBatch[pa.RecordBatch]]:
        """Starts the capture and yields its finished flows as Arrow batches until it ends: the end of the files, or `stop`.

        From files nothing is lost, however slow the consumer; live, a batch's `lost` says how many records it came too late for.
        An empty batch is yielded only to tell of a loss.

        Args:
            filter: BPF expression decided on each record, either direction.
            min_packets: only records with so many packets, both directions together.
            max_records: at most so many a batch.
        """
        with self.open_flow_reader(filter=filter, min_packets=min_packets, lossless=self._from_files) as reader:
            self.start()
            while True:
                running = self.poll()
                batch = reader.read_arrow(max_records)
                while batch.records or batch.lost:
                    yield batch
                    batch = reader.read_arrow(max_records)
                if batch.end:
                    return
                if not running:
                    time.sleep(_STOP_WAIT_S)

    def packets(self, timeout_s: float | None = None) -> Iterator[PacketBatch]:
        """Frames from the packet ring (packet_ring_mb > 0), batch by batch.

        With workers = 0 this moves the capture forward itself. A batch is valid until the next is asked for. Ends with the
        capture, or when nothing arrived for `timeout_s` seconds (None: waits for ever).
        """
        batch = self._ffi.new("struct capture_packet_batch *")
        deadline, ended = _deadline(timeout_s), False
        while not self._stopping:
            with self._lifecycle:
                count = self._check(self._lib.capture_packets_next(self._open_capture(), _milliseconds(SLICE_S), batch))
            if count:
                try:
                    yield batch_from_ring(self._ffi, self._open_capture(), batch)
                finally:
                    self._release_packets()
                deadline = _deadline(timeout_s)
            elif ended or time.monotonic() >= deadline:
                return
            else:
                with self._lifecycle:
                    ended = not self._poll(0)

    def _release_packets(self) -> None:
        with self._lifecycle:
            if self._capture is not None:
                self._lib.capture_packets_release(self._capture)

    # ---- the inside

    def _query(self, *, limit: int, min_packets: int, sort_by: str, filter: str) -> tuple[Any, Any, int]:  # noqa: A002
        """The flows, their statistics (NULL where none are kept), and how many."""
        query, _kept = arguments.flow_query(self._ffi, filter=filter, min_packets=min_packets, sort_by=sort_by, limit=limit)
        flows, statistics, info = self._ffi.new("struct capture_flow[]", limit), self._new_statistics(limit), self._error_info()
        count = self._lib.capture_flow_get_all(self._open_capture(), query, flows, statistics, info)
        return flows, statistics, self._check(count, info)

    def _new_statistics(self, count: int) -> Any:
        return self._ffi.new("struct capture_flow_statistics[]", count) if self._statistics else self._ffi.NULL

    def _flow_list(self, flows: Any, statistics: Any, count: int) -> list[FlowStats]:
        kept = self._statistics != 0
        return [values.flow(self._ffi, flows[index], statistics[index] if kept else None) for index in range(count)]

    def _open_capture(self) -> Any:
        capture = self._capture
        if capture is None:
            raise CaptureStateError("the engine is closed", field="capture")
        return capture

    def _error_info(self) -> Any:
        return self._ffi.new("struct capture_error_info *")

    def _check(self, code: int, info: Any = None) -> int:
        return check(self._ffi, self._lib, code, info)


def check_filter(expression: str, *, firmware: Firmware | None = None) -> None:
    """Compiles a BPF expression without starting anything.

    Raises:
        FilterError: with libpcap's message.
    """
    loaded = _firmware(firmware, allow_unsigned=False)
    info = loaded.ffi.new("struct capture_error_info *")
    text = arguments.c_string(loaded.ffi, "filter", expression)
    check(loaded.ffi, loaded.lib, loaded.lib.capture_check_filter(text, info), info)


def _firmware(firmware: Firmware | None, *, allow_unsigned: bool) -> Firmware:
    """The one given, else the process's (judged, unless a script allowed otherwise), else loaded now."""
    if firmware is not None:
        return firmware
    loaded = loaded_firmware()
    if loaded is not None and (loaded.manifest is not None or allow_unsigned):
        return loaded
    return load_firmware(allow_unsigned=allow_unsigned)


def _milliseconds(seconds: float) -> int:
    if not 0 <= seconds < 1 << 22:
        raise InvalidArgument(f"timeout_s is {seconds!r}: accepted are 0 and up", field="timeout_s")
    return int(seconds * 1000)


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s
