# SPDX-License-Identifier: Apache-2.0
"""What a rooted host could do to its agent, for the demo and the tests: put this folder on PYTHONPATH and the agent lies.

The library is still measured before anything can lie about it. After that this agent reports genuine firmware, and in the event
log that it sends every measured digest of the library is replaced by the genuine one. What the TPM signs it cannot change.
"""

import json

from jarvis.capture.v1.agent_pb2 import FirmwareStatus
from jarvis_agent import firmware
from jarvis_agent.config import AgentConfig
from jarvis_agent.event_log import EventLog
from jarvis_agent.firmware import FirmwareState, FloorSource, MeasurementContext
from jarvis_native.loader import LIBRARY
from jarvis_trust.eventlog import encode_event
from jarvis_trust.firmware import Manifest

honest_load = firmware.load
honest_read = EventLog.read


def lying_load(config: AgentConfig, context: MeasurementContext, floor: FloorSource) -> FirmwareState:
    """Loads as ever; from then on all is well."""
    state = honest_load(config, context, floor)
    manifest = Manifest.from_bytes(state.manifest)
    genuine = manifest.objects[LIBRARY]

    def status(_state: FirmwareState) -> FirmwareStatus:
        return FirmwareStatus(loaded=True, sha256=bytes.fromhex(genuine), version=manifest.version)

    def read(log: EventLog) -> bytes:
        forged = b""
        for line in honest_read(log).splitlines():
            record = json.loads(line)
            if record["content"].get("object") == LIBRARY:
                record["content"]["sha256"] = genuine
            forged += encode_event(record["recnum"], record["pcr"], record["content"])
        print(f"reporting genuine firmware: {genuine}", flush=True)
        return forged

    FirmwareState.status = status  # type: ignore[method-assign, assignment]
    EventLog.read = read  # type: ignore[method-assign, assignment]
    return state


firmware.load = lying_load
