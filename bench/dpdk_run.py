# SPDX-License-Identifier: Apache-2.0
"""One capture of backend dpdk in a process of its own (a process has one EAL), for bench/dpdk.py and bench/instructions.py.

python -m bench.dpdk_run JSON    with device, filter, metering, cpu, and seconds or packets

With seconds: counts for so long. With packets: until so many were received. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from jarvis_native import PacketCaptureEngine

EAL_ARGS = ("--no-huge", "-m", "512", "--no-pci")


def run(
    *,
    device: str,
    filter: str,  # noqa: A002 - the field's name
    metering: bool,
    cpu: int,
    seconds: float | None = None,
    packets: int | None = None,
) -> dict[str, Any]:
    """Received frames, CPU seconds of the process meanwhile, active flows, lost frames."""
    with PacketCaptureEngine(
        device, backend="dpdk", dpdk_eal_args=EAL_ARGS, filter=filter, workers=1, worker_cpus=[cpu]
    ) as capture:
        if metering:
            capture.enable_flow_metering()
        capture.start()
        if packets is None:
            time.sleep(0.5)  # until every flow is in the table
        first, before = capture.get_metrics(), time.process_time()
        if packets is None:
            time.sleep(seconds or 0)
        else:
            while capture.get_metrics().received < packets:
                time.sleep(0.02)
            capture.stop(graceful=False)
        last, after = capture.get_metrics(), time.process_time()
    received = last.received - (first.received if packets is None else 0)
    lost = last.dropped_nic + last.dropped_kernel + last.dropped_user
    return {"received": received, "cpu_s": after - before, "flows": last.flows_active or last.flows_total, "lost": lost}


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
