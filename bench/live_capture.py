# SPDX-License-Identifier: Apache-2.0
"""Our side of the live table: meters one interface until SIGINT, then prints its counters as one JSON line.

python -m bench.live_capture INTERFACE BACKEND

Says "ready" once frames are captured. A process of its own, so that its CPU time is that of capturing alone.
"""

from __future__ import annotations

import json
import signal
import sys

from jarvis_native import PacketCaptureEngine

BUFFER_MB = 64
XDP_BUFFER_MB = 256
"""AF_XDP takes a frame of 2 KiB from it for each packet, however small: these are 131,072 packets, where a packet ring of 64 MiB
holds some 400,000 of 64 bytes."""


def capture(interface: str, backend: str) -> None:
    """Meters until SIGINT."""
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    buffer_mb = XDP_BUFFER_MB if backend == "xdp" else BUFFER_MB
    with PacketCaptureEngine(interface, backend=backend, buffer_size_mb=buffer_mb, workers=1) as engine:
        engine.enable_flow_metering(max_flows=1_048_576, idle_timeout_s=30, active_timeout_s=300)
        engine.start()
        print("ready", engine.backend_detail, flush=True)
        while not stopping:
            engine.poll(0.1)
        engine.stop()
        metrics = engine.get_metrics()
    print(json.dumps({"metered": metrics.metered, "dropped": metrics.dropped, "flows": metrics.flows_total}))


if __name__ == "__main__":
    capture(sys.argv[1], sys.argv[2])
