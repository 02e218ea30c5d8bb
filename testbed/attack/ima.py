# SPDX-License-Identifier: Apache-2.0
"""Attacks on IMA, in a fleet that demands level L3: files that are not the release's, and lists that do not say so.

One controller with one boot reference set and one list of accepted files; each attack is a host of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from jarvis_trust.boot_log import parse_boot_log
from jarvis_trust.firmware import MANIFEST_FILE, Manifest

from testbed.attack.arena import RELEASE_KEY, Arena
from testbed.attack.model import Attack
from testbed.attack.stored import reasons_in
from testbed.boot import boot_log, signed_reference, uefi_boot
from testbed.fleet import FIRMWARE, Fleet
from testbed.ima import Measured, boot_aggregate, ima_log
from testbed.policy import PolicyText

_PCRS = list(range(10))
_BOOT = boot_log(uefi_boot())
_OTHER_BOOT = boot_log(uefi_boot(kernel=b"another kernel"))
INTERPRETER = Measured(path="/opt/jarvis/bin/python3", contents=b"interpreter")
_EDITOR = Measured(path="/usr/bin/vi", contents=b"editor")


@cache
def genuine(boot: bytes = _BOOT) -> tuple[Measured, ...]:
    """What an honest host's kernel measures on its way to a running agent."""
    objects = Manifest.from_bytes((FIRMWARE / MANIFEST_FILE).read_bytes()).objects
    firmware = (
        Measured(path=f"/usr/local/lib/jarvis-capture/{name}", digest=bytes.fromhex(digest)) for name, digest in objects.items()
    )
    return (boot_aggregate(parse_boot_log(boot).replay(range(10))), _EDITOR, INTERPRETER, *firmware)


def demanding(reference: Path, allowed: Path) -> PolicyText:
    """Level L3 of everybody: a signed reference set, and where the accepted files are to be listed."""
    allowed.write_text(f"{hashlib.sha256(INTERPRETER.contents).hexdigest()}  {INTERPRETER.path}\n")
    ima = {"paths": ["/opt/jarvis/"], "allowed": [str(allowed)], "required": [INTERPRETER.path]}
    return PolicyText(interval_s=1, lease_s=60, boot_pcrs=_PCRS, references=[str(reference)], ima=ima)


def fleet_of(arena: Arena) -> Fleet:
    """The fleet that demands IMA; started by the first attack on it, ended with the arena."""
    if (fleet := arena.other_fleets.get("ima")) is not None:
        return fleet
    for name, data in signed_reference(_BOOT, RELEASE_KEY.read_bytes(), pcrs=_PCRS).items():
        (arena.directory / f"ima-{name}").write_bytes(data)
    path = arena.directory / "ima-good.json"
    allowed = arena.directory / "agent.sha256"
    fleet = Fleet(
        directory=arena.directory / "ima-fleet",
        name="ima",
        policy=demanding(path, allowed),
    )
    fleet.__enter__()
    arena.other_fleets["ima"] = fleet
    fleet.start()
    return fleet


Files = Sequence[Measured]


def _host(extended: Callable[[], Files], shown: Callable[[], Files | bytes] | None) -> Callable[[Arena], str]:
    """A host whose kernel measured some files and whose agent shows a list of its own making."""

    def run(arena: Arena) -> str:
        fleet = fleet_of(arena)
        told = extended() if shown is None else shown()
        agent = fleet.add_agent(
            f"host-{len(fleet.agents)}",
            boot_log=_BOOT,
            ima_log=ima_log(extended()),
            shown_ima_log=told if isinstance(told, bytes) else ima_log(told),
        )
        try:
            return reasons_in(fleet.wait_for_state(agent, "quarantined", seconds=40)["reason"])
        finally:
            agent.stop()

    return run


_TAMPERED = Measured(path="/usr/local/lib/jarvis-capture/libjarvis_capture.so", contents=b"one byte flipped")
_IMPLANT = Measured(path="/opt/jarvis/lib/sitecustomize.py", contents=b"says what it is told")
_ROOTKIT = Measured(path="/root/rootkit", contents=b"rootkit")


def _and(*more: Measured) -> Callable[[], Files]:
    return lambda: (*genuine(), *more)


def _swapped() -> Files:
    first, second, third, *rest = genuine()
    return (first, third, second, *rest)


def _twice() -> Files:
    return (*genuine(), genuine()[3])


def _violated(file: Measured) -> Measured:
    return dataclasses.replace(file, is_violation=True)


_TABLE: dict[str, tuple[str, str, Callable[[], Files], Callable[[], Files | bytes] | None]] = {
    "edited-entry": ("IMA_LOG_MISMATCH", "a tampered library, listed as the genuine one", _and(_TAMPERED), _twice),
    "removed-entry": ("IMA_LOG_MISMATCH", "an entry left out of the list", _and(_ROOTKIT, _EDITOR), _and(_EDITOR)),
    "reordered-entries": ("IMA_LOG_MISMATCH", "two entries in another order", genuine, _swapped),
    "forged-entry": ("IMA_LOG_MISMATCH", "an entry that the kernel never made", _and(_ROOTKIT), _and(_EDITOR, _ROOTKIT)),
    "hidden-violation": ("IMA_LOG_MISMATCH", "a violation left out of the list", _and(_violated(INTERPRETER)), genuine),
    "moved-violation": (
        "IMA_VIOLATION",
        "a violation of the agent's interpreter that says to be of another file: nothing covers its path",
        _and(_violated(INTERPRETER)),
        _and(_violated(_EDITOR)),
    ),
    "list-of-another-boot": (
        "IMA_BOOT_MISMATCH",
        "a list, and PCR 10, of a host that booted another kernel",
        lambda: genuine(_OTHER_BOOT),
        None,
    ),
    "list-of-another-host": ("IMA_LOG_MISMATCH", "the list of an honest host", _and(_IMPLANT), lambda: genuine(_OTHER_BOOT)),
    "tampered-library": ("IMA_FILE_UNTRUSTED", "a library that was altered, opened, and put back", _and(_TAMPERED), None),
    "implant": ("IMA_FILE_UNTRUSTED", "a file of the agent's that no release has", _and(_IMPLANT), None),
    "agent-not-measured": ("IMA_AGENT_NOT_MEASURED", "an IMA policy that leaves the agent out", lambda: genuine()[:2], None),
    "no-list": ("IMA_LOG_MISSING", "no list at all", genuine, lambda: b""),
    "other-template": (
        "IMA_LOG_INVALID",
        "an entry relabelled to a template that reads otherwise: its name is covered by nothing",
        genuine,
        lambda: ima_log(genuine()).replace(b"ima-ng", b"ima-xy"),
    ),
}  # fmt: skip

ATTACKS = tuple(
    Attack(name=f"ima/{name}", tries=tries, expected=expected, run=_host(extended, shown))
    for name, (expected, tries, extended, shown) in _TABLE.items()
)
