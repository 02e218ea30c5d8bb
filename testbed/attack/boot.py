# SPDX-License-Identifier: Apache-2.0
"""Attacks on measured boot, in a fleet that demands level L2: boots that were not as recorded, logs that say they were.

One controller with one signed reference set; each attack is a host of its own that comes up in its own way.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

from jarvis_trust.boot_log import EventType

from testbed.attack.arena import RELEASE_KEY, Arena
from testbed.attack.model import Attack
from testbed.attack.stored import reasons_in
from testbed.boot import Measurement, boot_log, signed_reference, uefi_boot
from testbed.fleet import Fleet
from testbed.policy import PolicyText

_PCRS = list(range(9))
_GOOD = boot_log(uefi_boot())


def fleet_of(arena: Arena) -> Fleet:
    """The fleet that demands measured boot; started by the first attack on it, ended with the arena."""
    if (fleet := arena.other_fleets.get("boot")) is not None:
        return fleet
    for name, data in signed_reference(_GOOD, RELEASE_KEY.read_bytes(), pcrs=_PCRS).items():
        (arena.directory / name).write_bytes(data)
    fleet = Fleet(
        directory=arena.directory / "boot-fleet",
        name="boot",
        policy=PolicyText(
            interval_s=1, lease_s=60, boot_pcrs=_PCRS, references=[str(arena.directory / "good.json")], require_secure_boot=True
        ),
    )
    fleet.__enter__()
    arena.other_fleets["boot"] = fleet
    fleet.start()
    return fleet


def _host(extended: bytes, shown: bytes) -> Callable[[Arena], str]:
    """A host whose firmware measured one log into the TPM and whose agent shows another."""

    def run(arena: Arena) -> str:
        fleet = fleet_of(arena)
        name = f"host-{len(fleet.agents)}"
        # The log is where the agent looks for it before it is started with it.
        agent = fleet.add_agent(name, boot_log=extended, shown_boot_log=shown)
        try:
            return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=40)["reason"])
        finally:
            agent.stop()

    return run


def _with(change: Callable[[list[Measurement]], None]) -> bytes:
    measurements = uefi_boot()
    change(measurements)
    return boot_log(measurements)


def _relabel(measurements: list[Measurement]) -> None:
    measurements[2] = dataclasses.replace(measurements[2], type=0xA0000001, digest=measurements[2].sha256)


def _option_rom(measurements: list[Measurement]) -> None:
    measurements.append(Measurement(pcr=2, type=EventType.EFI_BOOT_SERVICES_DRIVER, data=b"option ROM"))


_KERNEL = boot_log(uefi_boot(kernel=b"another kernel"))
_INSECURE = boot_log(uefi_boot(secure_boot=False))
_TABLE: dict[str, tuple[str, str, bytes, bytes]] = {
    "blank-pcrs": ("BOOT_LOG_MISMATCH", "CVE-2021-42299: PCRs that firmware left blank, and a forged log", b"", _GOOD),
    "other-kernel": ("BOOT_REFERENCE_MISMATCH", "another kernel, told as it is", _KERNEL, _KERNEL),
    "other-kernel-hidden": ("BOOT_LOG_MISMATCH", "another kernel under the recorded log", _KERNEL, _GOOD),
    "log-of-another-boot": ("BOOT_LOG_MISMATCH", "the recorded boot under another log", _GOOD, _KERNEL),
    "log-relabelled": (
        "BOOT_EVENT_INVALID",
        "go-attestation event-log-disclosure: an event's type, which no digest covers",
        _GOOD,
        _with(_relabel),
    ),
    "option-rom": ("BOOT_REFERENCE_MISMATCH", "an option ROM that was not recorded", _with(_option_rom), _with(_option_rom)),
    "option-rom-hidden": ("BOOT_LOG_MISMATCH", "an option ROM left out of the log", _with(_option_rom), _GOOD),
    "secure-boot-off": ("BOOT_REFERENCE_MISMATCH+SECURE_BOOT_OFF", "secure boot switched off", _INSECURE, _INSECURE),
    "garbage-log": ("BOOT_LOG_INVALID", "bytes that are no log", _GOOD, b"\0" * 64),
    "truncated-log": ("BOOT_LOG_INVALID", "a log that ends inside an event", _GOOD, _GOOD[:-3]),
    "log-with-a-huge-event": (
        "BOOT_LOG_INVALID",
        "an event that says to be of 4 GiB",
        _GOOD,
        _GOOD[:-33] + struct.pack("<I", 2**32 - 1),
    ),
}

ATTACKS = tuple(
    Attack(name=f"boot/{name}", tries=tries, expected=expected, run=_host(extended, shown))
    for name, (expected, tries, extended, shown) in _TABLE.items()
)
